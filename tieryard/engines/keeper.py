"""Runs a command for as long as its own standard input stays open, and lets nothing of it survive.

A server that starts processes of its own (vLLM does) leaves them behind, with the GPU's memory, when it is killed. So
the infer process starts this small one, and this one starts the server. When its input closes, which it does however
the infer process dies, or when the server ends, every process that descends from the server is stopped: the server is
asked first, then the rest, and what is left after a grace is killed. It exits after the last of them, with the
server's code, so that whoever waits for it knows that nothing is left. A code above 128 says which signal ended the
server, as in a shell.

Orphans of the server become this process's children (`PR_SET_CHILD_SUBREAPER`), so one that has left the process group
is found too. Elsewhere than on Linux only the server itself is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform == "linux"
_LOOK_AGAIN_S = 0.05
NOT_FOUND = 127  # a shell's code for a command that is not there


class Keeper:
    """One command, and all that comes of it."""

    def __init__(self, command: list[str], *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._code: int | None = None
        self._wake_fd, self._signal_fd = os.pipe()
        for end in (self._wake_fd, self._signal_fd):
            os.set_blocking(end, False)
        self._asked = False
        signal.set_wakeup_fd(self._signal_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(stop, self._ask)
        if _LINUX:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # It stays in this process's group: should this one be killed, the infer process kills the group.
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_keeper)

    def run(self) -> int:
        """Returns the server's code when nothing of it is left."""
        while self._code is None and not self._asked and not self._input_closed():
            self._reap()
        self._end()
        return self._code if self._code is not None else 0

    def _ask(self, *_: object) -> None:
        self._asked = True

    def _input_closed(self) -> bool:
        """Waits for something to happen: to the input, or a signal."""
        ready, _, _ = select.select([0, self._wake_fd], [], [])
        if self._wake_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_fd, 4096)
        return 0 in ready and not os.read(0, 4096)

    def _end(self) -> None:
        """Asks the server to stop, then whatever is left of it, and at last kills."""
        begun, asked = time.monotonic(), set[tuple[int, int]]()
        while self._reap():
            passed_s = time.monotonic() - begun
            sign = signal.SIGTERM if passed_s < self._grace_s else signal.SIGKILL
            alone = self._code is None and passed_s < self._grace_s / 2  # it may stop the others in good order
            for pid in [self._server.pid] if alone else self._left():
                if (pid, sign) not in asked:
                    asked.add((pid, sign))
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, sign)
            select.select([self._wake_fd], [], [], _LOOK_AGAIN_S)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_fd, 4096)

    def _reap(self) -> bool:
        """Buries the dead; whether any child lives. Orphans of the server are children too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._server.pid:
                code = os.waitstatus_to_exitcode(status)
                self._server.returncode = code
                self._code = code if code >= 0 else 128 - code

    def _left(self) -> list[int]:
        if not _LINUX:
            return [self._server.pid] if self._code is None else []
        children: dict[int, list[int]] = {}
        for pid, parent in _processes():
            children.setdefault(parent, []).append(pid)
        found, todo = [], [os.getpid()]
        while todo:
            below = children.get(todo.pop(), [])
            found += below
            todo += below
        return found


def _processes() -> Iterator[tuple[int, int]]:
    """(process, its parent) of all that run."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            after_name = path.read_text(errors="replace").rpartition(")")[2].split()
            yield int(path.parent.name), int(after_name[1])


def _die_with_keeper() -> None:
    """In the server, before it is run."""
    if _LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    grace_s, *command = sys.argv[1:]
    try:
        keeper = Keeper(command, grace_s=float(grace_s))
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return NOT_FOUND
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main())
