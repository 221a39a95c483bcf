"""`tieryard route` as typed, and what it prints: nothing cut on a narrow terminal."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from tieryard.cli.candidates import show_decision, shown_usd
from tieryard.cli.route import parse_slo
from tieryard.cli.route_reports import money
from tieryard.errors import UserError
from tieryard.replay import Sums

LONG_NAME = "qwen2.5-32b-instruct-awq"


def candidate(name: str = "small", **fields: Any) -> dict[str, Any]:
    figures = {"wait_ms": 3000.4, "ttft_ms": 640.0, "latency_ms": 7936.2, "quality": 0.734, "score": 0.49}
    tokens = {"prompt_tokens": 14_300, "output_tokens": 1800, "expected_cost_usd": "0.00045312"}
    plain = {"name": name, "chosen": False, "fits": True, "qualifies": True, "why": "costs more"}
    return {**plain, **figures, **tokens, **fields}


def decision(*candidates: dict[str, Any], **fields: Any) -> dict[str, Any]:
    text = {"category": "code", "wanted": "medium", "cue": "asks for code", "words": 23}
    flags = {"fallback": False, "explored": False, "defer_s": 0.0, "classifier": "rules", "step_back": ""}
    features = {"text": text, "max_tokens": 256, "needs": ["tools"], "due_in_s": 300.0}
    return {"reason": "cheapest", "features": features, "candidates": candidates, "notes": [], **flags, **fields}


def shown(width: int, found: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_decision(console, found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_figure_is_cut(width: int) -> None:
    out = shown(width, decision(candidate(chosen=True, why=""), candidate(LONG_NAME, why="is " + "far " * 30 + "away")))
    assert max(map(len, out.splitlines())) <= width
    for figure in ("14,300+1,800", "3,000", "640", "7,936", "0.000453", "0.73", "0.49", "chosen"):
        assert figure in out
    assert "category code, wants medium (asks for code), 23 words, max_tokens 256, needs tools, due in 5 min" in (
        " ".join(out.split())
    )
    assert (f"{LONG_NAME}: is far" in out) == (width < 130)


def test_what_is_unusual_is_said() -> None:
    assert "an SLO fallback" in shown(80, decision(fallback=True))
    assert "waits 12 s, then is routed again" in shown(80, decision(defer_s=12.3))
    assert "the rules decide: outcomes contradict it" in shown(80, decision(step_back="outcomes contradict it"))
    learned = decision(candidate(score=None), classifier="learned", notes=["small has no profile \x1b[2J"])
    out = shown(80, learned)
    assert "judged by the learned classifier" in out
    assert "wants" not in out
    assert "– small has no profile ␛[2J" in out
    assert shown(80, decision(features={}, classifier=None)) == "because cheapest\n"


@pytest.mark.parametrize(
    ("due_in_s", "words", "says"),
    [
        (60.0, 1, "1 word, max_tokens 256, needs tools, due in 60 s"),
        (899.6, 2, "2 words, max_tokens 256, needs tools, due in 15 min"),
        (86_352.0, 2, "due in 24 h"),
        (31_536_000.0, 2, "due in 365 days"),
        (-5.0, 2, "was due 5 s ago"),
    ],
)
def test_when_it_is_due_is_easy_to_read(due_in_s: float, words: int, says: str) -> None:
    found = decision()
    found["features"] |= {"due_in_s": due_in_s, "text": {**found["features"]["text"], "words": words}}
    assert says in " ".join(shown(80, found).split())


def test_what_the_job_asks_is_said() -> None:
    bounds = {"max_latency_ms": 2000.0, "max_ttft_ms": None, "min_quality": None, "quality_share": 0.9}
    found = decision()
    found["features"] |= {"bounds": {**bounds, "quality_of": "large"}, "max_cost_usd": "0.01"}
    out = " ".join(shown(80, found).split())
    assert "asks: max_latency_ms 2000, min_quality 0.9 of large, max_cost_usd 0.01" in out
    assert "asks:" not in shown(80, decision())


def test_dollars_have_three_digits_and_no_exponent() -> None:
    amounts = ("0.0000123456", "12.3456", "0", "1234567")
    assert [shown_usd(Decimal(x)) for x in amounts] == ["0.0000123", "12.3", "0", "1230000"]


def test_slo_terms() -> None:
    assert parse_slo(["max_latency_ms=2000", "deadline=2h"]) == {"max_latency_ms": 2000.0, "deadline": "2h"}
    assert parse_slo(["min_quality.of=long", "min_quality.share=.9"]) == {"min_quality": {"of": "long", "share": 0.9}}
    assert parse_slo(['{"max_ttft_ms": 5}', "max_cost_per_1k=nan"]) == {"max_ttft_ms": 5, "max_cost_per_1k": "nan"}
    for bad in (["x"], ["=1"], ["x="], ["{x"], ["a=1", "a.b=2"]):
        with pytest.raises(UserError, match="--slo"):
            parse_slo(bad)


def test_sums_of_little_money_are_not_rounded_to_nothing() -> None:
    little = Sums(jobs=1, charged=1, old_usd=Decimal("0.0000012"), new_usd=Decimal("0.00003456"))
    assert money(little) == ("0.0000012", "0.0000346", "+2780.0%")
    assert money(Sums(charged=1, old_usd=Decimal("1234.5"), new_usd=Decimal(0)))[:2] == ("1,234.5000", "0.0000")
