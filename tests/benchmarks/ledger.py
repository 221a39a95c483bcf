"""What the ledger costs: the control plane with rent windows and charges, beside the same fleet without any of it, and
the finishing statement alone."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg

from tests.benchmarks.control_plane import CATALOG, KEY, tieryard_round
from tests.benchmarks.cpu import fleet_cpu_s
from tests.benchmarks.figures import Figure
from tests.benchmarks.unledgered import UnledgeredFleet, without_ledger
from tieryard.catalog import Price
from tieryard.costs.terms import Terms
from tieryard.embedded import EmbeddedPostgres, free_port
from tieryard.ids import public
from tieryard.job import State
from tieryard.store import Store, budgets, finish, keys, windows
from tieryard.store.budgets import Wanted
from tieryard.store.connection import Connection
from tieryard.store.finish import Ending
from tieryard.store.migrate import migrate
from tieryard.supervisor import Fleet

BUDGETED = "ty_budgeted"
ROUNDS = 5
FLUSH = 512  # endings, as the writer takes them under load
FLUSHES = 30
_PRICE = Price(input_usd_per_1m=Decimal("0.10"), output_usd_per_1m=Decimal("0.40"))
_TERMS = Terms(Decimal("1.006"), 1, "on_demand", _PRICE, "0123456789ab")


def run(work: Path, *, jobs: int = 20_000) -> list[Figure]:
    return [*control_plane(work, jobs=jobs), statement(work)]


@dataclass(frozen=True)
class Round:
    """A fleet, and whose jobs it does."""

    name: str
    fleet: Fleet
    key: str = KEY

    def run(self, n: int) -> tuple[float, float]:
        """Jobs a second, and CPU of the whole fleet in µs a job."""
        before = fleet_cpu_s(self.fleet)
        rate = tieryard_round(self.fleet.url, n, key=self.key)
        return rate, (fleet_cpu_s(self.fleet) - before) / n * 1e6


def control_plane(work: Path, *, jobs: int) -> list[Figure]:
    """Rounds alternate, each time in another order, so that all meet the same machine."""
    os.environ["TIERYARD_API_KEY"] = KEY
    rented = work / "rented.yaml"
    rented.write_text(CATALOG.read_text() + f"    rent: {{usd_per_hour: {_TERMS.usd_per_hour}}}\n")
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with (
        Fleet(work / "with", port=free_port(), catalog=rented) as ledgered,
        UnledgeredFleet(work / "without", port=free_port(), catalog=CATALOG) as bare,
    ):
        ledgered.wait_until_ready()
        bare.wait_until_ready()
        _give_budgets(ledgered.database_url)
        rounds = [Round("with_ledger", ledgered), Round("without", bare), Round("with_budgets", ledgered, BUDGETED)]
        for one in rounds:
            one.run(1000)
        for number in range(ROUNDS):
            for one in rounds[number % 3 :] + rounds[: number % 3]:
                found[one.name].append(one.run(jobs))
        _check_posted(ledgered.database_url, n=2 * (ROUNDS * jobs + 1000))
        _check_posted(bare.database_url, n=0)
    return [
        Figure.median(
            f"control_plane_{what}_{name}",
            unit,
            [one[index] for one in found[name]],
            peer="the fleet without a ledger",
            peer_values=[one[index] for one in found["without"]],
        )
        for index, what, unit in ((0, "throughput", "jobs/s"), (1, "cpu", "µs/job"))
        for name in ("with_ledger", "with_budgets")
    ]


def _give_budgets(database_url: str) -> None:
    """To another tenant of the same fleet and to its key: a day's and a month's of each, which hold all that comes."""
    store = Store(database_url)
    keys.add_key(store, BUDGETED, tenant="budgeted", name="bench")
    key_id = keys.holder_of(store, BUDGETED).key_id
    assert key_id is not None
    for key, period in itertools.product((None, public("key", key_id)), budgets.PERIODS):
        budgets.set_budget(store, Wanted("budgeted", Decimal(1_000_000), period, key=key))
    store.close()


def _check_posted(database_url: str, *, n: int) -> None:
    with psycopg.connect(database_url) as connection:
        [[rows, in_windows]] = connection.execute(
            "SELECT count(*), count(window_id) FROM ledger WHERE kind = 'inference'"
        ).fetchall()
    if (rows, in_windows) != (n, n):
        raise SystemExit(f"{rows} rows in the ledger, {in_windows} of them in windows; these figures mean nothing")


def statement(work: Path) -> Figure:
    """CPU of Postgres' process for a job's end, in flushes as the writer makes them, with and without, in turns."""
    posting, bare = finish._FINISH, without_ledger(finish._FINISH)
    found: dict[str, list[float]] = defaultdict(list)
    with EmbeddedPostgres(work / "statements") as server:
        url = server.create_database("statements")
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            window = windows.open_window(connection, 1, place="bench/1", worker_id=1, deployment="short", terms=_TERMS)
            [[pid]] = connection.execute("SELECT pg_backend_pid()").fetchall()
            for number in range(2 * FLUSHES):
                name = ("ledger", "none")[number % 2]
                finish._FINISH = {"ledger": posting, "none": bare}[name]
                endings = _running(connection, 1_000_000 + number * FLUSH, window)
                before = _cpu_us(pid)
                with connection.transaction():
                    done = finish.finish(connection, endings)
                found[name].append((_cpu_us(pid) - before) / FLUSH)
                assert len(done.ended) == FLUSH
    finish._FINISH = posting
    return Figure.median(
        "finishing_statement_cpu", "µs/job", found["ledger"], peer="without the ledger", peer_values=found["none"]
    )


def _running(connection: Connection, first: int, window_id: int) -> list[Ending]:
    connection.execute(
        "INSERT INTO job (id, tenant_id, source_id, line_no, batch_id, tier, state, fence, worker_id, deployment, "
        "category, claimed_at, deadline) "
        "SELECT id, 1, %(first)s, id - %(first)s + 1, %(first)s, 'batch', 'running', 1, 1, 'short', 'extraction', "
        "now(), now() + interval '1 day' FROM generate_series(%(first)s, %(first)s + %(n)s - 1) AS id",
        {"first": first, "n": FLUSH},
    )
    plain = {
        "fence": 1, "state": State.SUCCEEDED, "worker_id": 1, "deployment": "short", "catalog": "0123456789ab",
        "claimed_at": datetime.now(tz=UTC), "wait_ms": 12.5, "ttft_ms": 20.0, "latency_ms": 50.0, "prompt_tokens": 120,
        "completion_tokens": 40, "output": "An answer of forty tokens is about as long as this one. " * 3,
        "finish_reason": "stop", "cost_usd": Decimal("0.000028"), "window_id": window_id,
        "large_usd": Decimal("0.0007"), "hosted_usd": Decimal("0.000042"),
    }  # fmt: skip
    return [Ending(job_id=first + i, **plain) for i in range(FLUSH)]  # type: ignore[arg-type]


def _cpu_us(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000
