"""Whether a deployment has room for a benchmark, and which of its replicas can be measured."""

from __future__ import annotations

from typing import Any

import pytest

from tieryard.errors import UserError
from tieryard.metrics import EngineState, Gauge, Metrics, Replica
from workers.spare import NotYetError, Spare, measurable

OURS = 9


class Heard(Metrics):
    """What is heard of a deployment, and what it is told."""

    def __init__(self, *replicas: Replica) -> None:
        self.heard = list(replicas)
        self.told: dict[int, int] = {}

    def replicas(self, deployment: str) -> list[Replica]:
        assert deployment == "d"
        return self.heard

    def publish_calls(self, deployment: str, replica: int, gauge: Gauge, *, api: int) -> None:
        assert (deployment, api, gauge.capacity) == ("d", OURS, 0)
        self.told[replica] = gauge.in_flight

    def withdraw_calls(self, deployment: str, replica: int, *, api: int) -> None:
        assert (deployment, api) == ("d", OURS)
        del self.told[replica]


def replica(worker_id: int = 1, **fields: Any) -> Replica:
    plain: dict[str, Any] = {"url": "http://r", "capacity": 8, "in_flight": 0, "calls": {}}
    return Replica(worker_id, **(plain | fields))


def spare(*replicas: Replica) -> Spare:
    found = Spare(Heard(*replicas), "d", ours=OURS, reserve=2)
    found.look()
    return found


@pytest.mark.parametrize(
    ("replicas", "wanted", "why"),
    [
        ([replica()], 8, ""),
        ([replica()], 9, "0 requests of others leave no room for 9"),
        ([replica(in_flight=6, calls={OURS: 6})], 8, ""),
        ([replica(in_flight=7, calls={OURS: 6, 4: 1})], 8, "1 requests of others"),
        ([replica(in_flight=7, calls={OURS: 6, 4: 1})], 7, ""),
        ([replica(backlog=2), replica(2, backlog=1)], 1, "3 jobs wait"),
        ([replica(), replica(2, in_flight=4)], 12, ""),
        ([replica(), replica(2, capacity=0)], 1, "takes nothing now"),
        ([replica(), replica(2, capacity=0, state=EngineState.DOWN)], 8, ""),
        ([replica(capacity=0, state=EngineState.DOWN, backlog=5)], 8, ""),
        ([replica(held="429 for 9 s more")], 1, "429"),
        ([], 8, ""),
    ],
)
def test_room_is_what_nobody_else_needs(replicas: list[Replica], wanted: int, why: str) -> None:
    found = spare(*replicas).taken_by(wanted)
    assert found.startswith(why) or why in found
    assert bool(found) == bool(why)


def test_room_leaves_what_is_kept_for_realtime() -> None:
    assert spare().room([replica(), replica(2, capacity=1), replica(3, capacity=0)], usual=16) == 6 + 1 + 14


def test_what_is_in_flight_is_told_and_taken_back() -> None:
    heard = Heard(replica(), replica(2))
    found, urls = Spare(heard, "d", ours=OURS, reserve=0), {1: "a", 2: "b"}
    found.tell({1: 3}, urls)
    found.tell({1: 0, 2: 1}, urls)
    assert heard.told == {1: 0, 2: 1}
    found.withdraw()
    found.withdraw()
    assert heard.told == {}


def test_what_serves_is_measured_else_what_is_down() -> None:
    down = replica(2, capacity=0, state=EngineState.DOWN)
    assert measurable("d", [replica(), down]) == [replica()]
    assert measurable("d", [down]) == [down]


@pytest.mark.parametrize(
    ("replicas", "error", "why"),
    [
        ([], UserError, "heard of"),
        ([replica(url="")], UserError, "inside its worker"),
        ([replica(capacity=0)], NotYetError, "takes nothing now"),
        ([replica(capacity=0, state=EngineState.STARTING, url="")], NotYetError, "starting"),
        ([replica(capacity=0, state=EngineState.UNFIT)], UserError, "no engine of 'd' may serve"),
    ],
)
def test_where_nothing_can_be_measured_that_is_said(replicas: list[Replica], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        measurable("d", replicas)
