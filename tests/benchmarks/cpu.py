"""CPU time of a whole fleet, from /proc: what it does, whoever else uses the machine."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import psycopg

from tieryard.supervisor import Fleet

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def fleet_cpu_s(fleet: Fleet) -> float:
    """Seconds until now of all its processes, of Postgres and of Valkey, those that have ended with them."""
    assert fleet.valkey is not None
    roots = [child.process.pid for child in fleet.children.values() if child.process is not None]
    return _cpu_s([*roots, fleet.valkey.pid, _postmaster(fleet.database_url)])


def _postmaster(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        [[pid]] = connection.execute("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int").fetchall()
    return int(pid)


def _cpu_s(roots: list[int]) -> float:
    """Of these processes and all below them: each its own time and that of its children that were waited for."""
    ticks: dict[int, int] = {}
    below: defaultdict[int, list[int]] = defaultdict(list)
    for pid in [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]:
        if fields := _fields(pid):
            below[int(fields[1])].append(pid)
            ticks[pid] = sum(map(int, fields[11:15]))
    whole, found = list(roots), 0
    while whole:
        pid = whole.pop()
        found += ticks.get(pid, 0)
        whole += below[pid]
    return found / _TICKS_A_SECOND


def _fields(pid: int) -> list[str]:
    """Of its `stat`, from the third on, behind the name, which may hold anything; none where it has just ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
