"""What runs beneath a process, read from /proc: to kill one part of vLLM, and to see that nothing of it is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.vllm.engine import PYTHON
from tieryard.engines.vllm_flags import STARTER

API_SERVER = f"{PYTHON} {STARTER} serve"
ENGINE_CORE = "VLLM::EngineCore"
WORKER = "VLLM::Worker"


@dataclass(frozen=True)
class Process:
    """`born` tells it from a later one with its number."""

    pid: int
    parent: int
    born: int
    command: str

    @property
    def of_vllm(self) -> bool:
        return "vllm" in self.command.lower()


def _read(directory: Path) -> Process | None:
    """None for one that is gone, or is dead and not yet waited for."""
    try:
        stat = (directory / "stat").read_text()
        command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    state, parent, *rest = stat.rpartition(") ")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else Process(int(directory.name), int(parent), int(rest[17]), command)


def running() -> dict[int, Process]:
    found = (_read(directory) for directory in Path("/proc").iterdir() if directory.name.isdecimal())
    return {process.pid: process for process in found if process is not None}


def beneath(pid: int) -> list[Process]:
    """Children, their children, and so on."""
    everything, found, parents = running(), [], {pid}
    while parents:
        children = [process for process in everything.values() if process.parent in parents]
        found += children
        parents = {process.pid for process in children}
    return found


def still_there(known: list[Process]) -> list[Process]:
    now = running()
    return [process for process in known if process.pid in now and now[process.pid].born == process.born]


def part(pid: int, name: str) -> Process:
    """The process beneath `pid` whose command begins with `name`."""
    return next(process for process in beneath(pid) if process.command.startswith(name))
