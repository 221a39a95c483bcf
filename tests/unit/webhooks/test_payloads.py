"""What a delivery says is thin, whatever it is of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.events import LISTED, Told
from tieryard.webhooks.payloads import MOST_BYTES, RESULT_OMITTED, payload

AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def told(event: str = "job.completed", **fields: Any) -> dict[str, Any]:
    body = payload(event, 7, at=AT, **fields)
    assert len(body) < MOST_BYTES
    return dict(orjson.loads(body))


def test_what_happened_to_what_and_where_to_read_on() -> None:
    assert told() == {
        "type": "job.completed",
        "timestamp": "2026-11-23T12:00:00+00:00",
        "data": {"id": "job_7", "url": "/v1/jobs/job_7"},
    }


def test_a_fleet_that_knows_its_address_tells_it_whole() -> None:
    for public_url in ("https://fleet.example.com", "https://fleet.example.com/"):
        assert told(public_url=public_url)["data"]["url"] == "https://fleet.example.com/v1/jobs/job_7"


@pytest.mark.parametrize("event", [*LISTED, Told.WEBHOOK_TEST])
def test_every_event_names_its_subject(event: str) -> None:
    assert told(event)["data"]["id"] == f"{event.partition('.')[0]}_7"


def test_data_stands_beside_the_id() -> None:
    assert told("budget.threshold", data={"mark": 80})["data"] == {"id": "budget_7", "mark": 80}


@pytest.mark.parametrize("n", [19_700, 19_800, 19_860, 19_900, 20_000, 100_000])
@pytest.mark.parametrize("letter", ["a", "ä", "€", "\n", "\u0001"])
def test_a_result_is_told_if_it_fits(n: int, letter: str) -> None:
    result = {"output": letter * (n // len(orjson.dumps(letter)[1:-1]))}
    data = told(result=result)["data"]
    whole = {"type": "job.completed", "timestamp": AT.isoformat(), "data": {**data, "result": result}}
    whole["data"].pop("result_omitted", None)
    fits = len(orjson.dumps(whole)) < MOST_BYTES
    assert data.get("result") == (result if fits else None)
    assert data.get("result_omitted") == (None if fits else RESULT_OMITTED)
    assert fits == (n < 19_870)


def test_a_result_that_was_found_too_long_is_said_to_be() -> None:
    assert told(too_long=True)["data"]["result_omitted"] == RESULT_OMITTED


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=30_000), max_size=3))
def test_nothing_makes_it_long(data: dict[str, str]) -> None:
    told(data=data, result={"output": "x"})
