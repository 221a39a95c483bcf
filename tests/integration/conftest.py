"""A gateway, which is the API under a real server with fake engines behind it; and an inference worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import Engines, Gateway, catalog_of, engines, gateway
from tests.integration.inference import Bench, inference
from tieryard.settings import Settings
from tieryard.store import Store
from workers.yard import Yard

OpenYard = Callable[..., Yard]


@pytest.fixture
def open_yard(settings: Settings) -> Iterator[OpenYard]:
    """Makes what a process stands on: it has not joined and, unless told to, consumes nothing."""
    opened: list[Yard] = []

    def open_(kind: str = "test", *, settings: Settings = settings, **fields: Any) -> Yard:
        opened.append(Yard(kind, settings, **{"consume": [], **fields}))
        return opened[-1]

    yield open_
    for yard in opened:
        yard.leave()


@pytest.fixture
def yard(open_yard: OpenYard) -> Yard:
    return open_yard()


@pytest.fixture
def fakes(redis_url: str) -> Iterator[Engines]:
    with engines(redis_url) as found:
        yield found


@pytest.fixture
def quick(settings: Settings, fakes: Engines, tmp_path: Path) -> Settings:
    hasty = {"keepalive_s": 0.1, "send_timeout_s": 0.5, "drain_s": 2.0}
    return settings.model_copy(update={"catalog": catalog_of(fakes, tmp_path), **hasty})


@pytest.fixture
def gate(quick: Settings, fakes: Engines, store: Store, tenant: int) -> Iterator[Gateway]:
    with gateway(quick, fakes, store) as found:
        yield found


@pytest.fixture
def bench(settings: Settings, tenant: int) -> Iterator[Bench]:
    with inference(settings, tenant) as found:
        yield found
