"""A ledger of three UTC days as the fleet's own statements write it, for reports to be held against."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests import factories as make
from tieryard.catalog import Price
from tieryard.costs.terms import Terms
from tieryard.job import State
from tieryard.store import Store, keys, windows
from tieryard.store.finish import HandBack, finish
from tieryard.store.jobs import Claimed

HOUR = timedelta(hours=1)
RENT = Decimal("1.006")  # an hour of it is no round number of 10⁻¹² USD
PRICE = Price(input_usd_per_1m=Decimal("0.05"), output_usd_per_1m=Decimal("0.25"))


@dataclass(frozen=True)
class Days:
    """`days`: midnights, the last one today's. `open`: windows that are not closed."""

    days: list[datetime]
    acme: int
    globex: int
    open: list[int]

    @property
    def since(self) -> datetime:
        return self.days[0]


def terms(usd_per_hour: Decimal = RENT, gpus: int = 1) -> Terms:
    return Terms(usd_per_hour, gpus, "on_demand", PRICE, "0123456789ab")


def days_of(store: Store) -> Days:
    """Two closed days and today, which is open: jobs of two tenants, in windows and by the token, failed starts,
    late answers, benchmarks, hosts, an adjustment by hand."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = [today - timedelta(days=n) for n in (2, 1, 0)]
    acme, globex = _tenant(store, "acme"), _tenant(store, "globex")
    for number, day in enumerate(days[:2]):
        of_day = [_window(store, "one", day, f"host-1/{n}") for n in (1, 2)] + [_window(store, "two", day, "host-2/1")]
        _work(store, day, of_day, acme, globex, salt=number)
        _window(store, None, day, "redis")
    _close(store)
    _late(store, acme, days[1], of_day[0])
    _by_hand(store, acme, days[1])
    still = [_window(store, "one", today, "host-1/1", stops=False), _window(store, "two", today, "host-2/1")]
    still.append(_window(store, None, today, "redis", stops=False))
    _work(store, today, still[:2], acme, globex, salt=7)
    return Days(days, acme, globex, still)


def _tenant(store: Store, name: str) -> int:
    keys.add_key(store, f"ty_{name}", tenant=name, name="test")
    return keys.holder_of(store, f"ty_{name}").tenant_id


def _window(store: Store, deployment: str | None, day: datetime, place: str, *, stops: bool = True) -> int:
    """Of most of a day, in which it warms up for 7 minutes; today's begins at midnight."""
    with store.transaction() as connection:
        made = windows.open_window(
            connection, store.next_id(), place=place, worker_id=None, deployment=deployment, terms=terms()
        )
        connection.execute(
            "UPDATE rent_window SET started_at = %(day)s, served_at = CASE WHEN deployment IS NOT NULL THEN "
            "%(day)s + interval '7 minutes' END, stopped_at = CASE WHEN %(stops)s THEN least(now(), %(stop)s) END "
            "WHERE id = %(id)s",
            {"day": day, "stop": day + 23.7 * HOUR, "stops": stops, "id": made},
        )
    return made


def _work(store: Store, day: datetime, of_day: list[int], acme: int, globex: int, *, salt: int) -> None:
    """Jobs of all kinds in these windows, posted at hours of this day that have been."""
    before = _posted(store)
    for number, window in enumerate(of_day):
        deployment = "two" if number == len(of_day) - 1 else "one"
        known = {"deployment": deployment, "window_id": window}
        _finish(store, acme, 3 + salt, "interactive", "chat", **known)
        _finish(store, globex, 2, "batch", "extraction", large_usd=None, hosted_usd=Decimal("0.000021"), **known)
        _finish(store, globex, 1, "batch", None, state=State.FAILED, output=None, error_kind="x", error="no", **known)
        _fail_once(store, acme, **known)
        _benchmark(store, window, deployment)
    _finish(store, acme, 4, "bulk", "chat", deployment="hosted", cost_usd=Decimal("0.0000125"), batch=True)
    _date(store, before, day)


def _finish(
    store: Store, tenant: int, n: int, tier: str, category: str | None, *, batch: bool = False, **fields: Any
) -> list[int]:
    if batch:
        ids = make.released_batch(store, tenant, n, tier=tier)
        make.route(store, ids)
        jobs = sorted(make.claim(store, ids, make.worker(store)), key=lambda job: job.id)
    else:
        jobs = make.running(store, tenant, n, tier=tier)
    store.fetch(
        "UPDATE job SET category = %(category)s WHERE id = ANY(%(ids)s) RETURNING id",
        {"category": category, "ids": [job.id for job in jobs]},
    )
    with store.transaction() as connection:
        finish(connection, [make.ending(job, **_charge(job), **fields) for job in _fresh(jobs, fields)])
    return [job.id for job in jobs]


def _charge(job: Claimed) -> dict[str, Any]:
    return {
        "prompt_tokens": 100 + job.id % 17,
        "cached_tokens": job.id % 5,
        "completion_tokens": 20 + job.id % 11,
    }


def _fresh(jobs: list[Claimed], fields: dict[str, Any]) -> list[Claimed]:
    fields.setdefault("cost_usd", Decimal("0.000013") + Decimal(len(jobs)) * Decimal("1E-12"))
    fields.setdefault("large_usd", Decimal("0.000145"))
    fields.setdefault("hosted_usd", Decimal("0.0000305"))
    return jobs


def _fail_once(store: Store, tenant: int, **known: Any) -> None:
    [job] = make.running(store, tenant, 1)
    used = {"prompt_tokens": 50, "completion_tokens": 3, "cost_usd": Decimal("0.000003250001")}
    with store.transaction() as connection:
        finish(connection, [make.hand_back(job, HandBack.FAULT, **used, **known)])


def _benchmark(store: Store, window: int, deployment: str) -> None:
    tenant = _tenant(store, "bench")
    store.fetch(
        "INSERT INTO ledger (job_id, fence, kind, tenant_id, window_id, tier, deployment, prompt_tokens, "
        "completion_tokens, cost_usd, catalog) VALUES (%(id)s, 1, 'benchmark', %(tenant)s, %(window)s, 'bulk', "
        "%(deployment)s, 4000, 900, 0.000425, '0123456789ab') RETURNING job_id",
        {"id": store.next_id(), "tenant": tenant, "window": window, "deployment": deployment},
    )


def _late(store: Store, tenant: int, day: datetime, window: int) -> None:
    """An answer whose window is closed: charged, and balanced there."""
    before = _posted(store)
    _finish(store, tenant, 2, "interactive", "chat", deployment="one", window_id=window)
    _date(store, before, day)


def _by_hand(store: Store, tenant: int, day: datetime) -> None:
    before = _posted(store)
    store.fetch(
        "INSERT INTO ledger (job_id, fence, kind, tenant_id, prompt_tokens, completion_tokens, cost_usd, catalog) "
        "VALUES (%(id)s, 0, 'adjustment', %(tenant)s, 0, 0, -0.0000071, 'by hand') RETURNING job_id",
        {"id": store.next_id(), "tenant": tenant},
    )
    _date(store, before, day)


def _close(store: Store) -> None:
    with store.transaction() as connection:
        connection.commit()  # each closing is a transaction of its own
        windows.close_due(connection, 0)


def _posted(store: Store) -> set[tuple[int, int, str]]:
    return set(store.fetch("SELECT job_id, fence, kind FROM ledger"))  # type: ignore[arg-type]


def _date(store: Store, before: set[tuple[int, int, str]], day: datetime) -> None:
    """What has been posted since then was posted on that day, at hours that have been."""
    for number, (job, fence, kind) in enumerate(sorted(_posted(store) - before)):
        store.fetch(
            "UPDATE ledger SET posted_at = least(%(at)s, now()) WHERE (job_id, fence, kind) = "
            "(%(job)s, %(fence)s, %(kind)s) RETURNING job_id",
            {"at": day + number % 20 * HOUR, "job": job, "fence": fence, "kind": kind},
        )
