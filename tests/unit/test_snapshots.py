"""Snapshots that are stored: each once, though calls take turns between a few."""

from __future__ import annotations

from typing import cast

import pytest
import redis

from tests.conftest import CATALOGS
from tieryard.catalog import Catalog, load_catalog
from tieryard.hardness import Loaded, load_hardness
from tieryard.metrics import Live, Metrics
from tieryard.snapshots import Snapshots
from tieryard.telemetry import logger


def test_a_snapshot_is_stored_once_however_many_come_between() -> None:
    """At full engines each call has another one, by what is full just then: it would be stored with every call."""
    known = Snapshots(cast("Metrics", None), load_catalog(CATALOGS / "instant.yaml"), logger())
    for number, body in enumerate((b"all", b"one is full"), start=1):
        assert known.stored_as(body) is None
        known.remember(body, number)
    assert [known.stored_as(body) for body in (b"all", b"one is full", b"all")] == [1, 2, 1]
    for number in range(100):
        known.remember(f"later {number}".encode(), number)
    assert known.stored_as(b"all") is None, "what is remembered is bounded"


def test_what_was_stored_long_ago_is_stored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rescue may have forgotten it since."""
    known = Snapshots(cast("Metrics", None), load_catalog(CATALOGS / "instant.yaml"), logger())
    monkeypatch.setattr("tieryard.snapshots.time.monotonic", lambda: 100_000.0)
    known.remember(b"all", 1)
    monkeypatch.setattr("tieryard.snapshots.time.monotonic", lambda: 103_601.0)
    assert known.stored_as(b"all") is None
    known.remember(b"all", 2)
    assert known.stored_as(b"all") == 2


def test_a_process_that_cannot_read_the_model_says_so_in_its_decisions() -> None:
    catalog = load_catalog(CATALOGS / "instant.yaml")
    lost = catalog.model_copy(update={"routing": catalog.routing.model_copy(update={"quality_model": "/nowhere.gz"})})
    fault = load_hardness(lost).fault
    assert fault.startswith("the quality model cannot be read where jobs are routed (FileNotFoundError); mend")
    assert (load_hardness(catalog).fault, load_hardness(catalog).hardness is None) == ("", False)

    class Metering:
        def read(self, _: Catalog) -> Live:
            return Live({}, {}, {})

    known = Snapshots(cast("Metrics", Metering()), lost, logger(), learned=load_hardness(lost))
    assert known.newest().rules.step_back == fault
    assert known.last.rules.classifier == "rules"
    known.take_over(catalog, learned=load_hardness(catalog))
    assert (known.last.rules.step_back, known.last.rules.classifier) == ("", "learned")


def test_without_redis_a_model_that_cannot_be_read_is_said_all_the_same() -> None:
    catalog = load_catalog(CATALOGS / "instant.yaml")

    class Away:
        def read(self, _: Catalog) -> Live:
            raise redis.ConnectionError("away")

    known = Snapshots(cast("Metrics", Away()), catalog, logger(), learned=Loaded(fault="it is gone"))
    assert (known.newest().rules.step_back, known.last.rules.classifier) == ("it is gone", "rules")
    known.take_over(catalog, learned=Loaded(fault="so is this one"))
    assert known.last.rules.step_back == "so is this one"


def test_a_step_back_holds_for_the_model_that_it_is_from_and_snapshots_name_theirs() -> None:
    catalog = load_catalog(CATALOGS / "instant.yaml")

    class Metering:
        def read(self, _: Catalog) -> Live:
            return Live({}, {}, {}, step_back={"old": "outcomes contradict it"})

    known = Snapshots(cast("Metrics", Metering()), catalog, logger(), learned=Loaded(quality_model="old"))
    assert (known.newest().quality_model, known.last.rules.step_back) == ("old", "outcomes contradict it")
    known.take_over(catalog, learned=Loaded(quality_model="new"))
    assert (known.last.quality_model, known.last.rules.step_back) == ("new", "")
    assert len(load_hardness(catalog).quality_model) == 12
