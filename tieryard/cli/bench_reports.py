"""What a benchmark has found, as tables: speed and its percentiles, a search's probes, scores, and wins of two runs."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from tieryard.cli.tables import FittedTable, table

_SPREADS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "latency_ms": "E2E"}
_PERCENTILES = ("p50", "p90", "p95", "p99")


def speeds(profiles: dict[str, dict[str, Any]]) -> FittedTable:
    """The figures that matter most, by category."""
    headers = ("category", "n", "errors", "TTFT p50", "p95", "TPOT p50", "p95 ", "E2E p95", "tok/s", "USD/1k")
    rows = [
        (
            category,
            str(found["n"]),
            f"{found['error_rate']:.1%}",
            _ms(found["ttft_ms"], "p50"),
            _ms(found["ttft_ms"], "p95"),
            _ms(found["tpot_ms"], "p50"),
            _ms(found["tpot_ms"], "p95"),
            _ms(found["latency_ms"], "p95"),
            _number(found["output_tps"]),
            "–" if found["cost_per_1k"] is None else f"{float(found['cost_per_1k']):.6f}",
        )
        for category, found in profiles.items()
    ]
    return table(headers, rows, right=[name.strip() for name in headers[1:]], folds=("category",))


def percentiles(profiles: dict[str, dict[str, Any]]) -> FittedTable:
    """Every time's spread, in milliseconds, by category."""
    headers = ("category", "ms", "n", "mean", *_PERCENTILES)
    rows, ends = [], []
    for category, found in profiles.items():
        for name, shown in _SPREADS.items():
            spread = found[name]
            n = "–" if spread is None else f"{spread['n']:,}"
            first = category if name == "ttft_ms" else ""
            rows.append((first, shown, n, *(_ms(spread, part) for part in ("mean", *_PERCENTILES))))
        ends.append(len(rows) - 1)
    return table(headers, rows, right=headers[2:], folds=("category",), sections=ends[:-1])


def throughputs(profiles: dict[str, dict[str, Any]], origins: dict[str, dict[str, int]]) -> FittedTable:
    """What came through by category, and from where the requests were."""
    headers = ("category", "goodput", "met/s", "answers/s", "tokens in", "tokens out", "requests from")
    rows = []
    for category, found in profiles.items():
        good = found["goodput"]
        rows.append(
            (
                category,
                "–" if good is None else f"{good['met'] / good['n']:.1%}",
                _number(None if good is None else good["per_s"]),
                _number(found["requests_per_s"]),
                _number(found["prompt_tokens"]),
                _number(found["output_tokens"]),
                ", ".join(f"{origin} {n:,}" for origin, n in origins.get(category, {}).items()),
            )
        )
    return table(headers, rows, right=headers[1:-1], folds=("category", "requests from"))


def failures(profiles: dict[str, dict[str, Any]]) -> list[str]:
    """How requests failed, by category."""
    return [
        f"{category}: {', '.join(f'{n:,} {kind}' for kind, n in found['errors'].items())}"
        for category, found in profiles.items()
        if found["errors"]
    ]


def probes(found: Iterable[dict[str, Any]]) -> FittedTable:
    headers = ("requests/s", "n", "met all SLOs", "")
    rows = [(f"{one['rate_per_s']:.3g}", str(one["n"]), f"{one['share']:.1%}", one["why"]) for one in found]
    return table(headers, rows, right=headers[:3])


def scores(report: dict[str, Any]) -> FittedTable:
    """A quality run's, by category and over all."""
    headers = ("category", "n", "scored", "judged", "score", "pass rate", "95 %", "ms", "USD/1k", "score/USD")
    parts = {**report["categories"], "all": report["whole"]}
    rows = [(name, *_scored(one)) for name, one in parts.items()]
    right = [name for name in headers[1:] if name != "95 %"]
    return table(headers, rows, right=right, folds=("category",), sections=(len(rows) - 2,))


def scored_says(report: dict[str, Any]) -> list[str]:
    """What the table of scores does not."""
    whole = report["whole"]
    said = [f"golden set {report['golden_set']}, hash {report['hash'][:12]}"]
    if report.get("judge"):
        said[0] += f"; judge {report['judge']}, for ${report['judge_cost_usd']} more"
    if whole["micro_f1"] is not None:
        said.append(f"micro F1 {whole['micro_f1']:.3f}")
    said += [f"{n:,} without a score: {why}" for why, n in whole["unscored"].items()]
    return said + list(report.get("advice") or [])


def wins(report: dict[str, Any]) -> FittedTable:
    """Of two runs side by side, by category and over all."""
    figures = ("pairs", "judged", "a wins", "b wins", "ties", "consistent")
    rows = [
        (
            category,
            str(one["pairs"]),
            str(one["judged"]),
            _share(one["wins_a"], one["a"]),
            _share(one["wins_b"], one["b"]),
            str(one["ties"]),
            "–" if one["swaps"] is None else f"{one['swaps']['consistent']['value']:.0%}",
        )
        for category, one in {**report["categories"], "all": report["whole"]}.items()
    ]
    return table(("category", *figures), rows, right=figures, folds=("category",))


def sides(report: dict[str, Any]) -> str:
    """Whose runs a comparison is of, and who judged them."""
    named = [f"{side} is {report[side]['deployment']} ({report[side]['benchmark']})" for side in ("a", "b")]
    return f"{', '.join(named)}; judge {report['judge']}, cost ${report['cost_usd']}"


def wins_say(report: dict[str, Any]) -> list[str]:
    faults = [f"{n} without a verdict: {fault}" for fault, n in report.get("faults", {}).items()]
    return [*report.get("says", []), *faults]


def plain_number(value: float | Decimal) -> str:
    """Four significant digits, never an exponent."""
    return f"{value:,.2f}" if value >= 100 else f"{Decimal(f'{value:.4g}').normalize():f}"


def _scored(one: dict[str, Any]) -> tuple[str, ...]:
    rate, cost, worth = one["pass_rate"], one["cost_usd"], one["quality_per_usd"]
    return (
        f"{one['n']:,}",
        f"{one['scored']:,}",
        f"{one['judged']:,}",
        "–" if one["mean_score"] is None else f"{one['mean_score']:.3f}",
        "–" if rate is None else f"{rate['value']:.1%}",
        "–" if rate is None else f"{rate['low']:.1%}–{rate['high']:.1%}",
        "–" if one["latency_ms"] is None else f"{one['latency_ms']:,.0f}",
        "–" if cost is None else plain_number(1000 * Decimal(cost)),
        "–" if worth is None else f"{worth:,.0f}",
    )


def _share(won: int, interval: dict[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{won} ({interval['low']:.0%}–{interval['high']:.0%})"


def _ms(spread: dict[str, float] | None, part: str) -> str:
    return "–" if spread is None else f"{spread[part]:,.0f}" if spread[part] >= 10 else f"{spread[part]:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
