"""Asks for the benchmark runs that the catalog's schedules want: one for each slot, however many processes look."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tieryard.bench.asking import scheduled_runs
from tieryard.catalog.benchmarks import schedule
from tieryard.errors import UserError
from tieryard.store import benchmarks, catalogs
from tieryard.telemetry import Event

if TYPE_CHECKING:
    from celery.schedules import crontab

    from workers.yard import Yard

_LOOK_BACK = [timedelta(hours=1), timedelta(days=1), timedelta(days=31), timedelta(days=370)]


def ask_for_due(
    yard: Yard, *, now: datetime | None = None, unmet: MutableMapping[str, datetime] | None = None
) -> list[int]:
    """Runs of the latest slot of each schedule, where that is past and has none: their ids. What was missed before it,
    while nobody looked, is not made up for. A schedule that has never run counts from when its catalog was applied.
    `unmet` keeps which slots were said to be so, as each is once."""
    catalog = yard.catalog
    wanted = catalog.benchmarks.schedules
    if not wanted:
        return []
    known, version = benchmarks.slots(yard.store), catalogs.newest(yard.store)
    if version is None:
        return []
    made: list[int] = []
    for name, one in wanted.items():
        after = max(known.get(name, version.applied_at), version.applied_at)
        slot = latest_slot(one.at, after=after, now=now or datetime.now(tz=UTC))
        if slot is None:
            continue
        try:
            runs = scheduled_runs(one, catalog, yard.store, name=name, slot=slot)
        except UserError as error:  # a golden set that nobody has imported
            if unmet is None or unmet.get(name) != slot:
                yard.log.warning(Event.SCHEDULE_UNMET, schedule=name, error=str(error))
            if unmet is not None:
                unmet[name] = slot
            continue
        if ids := benchmarks.create(yard.store, runs):
            yard.log.info(Event.BENCHMARKS_ASKED, schedule=name, runs=_public(ids))
        made += ids
    return made


def latest_slot(cron: str, *, after: datetime, now: datetime) -> datetime | None:
    """The last time that the crontab line names, later than `after` and not later than `now`; None where there is
    none. Looked for from ever further back, so that a line of every minute is not counted through for a month."""
    line, earliest = schedule(cron), after.astimezone(UTC)
    for back in _LOOK_BACK:
        at, found = max(earliest, now.astimezone(UTC) - back), None
        while (at := _next(line, at)) <= now:
            found = at
        if found is not None:
            return found
    return None


def _next(line: crontab, at: datetime) -> datetime:
    last, delta, _ = line.remaining_delta(at)
    following: datetime = last + delta
    return following.astimezone(UTC)


def _public(ids: Iterable[int]) -> list[str]:
    return [benchmarks.name_of(number) for number in ids]
