"""What the router would have known under another catalog, and what a replay says of its gaps."""

from __future__ import annotations

from decimal import Decimal

from tieryard.catalog import Catalog, parse_catalog
from tieryard.replay import Report, Sums, notes, under
from tieryard.routing import Measured, Profile, Snapshot

CATALOG = """
version: 1
tiers: {{batch: {{window: 24h}}}}
categories: [chat]
deployments:
  cheap: &one
    model: test/cheap
    revision: "1"
    size_class: small
    engine: {{kind: instant}}
    context_limit: 1000
    max_in_flight: 64
    tokenizer: utf8
    price: {{input_usd_per_1m: {price}, output_usd_per_1m: 1}}
  {other}: {{<<: *one, size_class: large}}
"""
SEEN = {"chat": Profile(samples=100, timestamp=0.0, ttft_p95_ms=100)}


def catalog_of(price: int = 1, other: str = "dear") -> Catalog:
    return parse_catalog(CATALOG.format(price=price, other=other))


def test_what_was_measured_is_taken_over_by_name() -> None:
    seen = {"cheap": Measured(capacity=7, in_flight=3, replicas=2, broken="its breaker is open")}
    old = Snapshot.of(catalog_of(), gauges=seen, profiles={"cheap": SEEN}, needed_tps={"batch": 5.0}, step_back="so")
    new = under(catalog_of(price=2, other="better"), old.refusing({"cheap": "is full"}))
    cheap, better = new.candidates
    assert (cheap.capacity, cheap.in_flight, cheap.broken, cheap.refused) == (7, 3, "its breaker is open", "is full")
    assert (cheap.profiles, cheap.input_usd_per_1m) == (SEEN, Decimal(2))
    assert (better.capacity, better.replicas, better.live, better.profiles) == (64, 1, True, {})
    assert (new.rules.tiers["batch"].needed_tps, new.rules.step_back) == (5.0, "so")
    assert new.catalog == catalog_of(price=2, other="better").hash()


def test_what_was_down_stays_down() -> None:
    old = Snapshot.of(catalog_of(), gauges={"cheap": Measured(capacity=7, replicas=1)})
    assert [c.live for c in under(catalog_of(price=2), old).candidates] == [True, False]


def test_what_was_not_explored_for_want_of_money_is_not() -> None:
    exploring = parse_catalog(CATALOG.format(price=2, other="dear") + "routing: {exploration: {share: 0.1}}\n")
    old = Snapshot.of(catalog_of())
    assert (under(exploring, old).rules.explore_share, under(exploring, old, exploring=False).rules.explore_share) == (
        0.1,
        0.0,
    )


def test_gaps_are_said() -> None:
    report = Report(
        tiers={"batch": Sums(jobs=9, waits=1, refused=2, refused_usd=Decimal("0.5"), compared=7, charged=4)}
    )
    report.unmeasured["better"] += 9
    report.uncounted["new.gguf"] += 8
    report.gone["hasty"] += 1
    report.unknown, report.unheard = 3, 5
    said = list(notes(report))
    assert [part in line for part, line in zip(PARTS, said, strict=True)] == [True] * len(PARTS)
    assert list(notes(Report())) == []


PARTS = [
    "better was not measured when 9 jobs",
    "new.gguf for 8 jobs",
    "no tier hasty, of which 1 jobs",
    "no prompt of 5 jobs",
    "3 jobs could not be decided again",
    "2 jobs would be refused; what they cost, $0.5,",
    "1 jobs would first wait",
    "3 jobs have no bill",
]


def test_sums_add_up() -> None:
    report = Report(tiers={"a": Sums(jobs=1, old_usd=Decimal("0.1")), "b": Sums(jobs=2, old_usd=Decimal("0.2"))})
    assert (report.total.jobs, report.total.old_usd) == (3, Decimal("0.3"))
