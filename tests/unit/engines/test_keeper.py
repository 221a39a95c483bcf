"""However a server, its keeper or the process that started both ends: nothing of it runs on."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import eventually

KEEPER = [sys.executable, "-m", "tieryard.engines.keeper"]

# Each prints the pids of what it starts, its own first, and "ready".
BORN = "import os, signal, subprocess, sys, time\ndef say(*words): print(*words, flush=True)\n"
FOREVER = "while True: time.sleep(60)\n"
PLAIN = BORN + "say(os.getpid()); say('ready')\n" + FOREVER
FAMILY = BORN + "child = os.fork()\nif child: say(os.getpid(), child); say('ready')\n" + FOREVER
DEAF = (
    BORN
    + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nchild = os.fork()\n"
    + "if child: say(os.getpid(), child); say('ready')\n"
    + FOREVER
)
# The usual way to leave one's parent for good: a child's child in a session of its own.
STRAY = (
    BORN
    + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserver = os.getpid()\n"
    + "if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n    say(server, os.getpid()); say('ready')\n"
    + "else: os.wait()\n"
    + FOREVER
)
ENDS = BORN + "child = os.fork()\nif child: say(child); say('ready'); sys.exit(7)\n" + FOREVER
KILLED = BORN + "child = os.fork()\nif child: say(child); say('ready'); os.kill(os.getpid(), 9)\n" + FOREVER
ORDERLY = (
    BORN
    + "child = 0\n"
    + "def stop(*_):\n"
    + "    if not child: say('child asked'); os._exit(0)\n"
    + "    say('server asked'); os.kill(child, signal.SIGTERM); os.wait(); say('server done'); os._exit(3)\n"
    + "signal.signal(signal.SIGTERM, stop)\nchild = os.fork()\nif child: say(os.getpid(), child); say('ready')\n"
    + FOREVER
)


def keep(script, *, grace_s=0.3):
    return subprocess.Popen(
        [*KEEPER, str(grace_s), sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pids_of(keeper, *, count):
    """What the script says it has started, once it is ready."""
    said = []
    while len(said) < count + 1:
        line = keeper.stdout.readline()
        assert line, "the script ended before it was ready"
        said += line.split()
    return [int(word) for word in said if word != "ready"]


def runs(pid):
    """Whether a process lives: one that nobody has buried does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.contextmanager
def kept(script, *, count, **options):
    """(keeper, pids); whatever a failing test leaves is killed."""
    with keep(script, **options) as keeper:
        pids = pids_of(keeper, count=count)
        try:
            yield keeper, pids
        finally:
            for pid in [keeper.pid, *pids]:
                with contextlib.suppress(ProcessLookupError):
                    if runs(pid):
                        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("script", "count", "code"),
    [(PLAIN, 1, 128 + 15), (FAMILY, 2, 128 + 15), (DEAF, 2, 128 + 9), (STRAY, 2, 128 + 9)],
    ids=["plain", "with a child", "deaf to SIGTERM", "with a stray in a session of its own"],
)
def test_all_of_a_server_ends_with_its_keepers_input(script, count, code):
    with kept(script, count=count) as (keeper, pids):
        assert all(runs(pid) for pid in pids)
        keeper.stdin.close()
        assert keeper.wait() == code
        assert [pid for pid in pids if runs(pid)] == []


@pytest.mark.parametrize(("script", "code"), [(ENDS, 7), (KILLED, 128 + 9)], ids=["by itself", "by a signal"])
def test_what_a_server_leaves_behind_ends_with_it_and_its_code_is_passed_on(script, code):
    with kept(script, count=1) as (keeper, [child]):
        assert keeper.wait() == code
        assert not runs(child)


def test_the_server_is_asked_first_and_may_stop_its_own_in_order():
    with kept(ORDERLY, count=2, grace_s=60) as (keeper, pids):
        keeper.stdin.close()
        assert keeper.stdout.read().splitlines() == ["server asked", "child asked", "server done"]
        assert keeper.wait() == 3
        assert [pid for pid in pids if runs(pid)] == []


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_keeper_that_is_asked_to_stop_stops_its_server(sign):
    with kept(FAMILY, count=2) as (keeper, pids):
        keeper.send_signal(sign)
        assert keeper.wait() == 128 + 15
        assert [pid for pid in pids if runs(pid)] == []


def test_a_server_dies_with_a_keeper_that_is_killed():
    with kept(DEAF, count=2) as (keeper, pids):
        keeper.kill()
        keeper.wait()
        eventually(lambda: not runs(pids[0]), what="the server's death")


WORKER = f"""
import subprocess, sys, time
subprocess.Popen([*{KEEPER!r}, "0.3", sys.executable, "-c", {STRAY!r}], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""


def test_all_of_a_server_ends_when_the_process_that_wanted_it_is_killed():
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as worker:
        pids = pids_of(worker, count=2)
        worker.kill()
        eventually(lambda: not any(runs(pid) for pid in pids), what="the end of the server and its stray")


def test_a_command_that_is_not_there_is_said_so():
    done = subprocess.run([*KEEPER, "0.3", "/nowhere/python"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (127, "/nowhere/python: No such file or directory\n")
