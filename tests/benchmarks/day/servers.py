"""Continuous-batching servers: each request's speed falls with the number in flight, and a queue waits for slots."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from tests.benchmarks.day.hardware import Hardware
from tests.benchmarks.day.traffic import Job

_REALTIME = "realtime"


@dataclass(slots=True, eq=False)
class Run:
    """One job's way through the day, under one policy. Times are seconds of the day."""

    job: Job
    deployment: str = ""
    decided_s: float = 0.0
    claimed_s: float = 0.0
    first_s: float = 0.0
    ended_s: float = 0.0
    end: str = ""
    starts: int = 0
    deferrals: int = 0
    fallback: bool = False
    reroutes: int = 0


class Replica:
    """Requests decode together. `virtual` counts output tokens that each of them has been given since the start of the
    day, so a request ends when it has passed what it was at its first token by its own length."""

    __slots__ = ("_at_s", "_decoding", "_speed", "_turn", "_virtual", "requests", "version")

    def __init__(self, seconds_a_token: list[float]) -> None:
        self._speed = seconds_a_token  # by requests in it
        self._at_s = 0.0
        self._virtual = 0.0
        self._decoding: list[tuple[float, int, Run]] = []
        self._turn = itertools.count()
        self.requests: dict[Run, None] = {}
        self.version = 0
        """Changes with all that changes when the next request ends."""

    def __len__(self) -> int:
        return len(self.requests)

    def enter(self, run: Run, now_s: float) -> None:
        self._advance(now_s)
        self.requests[run] = None

    def decode(self, run: Run, now_s: float) -> None:
        """It has its first token."""
        self._advance(now_s)
        length = (run.job.output_tokens - 1) * run.job.tpot_luck
        heapq.heappush(self._decoding, (self._virtual + length, next(self._turn), run))

    def next_end_s(self) -> float | None:
        """When the next request ends, as long as nothing changes."""
        if not self._decoding:
            return None
        return self._at_s + max(0.0, self._decoding[0][0] - self._virtual) * self._speed[len(self.requests)]

    def pop_ended(self, now_s: float) -> Run:
        """The request whose time has come."""
        until, _, run = heapq.heappop(self._decoding)
        self._advance(now_s)
        self._virtual = max(self._virtual, until)
        del self.requests[run]
        return run

    def crash(self) -> list[Run]:
        """All that was in it, which is lost."""
        lost = list(self.requests)
        self.requests.clear()
        self._decoding.clear()
        self.version += 1
        return lost

    def _advance(self, now_s: float) -> None:
        if self.requests:
            self._virtual += (now_s - self._at_s) / self._speed[len(self.requests)]
        self._at_s = now_s
        self.version += 1


@dataclass(eq=False)
class Server:
    """A deployment: its replicas, and the queue in front of them: realtime first, then by due time."""

    hardware: Hardware
    replicas: list[Replica]
    up: bool = True
    seen_up: bool = True
    """What its gauges say, which comes later."""
    gone_s: float = 0.0
    """Since when they say that it is away."""
    queue: list[tuple[int, float, int, Run]] = field(default_factory=list)
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def of(cls, hardware: Hardware, replicas: int) -> Server:
        speed = [hardware.curve.tpot(n) / 1000 for n in range(hardware.slots + 1)]
        return cls(hardware, [Replica(speed) for _ in range(replicas)])

    @property
    def capacity(self) -> int:
        return self.hardware.slots * len(self.replicas)

    @property
    def in_flight(self) -> int:
        return sum(map(len, self.replicas))

    def push(self, run: Run, due_s: float) -> None:
        rank = int(run.job.tier != _REALTIME)
        heapq.heappush(self.queue, (rank, due_s, next(self._turn), run))

    def pop_startable(self) -> tuple[Run, Replica] | None:
        """The next job and the emptiest replica, when there is room: all but realtime leave a reserve."""
        if not self.up or not self.queue:
            return None
        replica = min(self.replicas, key=len)
        kept = 0 if self.queue[0][0] == 0 else self.hardware.reserve
        if len(replica) >= self.hardware.slots - kept:
            return None
        return heapq.heappop(self.queue)[3], replica

    def crash(self) -> list[Run]:
        """Its engines die: what was in them is lost; the queue stays."""
        self.up = False
        return [run for replica in self.replicas for run in replica.crash()]
