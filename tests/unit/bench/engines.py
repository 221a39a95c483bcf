"""Engines for the tests of the load: they do what a script says, and remember how they were used."""

import asyncio
import selectors

from tieryard.engines import Delta, Done, Usage


class Scripted:
    """Answers by `script(number, body)`, an async generator of events; `number` counts from 0. `open` streams are under
    way, `closed` ones were ended by their client before their end. `begun` is released once a stream."""

    url = None

    def __init__(self, script):
        self._script = script
        self.bodies = []
        self.open = self.most_open = self.closed = 0
        self.begun = asyncio.Semaphore(0)

    async def stream(self, body):
        number = len(self.bodies)
        self.bodies.append(body)
        self.open += 1
        self.begun.release()
        self.most_open = max(self.most_open, self.open)
        try:
            async for event in self._script(number, body):
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            self.closed += 1
            raise
        finally:
            self.open -= 1


def answer(*steps, prompt=3, tokens=None):
    """A script of `steps`, (seconds to wait, running count or None) each a piece of text, and then the end."""

    async def script(number, body):
        last = 0
        for wait_s, count in steps:
            await asyncio.sleep(wait_s)
            last = count or last + 1
            yield Delta("x", Usage(prompt, count) if count else None)
        yield Done("stop", Usage(prompt, last if tokens is None else tokens))

    return script


def chat(text="Hello", **fields):
    return {"messages": [{"role": "user", "content": text}], **fields}


class _Jump(selectors.SelectSelector):
    """Never waits: what the loop would have waited has passed."""

    now_s = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if not found and timeout is not None:
            self.now_s += max(0.0, timeout)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose hours take no time, for what does nothing but wait on timers."""

    def __init__(self):
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self):
        return self._jump.now_s
