"""Holds a fleet's books against what its jobs, starts and windows say happened. Rent and charges are computed here
again, by `tieryard.costs` and not by the statements that posted them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import psycopg
from psycopg.rows import class_row

from tieryard.catalog import Price
from tieryard.costs import token_cost
from tieryard.costs.windows import charge_usd, rent_usd

CHARGES = ("inference", "retry", "benchmark")
"""Kinds of rows whose tokens have a price."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger."""

    job_id: int
    fence: int
    kind: str
    window_id: int | None
    tenant_id: int
    deployment: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: Decimal

    @property
    def tokens(self) -> tuple[int, int, int]:
        return self.prompt_tokens, self.cached_tokens, self.completion_tokens


@dataclass(frozen=True, slots=True)
class Rented:
    """A row of rent_window."""

    id: int
    place: str
    worker_id: int | None
    deployment: str | None
    started_at: datetime
    stopped_at: datetime | None
    closed_at: datetime | None
    usd_per_hour: Decimal
    input_usd_per_1m: Decimal
    output_usd_per_1m: Decimal

    @property
    def price(self) -> Price:
        return Price(input_usd_per_1m=self.input_usd_per_1m, output_usd_per_1m=self.output_usd_per_1m)

    @property
    def rent_usd(self) -> Decimal:
        assert self.stopped_at is not None
        return rent_usd(self.usd_per_hour, self.started_at, self.stopped_at)


@dataclass(frozen=True, slots=True)
class Start:
    """A start of a job that has ended, with the tokens that it is known to have used."""

    job_id: int
    fence: int
    outcome: str
    deployment: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> tuple[int, int, int]:
        return self.prompt_tokens, self.cached_tokens, self.completion_tokens


@dataclass(frozen=True, slots=True)
class Job:
    id: int
    state: str
    fence: int


@dataclass(frozen=True, slots=True)
class Process:
    """An infer process, as the fleet knew it."""

    id: int
    deployment: str
    started_at: datetime
    stopped_at: datetime | None


@dataclass(frozen=True)
class Books:
    """All of a fleet's, read at once. `prices` are of deployments that nobody rents."""

    ledger: list[Row]
    windows: dict[int, Rented]
    starts: list[Start]
    jobs: dict[int, Job]
    processes: list[Process]
    prices: Mapping[str, Price]

    @classmethod
    def read(cls, connection: psycopg.Connection[Any], prices: Mapping[str, Price]) -> Books:
        def all_of(kind: type[Any], table: str, where: str = "true") -> list[Any]:
            columns = ", ".join(_AS.get((kind, name), name) for name in kind.__annotations__)
            with connection.cursor(row_factory=class_row(kind)) as cursor:
                return cursor.execute(f"SELECT {columns} FROM {table} WHERE {where}").fetchall()  # type: ignore[arg-type]

        windows, jobs = all_of(Rented, "rent_window"), all_of(Job, "job")
        return cls(
            ledger=all_of(Row, "ledger"),
            windows={window.id: window for window in windows},
            starts=all_of(Start, "timing"),
            jobs={job.id: job for job in jobs},
            processes=all_of(Process, "worker", "kind = 'infer'"),
            prices=prices,
        )

    def faults(self) -> list[str]:
        """What does not agree, in words; nothing where all does."""
        return [
            *self._of_sums(),
            *self._of_jobs(),
            *self._of_charges(),
            *self._of_places(),
            *self._of_processes(),
        ]

    @property
    def rents_usd(self) -> Decimal:
        return sum((window.rent_usd for window in self.windows.values()), Decimal(0))

    @property
    def hosted_usd(self) -> Decimal:
        """What was charged where nothing is rented."""
        return sum((row.cost_usd for row in self.ledger if row.window_id is None), Decimal(0))

    def _of_sums(self) -> Iterator[str]:
        """Each closed window's postings are its rent, and all postings are all rents and what was bought."""
        posted: defaultdict[int | None, Decimal] = defaultdict(Decimal)
        for row in self.ledger:
            posted[row.window_id] += row.cost_usd
        for window in self.windows.values():
            if window.closed_at is None:
                yield f"window {window.id} at {window.place} is not closed"
            elif posted[window.id] != window.rent_usd:
                yield f"window {window.id}: {posted[window.id]} posted, {window.rent_usd} of rent"
        for window_id in posted.keys() - self.windows.keys() - {None}:
            yield f"rows of window {window_id}, which there is not"
        if (total := sum(posted.values(), Decimal(0))) != self.rents_usd + self.hosted_usd:
            yield f"{total} in the ledger, {self.rents_usd} of rent and {self.hosted_usd} bought"

    def _of_jobs(self) -> Iterator[str]:
        """A job is billed once, for its last start."""
        billed: defaultdict[int, list[Row]] = defaultdict(list)
        for row in self.ledger:
            if row.kind == "inference":
                billed[row.job_id].append(row)
        for job in self.jobs.values():
            rows = billed[job.id]
            if len(rows) > 1:
                yield f"job {job.id} is billed {len(rows)} times"
            elif job.state == "succeeded" and not rows:
                yield f"job {job.id} succeeded and is not billed"
            elif rows and rows[0].fence != job.fence:
                yield f"job {job.id} is billed for start {rows[0].fence}, its last is {job.fence}"
        for job_id in billed.keys() - self.jobs.keys():
            yield f"job {job_id} is billed, and is no job"

    def _of_charges(self) -> Iterator[str]:
        """Rows cost their tokens at their window's price, and have the tokens of their start."""
        for row in self.ledger:
            if row.kind in CHARGES and row.cost_usd != (cost := self._cost_usd(row)):
                yield f"{row.kind} of {row.job_id}.{row.fence}: {row.cost_usd}, its tokens {row.tokens} cost {cost}"
            window = self.windows.get(row.window_id) if row.window_id is not None else None
            if row.kind in CHARGES and (window.deployment if window else None) not in (row.deployment, None):
                yield f"{row.kind} of {row.job_id}.{row.fence} on {row.deployment} in a window of {window.deployment}"
            if window is None and row.kind in CHARGES and row.deployment not in self.prices:
                yield f"{row.kind} of {row.job_id}.{row.fence} has no window, and {row.deployment} is rented"
        by_start = {(row.job_id, row.fence): row for row in self.ledger if row.kind in ("inference", "retry")}
        for start in self.starts:
            row = by_start.get((start.job_id, start.fence))
            found = row.tokens if row is not None else (0, 0, 0)
            if start.tokens != found:
                yield f"start {start.job_id}.{start.fence} ({start.outcome}) used {start.tokens}, billed are {found}"
        yield from self._of_adjustments()

    def _of_adjustments(self) -> Iterator[str]:
        """An adjustment takes back what came after its window's close, and nothing else."""
        late = {(r.job_id, r.fence, r.window_id): r.cost_usd for r in self.ledger if r.kind in CHARGES}
        for row in self.ledger:
            if row.kind == "adjustment" and late.get((row.job_id, row.fence, row.window_id)) != -row.cost_usd:
                yield f"adjustment of {row.job_id}.{row.fence} by {row.cost_usd} balances nothing"

    def _cost_usd(self, row: Row) -> Decimal:
        used = {
            "prompt_tokens": row.prompt_tokens,
            "cached_tokens": row.cached_tokens,
            "completion_tokens": row.completion_tokens,
        }
        if row.window_id is not None:
            return charge_usd(self.windows[row.window_id].price, **used)
        return token_cost(self.prices[row.deployment or ""], **used) if row.deployment in self.prices else row.cost_usd

    def _of_places(self) -> Iterator[str]:
        """A place is rented once at any time."""
        by_place: defaultdict[str, list[Rented]] = defaultdict(list)
        for window in self.windows.values():
            by_place[window.place].append(window)
        for place, windows in by_place.items():
            windows.sort(key=lambda w: (w.started_at, w.stopped_at is None, w.stopped_at))
            for one, other in pairwise(windows):
                if one.stopped_at is None or one.stopped_at > other.started_at:
                    yield f"{place} is rented twice from {other.started_at}: windows {one.id} and {other.id}"

    def _of_processes(self) -> Iterator[str]:
        """Each infer process of a rented deployment pays from its registration to its end, without a gap."""
        of_worker: defaultdict[int | None, list[Rented]] = defaultdict(list)
        for window in self.windows.values():
            of_worker[window.worker_id].append(window)
        for process in self.processes:
            if process.deployment in self.prices:
                continue
            windows = sorted(of_worker[process.id], key=lambda w: w.started_at)
            if not windows:
                yield f"worker {process.id} of {process.deployment} has no window"
                continue
            if windows[0].started_at != process.started_at:
                yield f"worker {process.id} began at {process.started_at}, its rent at {windows[0].started_at}"
            for one, other in pairwise(windows):
                if one.stopped_at != other.started_at:
                    yield f"worker {process.id} pays for nothing from {one.stopped_at} to {other.started_at}"
            last = windows[-1].stopped_at
            if process.stopped_at is not None and (last is None or last > process.stopped_at):
                yield f"worker {process.id} stopped at {process.stopped_at}, its window {windows[-1].id} at {last}"

    def summary(self) -> str:
        kinds = Counter(row.kind for row in self.ledger)
        states = Counter(job.state for job in self.jobs.values())
        outcomes = Counter(start.outcome for start in self.starts)
        stood = sum((w.stopped_at - w.started_at for w in self.windows.values() if w.stopped_at), timedelta())
        return (
            f"jobs {dict(states)}; starts {dict(outcomes)}; rows {dict(kinds)}; {len(self.windows)} windows, "
            f"{stood.total_seconds():.0f} s of rent = {self.rents_usd} USD; bought {self.hosted_usd} USD"
        )


_AS = {
    (Start, name): f"coalesce({name}, 0) AS {name}" for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
}
