"""What a quality run found: figures by category, from its items' scores."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from statistics import fmean
from typing import Any

from tieryard.bench.gate import PASS_MARK
from tieryard.bench.ranking import Ranking, Standing, rank
from tieryard.bench.stats import wilson
from tieryard.golden.scorers import Counts
from tieryard.golden.scorers.structured import f1
from tieryard.store.golden import ItemScore

_MOST_REASONS = 5
_FIGURES = re.compile(r"\d+")


def figures(scores: Sequence[ItemScore]) -> dict[str, Any]:
    """Of any items, as JSON: `n` items, of which so many were answered, scored and judged; over those scored the mean
    score and the pass rate with its 95 % interval (Wilson 1927), over those answered the mean latency and cost of an
    answer. What cannot be said is None. `unscored` are the commonest reasons why there is no score, with counts; those
    that differ in figures alone are one."""
    scored = [one for one in scores if one.score is not None]
    answered = [one for one in scores if one.latency_ms is not None]
    mean_score = fmean(one.score for one in scored if one.score is not None) if scored else None
    cost_usd = sum((one.cost_usd or Decimal(0) for one in answered), Decimal(0)) / len(answered) if answered else None
    counted = [one.counts for one in scored if one.counts is not None]
    worth = None if mean_score is None or not cost_usd else mean_score / float(cost_usd)
    return {
        "n": len(scores),
        "answered": len(answered),
        "scored": len(scored),
        "judged": sum(one.judge is not None for one in scored),
        "mean_score": mean_score,
        "pass_rate": _pass_rate(scored),
        "micro_f1": f1(Counts(*(sum(column) for column in zip(*counted, strict=True)))) if counted else None,
        "latency_ms": fmean(one.latency_ms for one in answered if one.latency_ms is not None) if answered else None,
        "cost_usd": None if cost_usd is None else f"{cost_usd:.12f}",
        "quality_per_usd": worth,
        "unscored": _reasons(one.why for one in scores if one.score is None),
    }


def _reasons(given: Iterable[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for why in given:
        counts[alike := _FIGURES.sub("#", why)] += 1
        first.setdefault(alike, why)
    return {first[alike]: n for alike, n in counts.most_common(_MOST_REASONS)}


def _pass_rate(scored: Sequence[ItemScore]) -> dict[str, float] | None:
    if not scored:
        return None
    found = wilson(sum(one.score is not None and one.score >= PASS_MARK for one in scored), len(scored))
    return {"value": found.value, "low": found.low, "high": found.high}


def by_category(scores: Iterable[ItemScore]) -> dict[str, list[ItemScore]]:
    """Sorted by category."""
    found: dict[str, list[ItemScore]] = defaultdict(list)
    for one in scores:
        found[one.category].append(one)
    return dict(sorted(found.items()))


def profiles(scores: Iterable[ItemScore], golden_set: str) -> dict[str, dict[str, Any]]:
    """Dated profiles of the categories in which something was scored: `quality_score` over `n` answers, and the
    figures beside it."""
    made = {}
    for category, among in by_category(scores).items():
        found = figures(among)
        if found["mean_score"] is not None:
            kept = {name: found[name] for name in ("judged", "pass_rate", "micro_f1", "latency_ms", "cost_usd")}
            whole = {"quality_score": found["mean_score"], "n": found["scored"], "golden_set": golden_set}
            made[category] = whole | kept
    return made


def rankings(by_model: Mapping[str, Sequence[ItemScore]], *, bar: float) -> list[Ranking]:
    """One for each category, over the items that were scored. Raises UserError for a bar that is no share."""
    found: dict[str, list[Standing]] = defaultdict(list)
    for model, scores in by_model.items():
        for category, among in by_category(scores).items():
            rated = [one for one in among if one.score is not None and one.latency_ms is not None]
            if rated:
                scored = [one.score for one in rated if one.score is not None]
                latencies_ms = [one.latency_ms for one in rated if one.latency_ms is not None]
                costs_usd = [one.cost_usd or Decimal(0) for one in rated]
                found[category].append(Standing.of(model, category, scored, latencies_ms, costs_usd))
    return [rank(standings, bar=bar) for _, standings in sorted(found.items())]
