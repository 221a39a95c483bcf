"""What `tieryard bench show` prints of a run."""

from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from tieryard.cli import bench_reports
from tieryard.cli.bench_reports import plain_number
from tieryard.cli.tables import FittedTable


def shown(what: FittedTable) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def scored(**changed: Any) -> dict[str, Any]:
    return {
        "n": 5, "answered": 5, "scored": 5, "judged": 2, "mean_score": 0.56, "micro_f1": None, "unscored": {},
        "pass_rate": {"value": 0.6, "low": 0.231, "high": 0.882}, "latency_ms": 1560.8, "cost_usd": "0.000001026000",
        "quality_per_usd": 545_809.0,
    } | changed  # fmt: skip


def spread(ms: float) -> dict[str, float]:
    return {"n": 8, "mean": ms, "p50": ms, "p90": ms + 1, "p95": ms + 2, "p99": ms + 3}


def measured(**changed: Any) -> dict[str, Any]:
    return {
        "n": 8, "errors": {}, "error_rate": 0.0, "ttft_ms": spread(542), "tpot_ms": spread(31), "itl_ms": None,
        "latency_ms": spread(1532), "output_tps": 36.9, "cost_per_1k": "0.000054", "requests_per_s": 1.03,
        "goodput": {"met": 6, "n": 8, "per_s": 0.77}, "prompt_tokens": 51.75, "output_tokens": 36.0,
    } | changed  # fmt: skip


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.00006, "0.00006"), (Decimal("0.0003600"), "0.00036"), (1.4213, "1.421"), (1234.5, "1,234.50")],
)
def test_small_money_has_no_exponent(value: float | Decimal, said: str) -> None:
    assert plain_number(value) == said


def test_a_quality_run_shows_its_scores_by_category_and_over_all() -> None:
    nothing = scored(
        scored=0, judged=0, mean_score=None, pass_rate=None, latency_ms=None, cost_usd=None, quality_per_usd=None
    )
    report = {"categories": {"chat": scored(), "code": nothing}, "whole": scored(unscored={"no verdict": 2})}
    said = shown(bench_reports.scores(report))
    assert [line.split()[0] for line in said.splitlines() if line[:4] in ("chat", "code", "all ")] == [
        "chat",
        "code",
        "all",
    ]
    assert "23.1%–88.2%" in said
    assert "0.001026" in said
    told = {
        "golden_set": "mine",
        "hash": "64f050577a4b161b",
        "judge": "big",
        "judge_cost_usd": "0.07",
        "advice": ["few"],
    }
    assert bench_reports.scored_says(report | told) == [
        "golden set mine, hash 64f050577a4b; judge big, for $0.07 more",
        "2 without a score: no verdict",
        "few",
    ]


def test_a_speed_run_shows_percentiles_goodput_and_origins() -> None:
    dead = measured(
        ttft_ms=None,
        tpot_ms=None,
        latency_ms=None,
        goodput=None,
        requests_per_s=None,
        prompt_tokens=None,
        output_tokens=None,
        errors={"timeout": 7, "HTTP 500": 1},
    )
    profiles = {"chat": measured(), "code": dead}
    spreads = shown(bench_reports.percentiles(profiles))
    assert "1,532  1,532  1,533  1,534  1,535" in spreads
    through = shown(bench_reports.throughputs(profiles, {"chat": {"catalog": 2, "built_in": 2}}))
    assert "75.0%" in through
    assert "catalog 2, built_in 2" in through
    assert bench_reports.failures(profiles) == ["code: 7 timeout, 1 HTTP 500"]
