"""Prefix affinity: which replica is home to the requests that begin alike, so that its prefix cache is hit.

Rendezvous hashing with bounded loads: every process finds the same home without asking, and a replica that comes or
goes moves only the keys that were or will be its own.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from tieryard.metrics import Replica

_MOST = 1.25  # times the mean utilisation, before a home is passed over (Mirrokni, Thorup, Zadimoghaddam, 2018)
_SLACK = 0.25  # of a replica's capacity, beyond that: where little runs, the mean says little
_REMEMBERED = 65_536  # keys that came lately
_UNSEEN_S = (
    1.0  # for so long what was sent may not show in the gauges: they are half a second apart, and read four times
)

Keyed = tuple[int, int]
"""(job id, prefix key)."""


def ranked(key: int, replicas: Iterable[Replica]) -> list[Replica]:
    """The replicas in this key's own order."""
    return sorted(replicas, key=lambda replica: _weight(key, replica.worker_id))


@lru_cache(maxsize=16_384)
def _weight(key: int, worker_id: int) -> bytes:
    return hashlib.blake2b(key.to_bytes(8, "big") + worker_id.to_bytes(8, "big"), digest_size=8).digest()


def home(key: int, replicas: Sequence[Replica], load: Callable[[Replica], int]) -> Replica:
    """The first in the key's order that has no more load than its share: for its capacity 1.25 times the mean, and a
    little. While some have free slots, the full ones do not count: nobody waits at a home beside an idle engine."""
    able = [replica for replica in replicas if load(replica) < replica.capacity] or replicas
    most = _MOST * sum(map(load, able)) / sum(replica.capacity for replica in able) + _SLACK
    return next(r for r in ranked(key, able) if load(r) <= most * r.capacity)


class Homes:
    """Shares keyed jobs out among replicas, and remembers what it sent to each until the gauges show it, and which keys
    came."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._recent: deque[tuple[float, Counter[int]]] = deque()
        self._sent: Counter[int] = Counter()
        self._came: OrderedDict[int, None] = OrderedDict()  # keys, the latest last

    def share_out(self, jobs: Iterable[Keyed], replicas: Sequence[Replica]) -> dict[int | None, list[Keyed]]:
        """Jobs by the worker id of their home; under None those that whichever replica is free may take: they have no
        key, or there is no choice of replicas. A key that comes for the first time, and once, is none: a million
        prompts that share nothing need no homes."""
        shared: dict[int | None, list[Keyed]] = defaultdict(list)
        self._forget_old()
        sent: Counter[int] = Counter()

        def load(replica: Replica) -> int:
            worker_id = replica.worker_id
            return replica.in_flight + replica.backlog + self._sent[worker_id] + sent[worker_id]

        jobs = list(jobs)
        counts = Counter(key for _, key in jobs if key)
        common = {key for key, n in counts.items() if self._came_before(key) or n > 1}
        for number, key in jobs:
            if key in common and len(replicas) > 1:
                at = home(key, replicas, load).worker_id
                shared[at].append((number, key))
                sent[at] += 1
            else:
                shared[None].append((number, key if key in common else 0))
        self._sent += sent
        self._recent.append((self._now(), sent))
        return dict(shared)

    def _came_before(self, key: int) -> bool:
        """Whether this key is remembered; from now on it is."""
        known = key in self._came
        self._came[key] = None
        self._came.move_to_end(key)
        if len(self._came) > _REMEMBERED:
            self._came.popitem(last=False)
        return known

    def _forget_old(self) -> None:
        while self._recent and self._now() - self._recent[0][0] > _UNSEEN_S:
            self._sent -= self._recent.popleft()[1]


class Sessions:
    """Which deployment has the beginning of what came lately: one process's memory, by prefix key."""

    def __init__(self) -> None:
        self._at: OrderedDict[int, str] = OrderedDict()
        self._lock = threading.Lock()

    def last(self, key: int) -> str:
        """The deployment that this key went to, or nothing."""
        return self._at.get(key, "") if key else ""

    def went(self, key: int, deployment: str) -> None:
        if not key:
            return
        with self._lock:
            self._at[key] = deployment
            self._at.move_to_end(key)
            if len(self._at) > _REMEMBERED:
                self._at.popitem(last=False)
