"""What runs inside the sandbox, by itself and with the standard library only: see `tieryard/golden/sandbox.py`.

Reads two frames from its standard input: the program, then, once the candidate is forked, the tests. Writes one line of
JSON to its standard output: {"outcome", "reason"}.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import signal
import struct
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

LENGTH = struct.Struct("!Q")
MOST_BYTES = 1 << 24
MOST_TEXT = 500
BLOCKED = 77
ATOMS = (type(None), bool, int, float, str)
# By these a program could undo the hook itself, or start what the hook does not see.
IMPORTS = frozenset(
    {"_ctypes", "_interpreters", "_posixsubprocess", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "ctypes"}
)
EVENTS = ("ctypes.", "fcntl.", "os.", "pty.", "resource.", "shutil.", "socket.", "subprocess.", "syslog.", "gc.get_")
READS = frozenset({"open", "os.listdir", "os.scandir"})


class Failed(BaseException):
    """The program is wrong. Not an Exception, so that no `except` of the tests takes it for the program's own."""


class TimeUp(BaseException):
    pass


class Pipe(NamedTuple):
    """Two file descriptors, for frames of JSON."""

    source: int
    sink: int

    def send(self, message: Any) -> None:
        body = json.dumps(message).encode()
        waiting = memoryview(LENGTH.pack(len(body)) + body)
        while waiting:
            waiting = waiting[os.write(self.sink, waiting) :]

    def receive(self) -> Any:
        """Raises EOFError where the other side has gone, ValueError for what is no frame."""
        (size,) = LENGTH.unpack(self._read(LENGTH.size))
        if size > MOST_BYTES:
            raise ValueError("too large")
        return json.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.source, min(size, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def encode(value: Any) -> Any:
    """A plain value as JSON, with the names of the types that JSON has not. Raises TypeError for any other."""
    if type(value) in ATOMS:
        return value
    if isinstance(value, list | tuple | set | frozenset):
        kind = next(k for k in (list, tuple, set, frozenset) if isinstance(value, k))
        return [kind.__name__, [encode(part) for part in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(part)] for key, part in value.items()]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    for atom in (int, float, str):  # a subclass is sent as what it is at heart
        if isinstance(value, atom):
            return atom(value)
    raise TypeError(f"a {type(value).__name__} is no plain value")


def decode(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, inner = value
    if kind == "dict":
        return {decode(key): decode(part) for key, part in inner}
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "complex":
        return complex(*inner)
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(part) for part in inner)


def watch(roots: tuple[str, ...], allowed_kill: int | None, stop: Callable[[str], NoReturn]) -> None:
    """From now on, whatever only mischief needs ends the process. Everything that the hook uses is bound here, and it
    raises nothing: what it raised would lead the program to the hook's own variables."""
    realpath, is_a, text, encoded, joined = os.path.realpath, isinstance, str, bytes, os.sep
    events, reads, imports, fsdecode = EVENTS, READS, IMPORTS, os.fsdecode

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event in reads:
            path = details[0]
            if is_a(path, int) or (path is None and event != "open"):
                return  # what is open already, and the working directory
            where = realpath(fsdecode(path)) if is_a(path, (text, encoded)) else ""
            for root in roots:
                if where == root or where.startswith(root + joined):
                    return
            stop(event)
        elif event == "import":
            if details[0] in imports:
                stop("import of " + details[0])
        elif event.startswith(events):
            if event == "os.kill" and details == (allowed_kill, 9):
                return
            stop(event)

    sys.addaudithook(hook)


def limit(limits: dict[str, Any]) -> None:
    """Bounds this process and those that it starts, and gives up being root."""
    for name, most in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (most, most))
    nobody = limits["nobody"]
    if nobody is None:
        return
    with suppress(OSError):  # a root without the right to become somebody else
        os.setgroups([])
        os.setresgid(nobody, nobody, nobody)
        os.setresuid(nobody, nobody, nobody)


def library() -> tuple[str, ...]:
    """Where modules are read from, and the working directory."""
    return tuple(os.path.realpath(path) for path in (*sys.path, os.curdir) if path)


def candidate(pipe: Pipe, program: str, entry_point: str) -> NoReturn:
    """Runs the program, then answers calls until the examiner has gone."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    leave, send = os._exit, pipe.send

    def stop(event: str) -> NoReturn:
        send({"blocked": event})
        leave(BLOCKED)

    watch(library(), None, stop)
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    try:
        exec(compile(program, "<answer>", "exec"), module.__dict__)  # noqa: S102  # it is what the sandbox is for
        function = module.__dict__[entry_point]
        send({"ready": True})
        while True:
            args, kwargs = pipe.receive()
            send(_called(function, decode(args), decode(kwargs)))
    except EOFError:
        leave(0)
    except BaseException as error:  # also SystemExit
        send(_raised(error))
        leave(1)


def _called(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    try:
        return {"value": encode(function(*args, **kwargs))}
    except BaseException as error:
        return _raised(error)


def _raised(error: BaseException) -> dict[str, Any]:
    try:
        return {"raised": type(error).__name__, "text": str(error)[:MOST_TEXT]}
    except BaseException:  # its own __str__ is the program's, too
        return {"raised": "Exception", "text": ""}


class Candidate:
    """The program's function as the tests see it."""

    def __init__(self, pipe: Pipe, pid: int) -> None:
        self._pipe = pipe
        self._pid = pid
        self._waited_for = False
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        try:
            self._pipe.send([encode(args), encode(kwargs)])
        except OSError:
            raise self._ended() from None
        said = self.hear()
        if "value" in said:
            return decode(said["value"])
        raise _known(str(said.get("raised")))(str(said.get("text")))

    def hear(self) -> dict[str, Any]:
        """Its next word. Raises Failed where it has ended, was stopped, or says something else than it may."""
        try:
            said = self._pipe.receive()
        except EOFError:
            raise self._ended() from None
        except (ValueError, RecursionError):
            raise Failed("its answer to a call is no plain value") from None
        if not isinstance(said, dict):
            raise Failed("its answer to a call is no plain value")
        if "blocked" in said:
            raise Failed(f"it tried what the sandbox forbids: {said['blocked']}")
        return said

    def end(self) -> None:
        if not self._waited_for:  # else the number may be another process's by now
            os.kill(self._pid, signal.SIGKILL)

    def _ended(self) -> BaseException:
        _, status = os.waitpid(self._pid, 0)
        self._waited_for = True
        if os.WIFSIGNALED(status):
            if os.WTERMSIG(status) == signal.SIGXCPU:
                return TimeUp()
            return Failed(f"it was ended by signal {os.WTERMSIG(status)}")
        return Failed(f"it ended before the tests did, with status {os.WEXITSTATUS(status)}")


def _known(name: str) -> type[Exception]:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        return kind
    return type(name[:40] if name.isidentifier() else "Exception", (Exception,), {})


def examine(function: Candidate, entry_point: str, prefix: str, tests: str) -> tuple[str, str]:
    """(outcome, reason)."""
    try:
        said = function.hear()
        if "raised" in said:
            return "fail", f"the program does not load: {said['raised']}: {said.get('text')}"
        names: dict[str, Any] = {"__name__": "tests"}
        try:
            exec(compile(prefix, "<prefix>", "exec"), names)  # noqa: S102
            names[entry_point] = function
            exec(compile(tests, "<tests>", "exec"), names)  # noqa: S102
        except Exception as error:
            return "error", f"the tests do not load: {type(error).__name__}: {error}"
        names["check"](function)
    except TimeUp:
        return "timeout", "it ran past its time"
    except Failed as error:
        return "fail", str(error)
    except BaseException as error:
        return "fail", f"{type(error).__name__}{_line(error)}: {error}"
    if function.calls == 0:
        return "error", f"the tests never call {entry_point}"
    return "pass", f"{function.calls} calls, all tests hold"


def _line(error: BaseException) -> str:
    """Where in the tests it came up."""
    at, line = error.__traceback__, None
    while at is not None:
        if at.tb_frame.f_code.co_filename == "<tests>":
            line = at.tb_lineno
        at = at.tb_next
    return f" (line {line} of the tests)" if line else ""


def _time_up(*_: object) -> NoReturn:
    raise TimeUp


def main() -> None:
    first = Pipe(0, -1).receive()
    limit(first["limits"])
    verdict_fd, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    calls, replies = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(nowhere, 0)
        for fd in (verdict_fd, calls[1], replies[0]):
            os.close(fd)
        candidate(Pipe(calls[0], replies[1]), first["program"], first["entry_point"])
    os.close(calls[0])
    os.close(replies[1])
    second = Pipe(0, -1).receive()
    signal.signal(signal.SIGALRM, _time_up)
    signal.setitimer(signal.ITIMER_REAL, first["limits"]["wall_s"])
    watch(library(), pid, lambda event: _forbidden(verdict_fd, event))
    function = Candidate(Pipe(replies[0], calls[1]), pid)
    outcome, reason = examine(function, first["entry_point"], **second)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _tell(verdict_fd, outcome, reason)
    function.end()


def _tell(fd: int, outcome: str, reason: str) -> None:
    os.write(fd, json.dumps({"outcome": outcome, "reason": reason[:MOST_TEXT]}).encode())


def _forbidden(fd: int, event: str) -> NoReturn:
    _tell(fd, "error", f"the tests tried what the sandbox forbids: {event}")
    os._exit(BLOCKED)


if __name__ == "__main__":
    main()
