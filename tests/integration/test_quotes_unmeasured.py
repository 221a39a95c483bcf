"""Quotes of a fleet that has done no work yet: what nobody has measured is not promised."""

from __future__ import annotations

import pytest
import redis

from tests.integration.test_batches_api import House
from tests.integration.test_leaks import publish_engines
from tests.integration.test_quotes import MEASURED, catalog_path, house, job, quote  # noqa: F401  # fixtures
from tieryard.catalog import Catalog
from tieryard.metrics import Metrics


@pytest.fixture
def live(redis_url: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both deployments serve, and only the long one has been measured."""
    publish_engines(redis_url, catalog, monkeypatch)
    with redis.Redis.from_url(redis_url) as client:
        Metrics(client).observe("long", "chat", MEASURED)


def test_what_nobody_has_measured_is_likely_in_time_at_most(house: House) -> None:  # noqa: F811
    for model, meets in (("short", "likely"), ("long", "surely")):
        [bulk] = quote(house, job(model=model), tier="bulk", deadline="6h")["offers"]
        assert ([share["deployment"] for share in bulk["deployments"]], bulk["meets"]) == ([model], meets)
    [both] = quote(house, job(model="short"), job(model="long"), tier="bulk", deadline="6h")["offers"]
    assert both["meets"] == "likely"
