"""Quotes of a sample that its caller has drawn: the whole is priced, with the error that the sample leaves."""

# ruff: noqa: F811  # fixtures that are imported

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.integration.test_api import error_of
from tests.integration.test_batches_api import House, line
from tests.integration.test_quotes import (  # noqa: F401  # fixtures
    NDJSON,
    catalog_path,
    house,
    job,
    live,
    offers,
    quote,
)
from tieryard import quoting


def test_a_sample_stands_for_the_whole(house: House) -> None:
    drawn = [job() for _ in range(10)]
    own = quote(house, *drawn)
    found = quote(house, *drawn, sample_of=1_000_000)
    assert (found["requests"], found["lines"]["read"], found["lines"]["good"]) == (1_000_000, 10, 1_000_000)
    assert (own["prompt_tokens"], found["prompt_tokens"], found["prompt_tokens_error"]) == (230, 23_000_000, 0)
    small, large = offers(own)["bulk"], offers(found)["bulk"]
    for end in ("low", "expected", "worst"):
        assert Decimal(large["cost_usd"][end]) == 100_000 * Decimal(small["cost_usd"][end])
        assert large["output_tokens"][end] == 100_000 * small["output_tokens"][end]
    assert large["finish"]["expected_s"] > 1000 * small["finish"]["expected_s"]
    assert [(s["deployment"], s["requests"]) for s in large["deployments"]] == [("short", 1_000_000)]
    assert house.client.get(f"/v1/quotes/{found['id']}").json() == found


def test_what_the_sample_leaves_open_is_in_the_range(house: House) -> None:
    drawn = [job("word " * (1 + i % 2 * 40)) for i in range(20)]
    found = quote(house, *drawn, sample_of=2000)
    assert found["prompt_tokens_error"] > 0
    assert quote(house, *drawn)["prompt_tokens_error"] == 0
    bulk = offers(found)["bulk"]
    assert Decimal(bulk["cost_error_usd"]) > 0


def test_a_bad_line_of_a_sample_stands_for_others(house: House) -> None:
    found = quote(house, job(), job(max_tokens=0), sample_of=1000)
    assert (found["lines"]["good"], found["lines"]["bad"], found["lines"]["read"]) == (500, 500, 2)


def test_a_sample_of_itself_is_the_whole(house: House) -> None:
    assert quote(house, job(), job("Other."), sample_of=2)["prompt_tokens_error"] == 0


def test_a_long_sample_is_sampled_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quoting, "SAMPLE", 5)
    found = quote(house, *[job() for _ in range(20)], sample_of=400)
    assert (found["requests"], found["lines"]["read"], found["prompt_tokens"]) == (400, 5, 400 * 23)


@pytest.mark.parametrize("sample_of", [0, 1, -1, 10_000_001, "all"])
def test_a_sample_is_no_larger_than_the_whole(house: House, sample_of: object) -> None:
    body = '{"prompt": "a"}\n{"prompt": "b"}\n'
    answer = house.client.post("/v1/quotes", content=body, headers=NDJSON, params={"sample_of": sample_of})
    error = error_of(answer, 400)
    assert error["param"] == "sample_of"


def test_an_uploaded_file_is_no_sample(house: House) -> None:
    file = house.upload(line("a"), line("b"))
    answer = house.client.post("/v1/quotes", json={"input_file_id": file}, params={"sample_of": 10})
    assert error_of(answer, 400)["param"] == "sample_of"
