"""Whatever happens to jobs and processes, what is posted to a closed window is its rent, to the last digit, and each
job is charged once. The rent is computed by `tieryard.costs.windows`, not by the statements that post."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest

from tests import factories as make
from tests.integration.rented_windows import PRICE, TERMS, books, closed, opened, stopped, used, write
from tieryard.catalog import Price
from tieryard.costs.windows import WindowPrice, rent_usd
from tieryard.job import State
from tieryard.store import Store, jobs, rescue, windows, workers
from tieryard.store.finish import Ending, HandBack
from tieryard.store.jobs import Claimed

_INSERT = """
WITH made AS (
    INSERT INTO rent_window (id, place, deployment, started_at, served_at, stopped_at, usd_per_hour, purchase, catalog)
    VALUES (%(id)s, 'host/one/1', 'one', %(start)s, %(served)s, %(stop)s, %(usd_per_hour)s, 'spot', 'x') RETURNING id
)
INSERT INTO ledger (job_id, fence, kind, tenant_id, window_id, prompt_tokens, completion_tokens, cost_usd, catalog)
SELECT id, 1, 'inference', 1, id, 1, 1, %(charged)s, 'x' FROM made
"""


# --- one window -------------------------------------------------------------------------------------------


def test_the_statement_splits_rent_as_the_formulas_do_wherever_it_is_cut(store: Store) -> None:
    """Any rent, moments to the microsecond, charges below the rent and above: warm-up is the rent until it first
    served, and idle what is left, in each piece of a window that was cut, and so in the whole."""
    rng = random.Random(22)
    for _ in range(60):
        usd_per_hour = Decimal(rng.choice((0, 1, rng.randrange(10**9)))) / 1_000_000
        edges = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(10**14))]
        for _ in range(rng.randint(1, 5)):
            edges.append(edges[-1] + timedelta(microseconds=rng.choice((0, 1, rng.randrange(10**11)))))
        served = rng.choice((None, edges[0] + rng.uniform(-0.5, 1.5) * (edges[-1] - edges[0])))
        until = edges[-1] if served is None else min(max(served, edges[0]), edges[-1])
        charged = {store.next_id(): Decimal(rng.randrange(10**14)).scaleb(-12) for _ in edges[1:]}
        with store.transaction() as connection:
            for (start, stop), (number, usd) in zip(pairwise(edges), charged.items(), strict=True):
                piece = {"id": number, "start": start, "served": served, "stop": stop, "charged": usd}
                connection.execute(_INSERT, piece | {"usd_per_hour": usd_per_hour})
        assert closed(store) == len(charged)
        sums: Counter[str] = Counter()
        posted = "SELECT kind, cost_usd FROM ledger WHERE window_id = ANY(%(ids)s)"
        for kind, usd in store.fetch(posted, {"ids": list(charged)}):
            sums[kind] += usd
        assert sums["warmup"] == rent_usd(usd_per_hour, edges[0], until)
        assert sums["idle"] == rent_usd(usd_per_hour, until, edges[-1]) - sum(charged.values())
    books(store)
    assert make.count(store, "ledger", "kind = 'idle' AND cost_usd < 0") > 0


# --- all at once ------------------------------------------------------------------------------------------


def test_writers_cuts_and_closers_at_once_keep_every_sum(store: Store, tenant: int) -> None:
    """With no grace at all: each window is closed as soon as it has stopped, while jobs still end in it."""
    threads, each = 3, 240
    claimed = [make.running(store, tenant, each) for _ in range(threads)]
    known = [WindowPrice(opened(store), PRICE)]
    done = threading.Event()

    def flush(mine: list[Claimed], seed: int) -> None:
        rng = random.Random(seed)
        for first in range(0, each, 8):
            window = known[-1] if rng.random() < 0.8 else rng.choice(known)
            endings = [make.ending(job, **used(job, window)) for job in mine[first : first + 8]]
            for _ in range(rng.choice((1, 1, 2))):
                write(store, *endings)

    def close() -> None:
        while not done.is_set():
            closed(store)

    with ThreadPoolExecutor(threads + 2) as pool:
        closing = [pool.submit(close) for _ in range(2)]
        writing = [pool.submit(flush, mine, seed) for seed, mine in enumerate(claimed)]
        while not all(writer.done() for writer in writing):
            known.append(WindowPrice(opened(store), PRICE))
            time.sleep(0)
        for writer in writing:
            writer.result()
        stopped(store, known[-1].window_id)
        done.set()
        for closer in closing:
            closer.result()
    closed(store)
    books(store)
    assert make.count(store, "ledger", "kind = 'inference'") == threads * each
    assert make.count(store, "ledger", "kind = 'adjustment'") > 0


# --- anything at all --------------------------------------------------------------------------------------


class Fleet:
    """Does what may happen to rented replicas and their jobs, in any order. `flushed` is all that was ever sent to the
    writer, to be sent again; `seen` the windows that a worker has known, of which it may know the newest late."""

    def __init__(self, store: Store, tenant: int, rng: random.Random) -> None:
        self.store, self.tenant, self.rng = store, tenant, rng
        self.standing: dict[str, int] = {}
        self.seen: defaultdict[int, list[WindowPrice]] = defaultdict(list)
        self.running: dict[int, tuple[Claimed, int]] = {}
        self.back: set[int] = set()
        self.flushed: list[Ending] = []
        self.jobs: set[int] = set()
        self.arrive()

    def step(self) -> None:
        every = (self.claim, self.claim, self.end, self.end, self.fail, self.again, self.cancel, self.redeliver)
        self.rng.choice((*every, self.stale, self.cut, self.cut, self.crash, self.arrive, self.leave, self.serve,
                         self.close))()  # fmt: skip

    def arrive(self) -> None:
        """A process comes to a place, whoever is there."""
        place = f"host/one/{self.rng.randrange(3)}"
        worker_id = make.worker(self.store)
        terms = replace(TERMS, usd_per_hour=Decimal(self.rng.randrange(10**9)) / 1_000_000)
        self.seen[worker_id].append(
            WindowPrice(opened(self.store, place=place, worker_id=worker_id, terms=terms), terms.price)
        )
        self.standing[place] = worker_id

    def leave(self) -> None:
        if self.standing:
            place = self.rng.choice(sorted(self.standing))
            worker_id = self.standing.pop(place)
            for job, _ in [one for one in self.running.values() if one[1] == worker_id]:
                self.hand_back(job, worker_id, HandBack.DRAIN)
            workers.retire(self.store, worker_id)

    def crash(self) -> None:
        if self.standing:
            worker_id = self.standing.pop(self.rng.choice(sorted(self.standing)))
            self.store.fetch(
                "UPDATE worker SET lease_until = clock_timestamp() WHERE id = %(id)s RETURNING id", {"id": worker_id}
            )
            with self.store.transaction() as connection:
                rescue.bury(connection)
                rescue.requeue_orphans(connection)
            for job_id in [job_id for job_id, (_, by) in self.running.items() if by == worker_id]:
                job, _ = self.running.pop(job_id)
                if make.column(self.store, "state", [job_id]) == ["failed"]:  # its third death, which has no row
                    self.jobs.discard(job_id)
                    continue
                self.flushed.append(make.ending(job, **used(job, self.window(worker_id))))  # comes too late
                self.back.add(job_id)

    def claim(self) -> None:
        if self.standing:
            worker_id = self.rng.choice(sorted(self.standing.values()))
            for job in make.running(self.store, self.tenant, self.rng.randint(1, 4), worker_id=worker_id):
                self.running[job.id] = job, worker_id
                self.jobs.add(job.id)

    def again(self) -> None:
        """What was handed back starts anew."""
        if self.back and self.standing:
            worker_id = self.rng.choice(sorted(self.standing.values()))
            make.route(self.store, sorted(self.back))
            for job in make.claim(self.store, sorted(self.back), worker_id):
                self.running[job.id] = job, worker_id
                self.back.discard(job.id)

    def window(self, worker_id: int) -> WindowPrice:
        return self.seen[worker_id][-1] if self.rng.random() < 0.8 else self.rng.choice(self.seen[worker_id])

    def pick(self) -> tuple[Claimed, int] | None:
        return self.running[self.rng.choice(sorted(self.running))] if self.running else None

    def flush(self, *endings: Ending) -> None:
        write(self.store, *endings)
        self.flushed += endings

    def end(self) -> None:
        taken = [self.running.pop(job_id) for job_id in self.rng.sample(sorted(self.running), len(self.running) // 2)]
        self.flush(*(make.ending(job, **used(job, self.window(by))) for job, by in taken))

    def hand_back(self, job: Claimed, worker_id: int, why: HandBack) -> None:
        spent = used(job, self.window(worker_id)) if self.rng.random() < 0.7 else {}
        self.flush(make.hand_back(job, why, **spent))
        del self.running[job.id]
        self.back.add(job.id)

    def fail(self) -> None:
        if (one := self.pick()) is not None:
            self.hand_back(*one, self.rng.choice((HandBack.OUTAGE, HandBack.FAULT, HandBack.DRAIN)))

    def cancel(self) -> None:
        """Its partial usage is billed, whether the worker has heard of it or hands it back."""
        if (one := self.pick()) is not None:
            job, worker_id = one
            jobs.cancel(self.store, [job.id], tenant_id=self.tenant)
            spent = used(job, self.window(worker_id), completion_tokens=1)
            heard = self.rng.random() < 0.5
            cancelled = make.ending(job, state=State.CANCELLED, error_kind="cancelled", **spent)
            self.flush(cancelled if heard else make.hand_back(job, HandBack.DRAIN, **spent))
            del self.running[job.id]

    def redeliver(self) -> None:
        if self.flushed:
            write(self.store, *self.rng.choices(self.flushed, k=4))

    def stale(self) -> None:
        """An ending of an earlier start, with another bill."""
        if (one := self.pick()) is not None and one[0].fence > 1:
            early = replace(one[0], fence=one[0].fence - 1)
            write(self.store, make.ending(early, **used(early, self.window(one[1]))))

    def cut(self) -> None:
        if self.standing:
            worker_id = self.rng.choice(sorted(self.standing.values()))
            price = Price(
                input_usd_per_1m=Decimal(self.rng.randrange(10**7)) / 1_000_000,
                output_usd_per_1m=Decimal(self.rng.randrange(10**7)) / 1_000_000,
            )
            with self.store.transaction() as connection:
                [[now]] = connection.execute("SELECT clock_timestamp()").fetchall()
                last = self.seen[worker_id][-1].window_id
                following = windows.cut(connection, last, now, replace(TERMS, price=price))
            if following is not None:
                self.seen[worker_id].append(WindowPrice(following, price))

    def serve(self) -> None:
        if self.standing:
            worker_id = self.rng.choice(sorted(self.standing.values()))
            workers.beat(self.store, worker_id, lease_s=60, served_ago_s=self.rng.random() / 1000)

    def close(self) -> None:
        closed(self.store)

    def finish(self) -> None:
        """Everything ends, and comes twice."""
        while self.back:
            self.arrive()
            self.again()
        for job_id in sorted(self.running):
            job, by = self.running.pop(job_id)
            self.flush(make.ending(job, **used(job, self.window(by))))
        while self.standing:
            self.leave()
        # Those whose place another has taken stand nowhere; their processes leave like any other.
        for worker_id in self.seen:
            workers.retire(self.store, worker_id)
        closed(self.store)
        write(self.store, *self.flushed)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_postings_of_a_closed_window_are_its_rent(store: Store, tenant: int, seed: int) -> None:
    fleet = Fleet(store, tenant, random.Random(seed))
    for _ in range(300):
        fleet.step()
    fleet.finish()
    books(store)
    assert make.count(store, "job", "finished_at IS NULL") == 0
    billed = Counter(job_id for (job_id,) in store.fetch("SELECT job_id FROM ledger WHERE kind = 'inference'"))
    assert billed == Counter(fleet.jobs)  # each job one row, and nobody else any
    final = (
        "SELECT count(*) FROM ledger JOIN job ON job.id = job_id WHERE kind = 'inference' AND ledger.fence = job.fence"
    )
    assert store.fetch(final) == [(len(fleet.jobs),)]
    assert make.count(store, "ledger", "kind = 'retry'") > 0
    assert make.count(store, "ledger", "kind = 'adjustment'") > 0
