"""A fake engine in a process of its own, to be killed: `python -m tests.faults.unsteady_engine PORT EVERY`. One request
in EVERY goes wrong, most after they have cost tokens."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from itertools import cycle
from types import TracebackType

from tieryard.embedded import die_with_parent, free_port
from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Fault

_FAULTS = cycle((Fault("reset_midstream"), Fault("http_500"), Fault("ends_early"), Fault("error_event")))


class UnsteadyEngine:
    """As a context manager: the process, which `kill` ends without warning and `revive` starts again at its port."""

    def __init__(self, *, every: int) -> None:
        self._every, self._port = every, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def revive(self) -> None:
        command = [sys.executable, "-m", "tests.faults.unsteady_engine", str(self._port), str(self._every)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, preexec_fn=die_with_parent, env={**os.environ}
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        self._process.stdout.close()
        assert ready == b"ready\n", f"the fake engine did not start at port {self._port}"

    def __enter__(self) -> UnsteadyEngine:
        self.revive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


async def _serve(port: int, every: int) -> None:
    def fault(number: int, _prompt: str) -> Fault | None:
        return next(_FAULTS) if number % every == 0 else None

    plan = FakePlan(ttft_ms=20, tokens_per_s=200, capacity=48, length=10, packing=2, cache_blocks=512, faults=fault)
    async with FakeVllm(plan, port=port):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
