"""The report on prefix caches: what was hit, and the prefill that it saved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests import factories as make
from tieryard.store import Store
from tieryard.store.finish import finish
from tieryard.store.reads import PrefixCache, prefix_cache

HOUR = timedelta(hours=1)


def finished(store: Store, tenant: int, starts: list[tuple[int, int, float]]) -> None:
    """Jobs that succeeded, as (prompt tokens, cached tokens, TTFT)."""
    claimed = make.running(store, tenant, len(starts))
    endings = [
        make.ending(job, prompt_tokens=read, cached_tokens=cached, ttft_ms=ttft)
        for job, (read, cached, ttft) in zip(claimed, starts, strict=True)
    ]
    with store.transaction() as connection:
        finish(connection, endings)


def report(store: Store) -> list[PrefixCache]:
    return prefix_cache(store, since=datetime.now(tz=UTC) - HOUR)


def test_hits_and_what_they_saved(store: Store, tenant: int) -> None:
    # 20 ms for every request, and 0.5 ms for each token that is computed.
    starts = [(1000, cached, 20 + 0.5 * (1000 - cached)) for cached in range(0, 1000, 25)]
    finished(store, tenant, starts)
    [found] = report(store)
    assert (found.deployment, found.starts) == ("one", 40)
    assert (found.prompt_tokens, found.cached_tokens) == (40_000, 19_500)
    assert found.hit_rate == pytest.approx(0.4875)
    assert found.prefill_ms_per_token == pytest.approx(0.5, rel=1e-3)
    assert found.saved_prefill_s == pytest.approx(9.75, rel=1e-3)


@pytest.mark.parametrize(
    "starts",
    [
        [(1000, cached, 20 + 0.5 * (1000 - cached)) for cached in range(0, 100, 25)],
        [(1000, 500, 270.0)] * 40,
        [(1000, 25 * n, 100.0 + n % 2) for n in range(40)],
    ],
    ids=["few", "all alike", "unrelated"],
)
def test_too_little_says_nothing_of_time(store: Store, tenant: int, starts: list[tuple[int, int, float]]) -> None:
    finished(store, tenant, starts)
    [found] = report(store)
    assert found.cached_tokens == sum(cached for _, cached, _ in starts)
    assert found.saved_prefill_s is None


def test_only_what_succeeded_since_then_counts(store: Store, tenant: int) -> None:
    assert report(store) == []
    finished(store, tenant, [(100, 10, 5.0)])
    store.fetch("UPDATE timing SET ended_at = ended_at - interval '2 hours' RETURNING job_id")
    assert report(store) == []
    finished(store, tenant, [(100, 30, 5.0)])
    [found] = report(store)
    assert (found.starts, found.cached_tokens, found.hit_rate) == (1, 30, 0.3)
