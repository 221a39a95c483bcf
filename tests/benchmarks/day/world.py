"""The day itself: a queue of events over one policy's fleet. Nothing is random but the traffic, so it ends the same."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.benchmarks.day.feeder import Feeder
from tests.benchmarks.day.hardware import BY_NAME
from tests.benchmarks.day.live import Live
from tests.benchmarks.day.policies import Policy
from tests.benchmarks.day.prompts import Prompt
from tests.benchmarks.day.servers import Replica, Run, Server
from tests.benchmarks.day.traffic import TIERS, Job, Traffic
from tieryard.routing import Snapshot

_FRESH_S = 0.25  # tieryard/snapshots.py
_TICK_S = 0.25  # workers/feed.py
_NOTICED_S = 2.0  # three looks 0.2 s apart, half a second to the next gauge, a quarter to the next snapshot, and some
_SILENT_S = 5.5  # after which what waits for it is routed again: workers/rescue.py, and its next tick
_BACK_S = 1.0  # a job whose engine died under it waits this long, up to half more, and for rescue's next tick


@dataclass(frozen=True)
class Outage:
    """One deployment is away for a while. What waits in its queue is decided on again once it has been silent for long
    enough, as rescue does."""

    deployment: str
    start_s: float
    end_s: float


class World:
    """One policy's day. `run` plays it and returns every job's way through it, in order of acceptance."""

    def __init__(
        self, policy: Policy, traffic: Traffic, known: Iterable[Prompt], *, outage: Outage | None = None
    ) -> None:
        self._policy, self._traffic, self._outage = policy, traffic, outage
        self.servers = {name: Server.of(BY_NAME[name], n) for name, n in policy.fleet.items()}
        self._live = Live(self.servers, known, policy.rules)
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._turn = itertools.count()
        self._now = 0.0
        self._feeder = Feeder()
        self._snapshot: tuple[float, Snapshot] | None = None
        self._runs: list[Run] = []
        self._ticking = False

    def run(self) -> list[Run]:
        if self._outage is not None and self._outage.deployment in self.servers:
            self._at(self._outage.start_s, self._fail, self._outage)
            self._at(self._outage.end_s, self._recover, self._outage)
        for batch in self._traffic.lists:
            self._at(batch.arrived_s, self._accept_list, batch.jobs, batch.due_s)
        singles, events = iter(self._traffic.singles), self._events
        job = next(singles, None)
        while events or job is not None:
            if job is not None and (not events or job.arrived_s <= events[0][0]):
                self._now = job.arrived_s
                self._decide(self._accept(job))
                job = next(singles, None)
                continue
            self._now, _, act, arguments = heapq.heappop(events)
            act(*arguments)
        return self._runs

    def _at(self, when_s: float, act: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (when_s, next(self._turn), act, arguments))

    # --- from acceptance to a queue ----------------------------------------------------------------

    def _accept(self, job: Job) -> Run:
        run = Run(job)
        self._runs.append(run)
        return run

    def _accept_list(self, jobs: tuple[Job, ...], due_s: float) -> None:
        self._feeder.add(jobs[0].tier, due_s, [self._accept(job) for job in jobs])
        if not self._ticking:
            self._ticking = True
            self._tick()

    def _tick(self) -> None:
        for run in self._feeder.release(self._now):
            self._decide(run)
        if self._feeder.open:
            self._at(self._now + _TICK_S, self._tick)
        else:
            self._ticking = False

    def _newest(self) -> Snapshot:
        if self._snapshot is None or self._now - self._snapshot[0] > _FRESH_S:
            self._snapshot = (self._now, self._live.snapshot(self._now, self._feeder.needed_tps(self._now)))
        return self._snapshot[1]

    def _decide(self, run: Run) -> None:
        if self._now >= run.job.due_s:
            return self._end(run, "expired")
        choice = self._policy.choose(run, self._now, self._newest)
        if choice.deployment is None:
            run.deferrals += 1
            return self._at(self._now + max(choice.defer_s, _TICK_S), self._decide, run)
        run.deployment, run.decided_s, run.fallback = choice.deployment, self._now, choice.fallback
        server = self.servers[choice.deployment]
        server.push(run, self._now + TIERS[run.job.tier].window_s)
        return self._fill(server)

    # --- in an engine ------------------------------------------------------------------------------

    def _fill(self, server: Server) -> None:
        while (found := server.pop_startable()) is not None:
            run, replica = found
            if self._now >= run.job.due_s:
                self._end(run, "expired")
                continue
            run.claimed_s = self._now
            run.starts += 1
            replica.enter(run, self._now)
            ttft_ms = server.hardware.curve.ttft(len(replica), run.job.prompt_tokens) * run.job.ttft_luck
            self._at(self._now + ttft_ms / 1000, self._first_token, run, run.starts, server, replica)
            self._watch(server, replica)

    def _first_token(self, run: Run, start: int, server: Server, replica: Replica) -> None:
        if run.starts != start or run not in replica.requests:
            return  # its engine died meanwhile
        run.first_s = self._now
        replica.decode(run, self._now)
        self._watch(server, replica)

    def _watch(self, server: Server, replica: Replica) -> None:
        if (when_s := replica.next_end_s()) is not None:
            self._at(when_s, self._ended, server, replica, replica.version)

    def _ended(self, server: Server, replica: Replica, version: int) -> None:
        if replica.version != version:
            return  # something has come or gone since; there is a later event
        run = replica.pop_ended(self._now)
        self._end(run, "succeeded")
        self._live.finished(run)
        self._watch(server, replica)
        self._fill(server)

    def _end(self, run: Run, how: str) -> None:
        run.end, run.ended_s = how, self._now
        self._feeder.ended(run)

    # --- the outage --------------------------------------------------------------------------------

    def _fail(self, outage: Outage) -> None:
        server = self.servers[outage.deployment]
        for run in server.crash():
            run.starts += 1  # what was under way is void
            run.reroutes += 1
            wait_s = _BACK_S * (1 + run.job.draw / 2) + (run.job.draw * 97) % 1.0
            self._at(self._now + wait_s, self._decide, run)
        self._at(self._now + _NOTICED_S, self._notice_gone, outage)
        self._at(self._now + _SILENT_S, self._move_stranded, outage)

    def _notice_back(self, outage: Outage) -> None:
        self.servers[outage.deployment].seen_up = True
        self._snapshot = None

    def _notice_gone(self, outage: Outage) -> None:
        server = self.servers[outage.deployment]
        server.seen_up, server.gone_s = False, self._now
        self._snapshot = None

    def _move_stranded(self, outage: Outage) -> None:
        server = self.servers[outage.deployment]
        if server.up or len(self.servers) == 1:
            return
        waiting, server.queue = [entry[3] for entry in sorted(server.queue)], []
        for run in waiting:
            run.reroutes += 1
            self._decide(run)

    def _recover(self, outage: Outage) -> None:
        server = self.servers[outage.deployment]
        server.up = True
        self._at(self._now + _NOTICED_S, self._notice_back, outage)
        self._fill(server)
