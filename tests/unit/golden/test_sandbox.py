"""Code that nobody trusts neither passes nor hangs, whatever it tries."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from threading import Thread

import pytest

from tieryard.golden import sandbox
from tieryard.golden.sandbox import Isolation, Outcome, Verdict, run_tests

TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"
RIGHT = "def square(x):\n    return x * x\n"


@pytest.fixture(params=["as this machine allows", "audit hook"])
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with the namespaces that there are, and without any."""
    if request.param == "audit hook":
        monkeypatch.setattr(sandbox, "_namespaces", tuple)
    return str(request.param)


def run(program: str, *, tests: str = TESTS, prefix: str = "", timeout_s: float = 2.0) -> Verdict:
    return run_tests(program=program, entry_point="square", prefix=prefix, tests=tests, timeout_s=timeout_s)


def test_a_right_program_passes(isolation: str) -> None:
    verdict = run(RIGHT)
    assert (verdict.outcome, verdict.reason) == (Outcome.PASS, "2 calls, all tests hold")
    if isolation == "audit hook":
        assert verdict.isolation is Isolation.AUDIT_HOOK


def test_it_says_which_isolation_there_is() -> None:
    assert run(RIGHT).isolation is sandbox.network_isolation()


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("def square(x):\n    return x + x\n", "AssertionError (line 3 of the tests)"),
        ("def square(x):\n    return 1 / 0\n", "ZeroDivisionError (line 2 of the tests): division by zero"),
        ("def square(x:\n", "the program does not load: SyntaxError"),
        ("def other(x):\n    return 4\n", "the program does not load: KeyError"),
        ("def square(x):\n    return square(x)\n", "RecursionError"),
        ("import nothing_of_this_name\n" + RIGHT, "ModuleNotFoundError"),
    ],
)
def test_a_wrong_program_fails_and_says_why(program: str, says: str) -> None:
    verdict = run(program)
    assert verdict.outcome is Outcome.FAIL
    assert says in verdict.reason


HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    os.fork()\n",
    "fork bomb past the hook": (
        "import _posixsubprocess as p\nwhile True:\n    p.fork_exec([b'x'], [b'/bin/true'], *[None] * 19)\n"
    ),
    "threads": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()\n",
    "infinite loop": "def square(x):\n    while True:\n        pass\n",
    "infinite sleep": "import time\ndef square(x):\n    time.sleep(10_000)\n",
    "loop that takes every exception": (
        "def square(x):\n    while True:\n        try:\n            while True: 0\n        except BaseException: 0\n"
    ),
    "huge memory": "def square(x):\n    return len([0] * (1 << 34))\n",
    "huge result": "def square(x):\n    return 'a' * (1 << 26)\n",
    "huge output": "def square(x):\n    while True:\n        print('a' * 1_000_000)\n",
    "huge file": "with open('f', 'w') as f:\n    while True:\n        f.write('a' * 1_000_000)\n" + RIGHT,
    "kills its parent": "import os\nos.kill(os.getppid(), 9)\n" + RIGHT,
    "kills its group": "import os\nos.killpg(0, 9)\n" + RIGHT,
    "reads its parent's environment": "import os\nopen(f'/proc/{os.getppid()}/environ').read()\n" + RIGHT,
    "reads a file": "open('/etc/passwd').read()\n" + RIGHT,
    "reads a file by a link": "import os\nos.symlink('/etc/passwd', 'f')\nopen('f').read()\n" + RIGHT,
    "lists a folder": "import os\nos.listdir('/')\n" + RIGHT,
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', 1))\n" + RIGHT,
    "looks up a name": "import socket\nsocket.getaddrinfo('localhost', 80)\n" + RIGHT,
    "starts a shell": "import os\nos.system('true')\n" + RIGHT,
    "loads a library": "import ctypes\n" + RIGHT,
    "asks for its hook": "import gc\ngc.get_objects()\n" + RIGHT,
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))\n" + RIGHT,
    "sys.exit(0) at once": "import sys\nsys.exit(0)\n",
    "os._exit(0) at once": "import os\nos._exit(0)\n",
    "sys.exit(0) when called": "import sys\ndef square(x):\n    sys.exit(0)\n",
    "os._exit(0) when called": "import os\ndef square(x):\n    os._exit(0)\n",
    "ends by a signal": "import signal\ndef square(x):\n    signal.raise_signal(9)\n",
    "replaces check": "def check(candidate):\n    pass\ndef square(x):\n    return 0\n",
    "replaces check in every module": (
        "import sys\nfor m in list(sys.modules.values()):\n    m.check = lambda c: None\ndef square(x):\n    return 0\n"
    ),
    "replaces builtins": (
        "import builtins\nbuiltins.AssertionError = type('A', (Exception,), {})\ndef square(x):\n    return 0\n"
    ),
    "equals everything": (
        "class Same(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
        "def square(x):\n    return Same(0)\n"
    ),
    "returns an object": "def square(x):\n    return object()\n",
    "writes the verdict itself": (
        'import os\nfor fd in range(20):\n    try:\n        os.write(fd, b\'{"outcome": "pass", "reason": ""}\')\n'
        "    except OSError:\n        pass\ndef square(x):\n    return 0\n"
    ),
    "reads the tests": (
        "import os\nseen = os.read(0, 1 << 20)\ndef square(x):\n    return x * x if b'check' in seen else 0\n"
    ),
    "crashes the interpreter": "import sys\nsys.setrecursionlimit(1 << 30)\ndef square(x):\n    return square(x)\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_code_does_not_pass_and_does_not_hang(
    what: str, isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside_of_this_test.py"
    shutil.copy(sandbox._INSIDE, inside)
    monkeypatch.setattr(sandbox, "_INSIDE", inside)
    verdict = run(HOSTILE[what], timeout_s=1.0)
    assert verdict.outcome in (Outcome.FAIL, Outcome.TIMEOUT), verdict
    assert "/" not in verdict.reason
    assert strays(inside) == []


def strays(inside: Path) -> list[str]:
    """Processes that have outlived their sandbox."""
    listed = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(inside) in line and not line.startswith("Z")]


def test_the_programs_environment_and_folder_are_empty(isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    program = "import os\ndef square(x):\n    return [sorted(os.environ), os.listdir('.')]\n"
    tests = "def check(candidate):\n    assert candidate(1) in ([['LC_CTYPE'], []], [[], []])\n"
    assert run(program, tests=tests).outcome is Outcome.PASS


def test_the_program_may_write_in_its_folder_and_nothing_stays(
    isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "open('f', 'w').write('4')\ndef square(x):\n    return x * int(open('f').read()) // 4 * x\n"
    assert run(program).outcome is Outcome.PASS
    assert list(tmp_path.iterdir()) == []


def test_the_tests_have_the_names_of_the_prefix_and_the_programs_own_values() -> None:
    tests = "def check(candidate):\n    for v in VALUES:\n        got = candidate(v)\n        assert got == v\n" + (
        "        assert type(got) is type(v)\n"
    )
    values = (
        "VALUES = [None, True, 1, 1.5, 2j, 'ä', b'x', [1, [2]], (1, (2,)), {1: 'a', (1,): 2}, {1}, frozenset({1})]\n"
    )
    assert run("def square(x):\n    return x\n", prefix=values, tests=tests).outcome is Outcome.PASS


def test_an_exception_of_the_program_reaches_the_tests_as_its_kind() -> None:
    tests = (
        "def check(candidate):\n    try:\n        candidate(1)\n    except ValueError:\n        return\n    assert 0\n"
    )
    assert run("def square(x):\n    raise ValueError('no')\n", tests=tests).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        ("def check(candidate):\n    pass\n", "the tests never call square"),
        ("raise RuntimeError('no')\ndef check(candidate):\n    pass\n", "the tests do not load: RuntimeError"),
        ("import os\ndef check(candidate):\n    os.system('true')\n", "the tests tried what the sandbox forbids"),
        ("import os\ndef check(candidate):\n    os._exit(0)\n", "without a verdict"),
    ],
)
def test_tests_at_fault_are_an_error_and_no_failure(tests: str, says: str) -> None:
    verdict = run(RIGHT, tests=tests)
    assert verdict.outcome is Outcome.ERROR
    assert says in verdict.reason


def test_reasons_name_no_paths() -> None:
    verdict = run("def square(x):\n    raise ValueError('see /usr/lib/python3/x.py and /root')\n")
    assert verdict.reason == "ValueError (line 2 of the tests): see … and …"


def test_many_run_at_once() -> None:
    verdicts: list[Verdict] = []
    threads = [Thread(target=lambda: verdicts.append(run(RIGHT, timeout_s=20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdict.outcome for verdict in verdicts] == [Outcome.PASS] * 4
