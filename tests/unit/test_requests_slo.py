"""What a job may ask of its answer: read alike in every shape of request, and refused by field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import orjson
import pytest

from tieryard.errors import RequestError
from tieryard.requests import CHAT, Relative, Request, Slo, parse_request

ASKED = {
    "slo": {
        "max_ttft_ms": 300,
        "max_cost_per_1k": 0.002,
        "min_quality": {"share": 0.9, "of": "large"},
        "deadline": "2h",
    },
    "max_cost_usd": 0.0005,
}


def native(**fields: object) -> Request:
    return parse_request(orjson.dumps({"prompt": "Say hi.", **fields}).decode())


def line(**fields: object) -> Request:
    body = {"model": "auto", "messages": [{"role": "user", "content": "Say hi."}], **fields}
    return parse_request(orjson.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body}).decode())


@pytest.mark.parametrize("read", [native, line])
def test_every_shape_of_request_may_ask(read: type[Request]) -> None:
    request = read(**ASKED)
    assert request.slo == Slo(
        max_ttft_ms=300,
        max_cost_per_1k=Decimal("0.002"),
        min_quality=Relative(share=0.9, of="large"),
        deadline=timedelta(hours=2),
    )
    assert request.max_cost_usd == Decimal("0.0005")  # as it was written, not as a float holds it
    assert "slo" not in request.body
    assert read().slo is None


def test_a_deadline_may_be_a_time_with_its_zone() -> None:
    slo = native(slo={"deadline": "2026-11-23T06:00:00Z"}).slo
    assert slo is not None
    assert slo.deadline == datetime(2026, 11, 23, 6, tzinfo=UTC)


FAULTS = [
    ({"slo": {"deadline": "tomorrow"}}, "slo.deadline", "expected a duration such as '2h', or a time"),
    ({"slo": {"deadline": "2026-11-23T06:00:00"}}, "slo.deadline", "a time with its zone"),
    ({"slo": {"deadline": 7}}, "slo.deadline", "expected a duration"),
    ({"slo": {"min_quality": 1.5}}, "slo.min_quality", "less than or equal to 1"),
    ({"slo": {"min_quality": "high"}}, "slo.min_quality", "a number from 0 to 1, or `{share, of}`"),
    ({"slo": {"min_quality": True}}, "slo.min_quality", "a number from 0 to 1"),
    ({"slo": {"min_quality": {"share": 2, "of": "x"}}}, "slo.min_quality.share", "less than or equal to 1"),
    ({"slo": {"min_quality": {"share": 0.5}}}, "slo.min_quality.of", "is required"),
    ({"slo": {"max_ttft": 5}}, "slo.max_ttft", "no such field"),
    ({"slo": {"max_latency_ms": 0}}, "slo.max_latency_ms", "greater than 0"),
    ({"slo": {"max_cost_per_1k": -1}}, "slo.max_cost_per_1k", "greater than or equal to 0"),
    ({"max_cost_usd": -1}, "max_cost_usd", "greater than or equal to 0"),
    ({"max_cost_usd": True}, "max_cost_usd", "expected a number, not true"),
    ({"max_cost_usd": "NaN"}, "max_cost_usd", "finite"),
]


@pytest.mark.parametrize(("asked", "param", "message"), FAULTS)
def test_a_fault_is_refused_by_its_field(asked: dict[str, object], param: str, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        native(**asked)
    assert refused.value.param == param
    assert message in refused.value.message
    with pytest.raises(RequestError) as refused:
        line(**asked)
    assert refused.value.param == f"body.{param}"
