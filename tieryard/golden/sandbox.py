"""Runs code that nobody trusts: unit tests on a program, in processes of their own, within limits.

Two processes are started. The *examiner* has the tests and gives the verdict; the *candidate*, forked from it before it
has read the tests, has only the program and answers calls with plain values. So nothing the program does to itself
(leaving early, replacing `check`, returning an object that equals everything) reaches the verdict.

Both have an empty environment, an empty working directory that is removed afterwards, a session of their own, bounded
CPU time, memory, files and processes, output that goes nowhere, and an audit hook that ends the process at the first
attempt to open a socket, start a process, signal another one, or touch files outside Python's library and the working
directory. Where the kernel lets us (`unshare` of util-linux), they also have namespaces of their own for network,
processes, IPC and mounts. Where they would run as root and everybody may read Python's library, they become `nobody`.

This bounds mistakes and mischief. It is no jail for a determined attacker: for models that you do not trust, run it in
a container.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
OPEN_FILES = 32
NOBODY = 65534
_START_S = 5.0  # for two interpreters and the namespaces, on a busy machine
_MOST_REASON = 200
_MOST_VERDICT_BYTES = 4096
_INSIDE = Path(__file__).with_name("sandbox_inside.py")
_PATHS = re.compile(r"(?:[A-Za-z]:)?(?:/[^\s'\"/:]+)+/?")


class Outcome(StrEnum):
    PASS = "pass"  # noqa: S105  # no password
    FAIL = "fail"
    """The program is wrong, or did something that it may not."""
    TIMEOUT = "timeout"
    ERROR = "error"
    """The tests are at fault, or the sandbox could not be started."""


class Isolation(StrEnum):
    """What keeps a program from the network; the audit hook is there in either case."""

    NAMESPACE = "network namespace"
    AUDIT_HOOK = "audit hook"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is short and names no path of this machine."""

    outcome: Outcome
    reason: str
    isolation: Isolation


def run_tests(*, program: str, entry_point: str, prefix: str, tests: str, timeout_s: float) -> Verdict:
    """Runs `program`, then `check(its entry_point)` as `tests` define it. `prefix` is trusted code that is run before
    the tests, for the names that they use. `timeout_s` bounds the wall time after the start, and the CPU time. Never
    raises because of what the code does."""
    nobody = NOBODY if _can_be_nobody() else None
    limits = {
        "cpu_s": int(timeout_s) + 1,
        "wall_s": timeout_s,
        "memory_bytes": MEMORY_BYTES,
        "file_bytes": FILE_BYTES,
        "open_files": OPEN_FILES,
        "nobody": nobody,
    }
    told = _frame(program=program, entry_point=entry_point, limits=limits) + _frame(prefix=prefix, tests=tests)
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        if nobody is not None:
            with suppress(OSError):  # where root may not, the examiner cannot become nobody either
                os.chown(folder, NOBODY, NOBODY)
        return _run(folder, told, timeout_s + _START_S)


def network_isolation() -> Isolation:
    """Which of the two this machine allows."""
    return Isolation.NAMESPACE if _namespaces() else Isolation.AUDIT_HOOK


@lru_cache(maxsize=1)
def _namespaces() -> tuple[str, ...]:
    """The command that starts another one in namespaces of its own, as many as this machine allows; tried once."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    user = () if _can_be_nobody() else ("--user", "--map-root-user")
    for kinds in (("--net", "--pid", "--ipc", "--mount-proc", "--fork", "--kill-child"), ("--net",)):
        command = (unshare, *user, *kinds, "--")
        try:
            tried = subprocess.run([*command, "true"], capture_output=True, timeout=_START_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if tried.returncode == 0:
            return command
    return ()


@lru_cache(maxsize=1)
def _can_be_nobody() -> bool:
    """For root, where everybody may read Python's library: it may also lie in root's own folder."""
    library = Path(os.__file__).resolve()
    return os.geteuid() == 0 and all(path.stat().st_mode & 0o005 == 0o005 for path in library.parents)


def _frame(**parts: object) -> bytes:
    """Length first, so that the examiner reads no byte of the tests before it has forked."""
    body = json.dumps(parts).encode()
    return struct.pack("!Q", len(body)) + body


def _run(folder: str, told: bytes, limit_s: float) -> Verdict:
    isolation = network_isolation()
    with tempfile.TemporaryFile() as frames:  # not a pipe, on which writing could wait for ever
        frames.write(told)
        frames.seek(0)
        try:
            process = subprocess.Popen(
                [*_namespaces(), sys.executable, "-I", "-S", "-B", str(_INSIDE)],
                stdin=frames,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                start_new_session=True,
            )
        except OSError as error:
            return Verdict(Outcome.ERROR, f"the sandbox did not start: {error.strerror}", isolation)
        assert process.stdout is not None
        with process.stdout as stdout:
            try:
                said = _read(stdout.fileno(), time.monotonic() + limit_s)
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so the number is still this group's
                process.wait()
    if said is None:
        return Verdict(Outcome.TIMEOUT, "it ran past its time", isolation)
    return _verdict(said, isolation)


def _read(fd: int, until: float) -> bytes | None:
    """All that is said, to a limit; None where the time is over first."""
    said = b""
    while len(said) < _MOST_VERDICT_BYTES:
        ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        part = os.read(fd, _MOST_VERDICT_BYTES)
        if not part:
            break
        said += part
    return said


def _verdict(said: bytes, isolation: Isolation) -> Verdict:
    try:
        told = json.loads(said)
        return Verdict(Outcome(told["outcome"]), _without_paths(str(told["reason"])), isolation)
    except (ValueError, KeyError, TypeError):
        return Verdict(Outcome.ERROR, "its tests ended without a verdict", isolation)


def _without_paths(reason: str) -> str:
    flat = " ".join(_PATHS.sub("…", reason).split())
    return flat if len(flat) <= _MOST_REASON else f"{flat[:_MOST_REASON]}…"
