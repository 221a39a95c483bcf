"""Ranks models by quality for money, above a quality bar, and draws the frontier of quality and cost.

A model is above the bar when its pass rate is *shown* to be: the low end of the interval reaches it. Its mean alone
would crown whoever was lucky on few items, and quality ÷ cost alone would crown cheap garbage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from itertools import pairwise, product
from math import cos, inf, radians, sin
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from tieryard.bench.gate import PASS_MARK
from tieryard.bench.stats import Interval, wilson
from tieryard.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png")
_GREEN, _GREY = "#0b6e4f", "#8a8a8a"
_TURNS = (0, 180, 90, 270, 30, 150, 210, 330, 60, 120, 240, 300)  # degrees: beside a point, above it, below it, between

Pixels = tuple[float, float]


class _Box(NamedTuple):
    """In pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def middle(self) -> Pixels:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def overlaps(self, other: _Box) -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


@dataclass(frozen=True, slots=True)
class Standing:
    """What one model reached on one category's items: means over n answers."""

    model: str
    category: str
    n: int
    mean_score: float
    pass_rate: Interval
    latency_ms: float
    cost_usd: Decimal

    @classmethod
    def of(
        cls,
        model: str,
        category: str,
        scores: Sequence[float],
        latencies_ms: Sequence[float],
        costs_usd: Sequence[Decimal],
        *,
        pass_mark: float = PASS_MARK,
    ) -> Standing:
        """From the answers' scores, latencies and costs, in the same order. Raises UserError where there are none."""
        n = len(scores)
        if not n or not n == len(latencies_ms) == len(costs_usd):
            raise UserError(
                f"{n} scores, {len(latencies_ms)} latencies and {len(costs_usd)} costs: each answer has one of each",
                param=f"{model}, {category}",
            )
        passed = wilson(sum(score >= pass_mark for score in scores), n)
        cost_usd = sum(costs_usd, Decimal(0)) / n
        return cls(model, category, n, fmean(scores), passed, fmean(latencies_ms), cost_usd)

    @property
    def quality_per_usd(self) -> Decimal | None:
        """Mean score ÷ mean cost of an answer; None where answers cost nothing."""
        return Decimal(repr(self.mean_score)) / self.cost_usd if self.cost_usd else None


@dataclass(frozen=True, slots=True)
class Place:
    """A rank from 1; models of the same quality per dollar share it."""

    rank: int
    standing: Standing


@dataclass(frozen=True, slots=True)
class Below:
    """A model that is not ranked, and why."""

    standing: Standing
    why: str


@dataclass(frozen=True, slots=True)
class Ranking:
    category: str
    bar: float
    places: tuple[Place, ...]
    below: tuple[Below, ...]

    @property
    def sentence(self) -> str:
        if not self.places:
            return f"{self.category}: no model is shown to reach the bar of {self.bar:.0%}"
        best = [place.standing.model for place in self.places if place.rank == 1]
        return f"{self.category}: {' and '.join(best)} of {len(self.places)} above the bar of {self.bar:.0%}"


def rank(standings: Iterable[Standing], *, bar: float) -> Ranking:
    """Models of one category whose pass rate's interval begins at `bar` or above, by quality per dollar.

    Free models come first, by quality. Ties share a rank and are listed by quality, latency and name. The others are
    listed by pass rate. Raises UserError for no standings, several categories, a model twice, or an impossible bar.
    """
    given = list(standings)
    _check(given, bar)
    above = sorted((one for one in given if one.pass_rate.low >= bar), key=_order)
    places: list[Place] = []
    for at, one in enumerate(above, start=1):
        tied = places and _worth(places[-1].standing) == _worth(one)
        places.append(Place(places[-1].rank if tied else at, one))
    rest = sorted((one for one in given if one.pass_rate.low < bar), key=lambda one: (-one.pass_rate.value, one.model))
    return Ranking(given[0].category, bar, tuple(places), tuple(Below(one, _why(one, bar)) for one in rest))


def _check(standings: Sequence[Standing], bar: float) -> None:
    if not 0 <= bar <= 1:
        raise UserError(f"is {bar:g}, which is no pass rate from 0 to 1", param="bar")
    if not standings:
        raise UserError("there are no standings to rank", param="standings")
    categories = sorted({one.category for one in standings})
    if len(categories) > 1:
        raise UserError(f"are of {', '.join(categories)}: rank one category at a time", param="standings")
    models = [one.model for one in standings]
    for one in standings:
        if models.count(one.model) > 1:
            raise UserError("stands twice in one category", param=f"model {one.model}")
        if one.cost_usd < 0:
            raise UserError(f"has a cost of {one.cost_usd}", param=f"model {one.model}")


def _worth(one: Standing) -> tuple[Decimal, Decimal]:
    """What the rank goes by. A free model has no quality per dollar: it stands before all others, by quality."""
    value = one.quality_per_usd
    return (Decimal(1), Decimal(repr(one.mean_score))) if value is None else (Decimal(0), value)


def _order(one: Standing) -> tuple[Decimal, Decimal, float, float, str]:
    free, value = _worth(one)
    return -free, -value, -one.mean_score, one.latency_ms, one.model


def _why(one: Standing, bar: float) -> str:
    if one.pass_rate.value < bar:
        return f"passes {one.pass_rate.value:.1%}, below the bar of {bar:.0%}"
    return (
        f"passes {one.pass_rate.value:.1%} of {one.n} items, which may be {one.pass_rate.low:.1%} of all: "
        f"not shown to reach the bar of {bar:.0%}"
    )


def frontier(standings: Iterable[Standing]) -> tuple[Standing, ...]:
    """Those that no other one equals or betters in both mean score and cost, and betters in one; from cheap to dear."""
    best: list[Standing] = []
    for one in sorted(standings, key=lambda one: (one.cost_usd, -one.mean_score, one.model)):
        same = bool(best) and (one.cost_usd, one.mean_score) == (best[-1].cost_usd, best[-1].mean_score)
        if not best or same or one.mean_score > best[-1].mean_score:
            best.append(one)
    return tuple(best)


def picture(ranking: Ranking, path: Path) -> None:
    """Draws mean score over cost, and the frontier of the ranked models: SVG or PNG by the file's ending.

    Raises UserError for another ending, and where matplotlib (the extra `pictures`) is missing.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"a picture ends in {' or '.join(ENDINGS)}, not '{path.suffix}'", param="picture")
    try:
        matplotlib = import_module("matplotlib")
    except ModuleNotFoundError:
        raise UserError("a picture needs matplotlib: pip install 'tieryard[pictures]'") from None
    svg = path.suffix.lower() == ".svg"
    with matplotlib.rc_context({"svg.hashsalt": "tieryard"}):  # the same ranking gives the same file
        _drawn(ranking).savefig(path, dpi=150, metadata={"Date": None} if svg else None)


def _drawn(ranking: Ranking) -> Figure:
    from matplotlib.figure import Figure

    ranked, below = [place.standing for place in ranking.places], [one.standing for one in ranking.below]
    line = frontier(ranked)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.step(_costs(line), _scores(line), where="post", color=_GREEN, alpha=0.5, label="frontier")
    axes.plot(_costs(ranked), _scores(ranked), "o", color=_GREEN, label=f"shown to pass {ranking.bar:.0%} or more")
    axes.plot(_costs(below), _scores(below), "o", color=_GREY, fillstyle="none", label="not shown to")
    _scale([*ranked, *below], axes)
    axes.set_xlabel("USD for 1,000 answers")
    axes.set_ylabel("quality (mean score)")
    axes.set_title(f"{ranking.category}: quality and cost", fontsize=11)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    _label([*ranked, *below], line, axes)
    return figure


def _costs(standings: Iterable[Standing]) -> list[float]:
    return [float(1000 * one.cost_usd) for one in standings]


def _scores(standings: Iterable[Standing]) -> list[float]:
    return [one.mean_score for one in standings]


def _scale(standings: Sequence[Standing], axes: Axes) -> None:
    """A logarithmic axis where costs lie far apart; free models stand at its left end. Room for labels all around."""
    costs = sorted(cost for cost in _costs(standings) if cost)
    axes.margins(0.15, 0.2)
    if costs and costs[-1] > 8 * costs[0]:
        if len(costs) == len(standings):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=costs[0])
            axes.set_xlim(-0.3 * costs[0], costs[-1] * 4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 0 else "")
    axes.autoscale_view()


def _label(standings: Sequence[Standing], line: Sequence[Standing], axes: Axes) -> None:
    """Names each point at the nearest place around it that is free of names, points and the frontier."""
    figure: Any = axes.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names do not move what they were placed around
    points = [_pixels(one, axes) for one in standings]
    solid = [_box(point, (9, 9)) for point in points]
    lines = _steps([_pixels(one, axes) for one in line])
    for one, point in zip(standings, points, strict=True):
        style: dict[str, Any] = {"fontsize": 9, "fontweight": "bold" if one in line else "normal"}
        probe = figure.text(0, 0, one.model, **style)
        size = probe.get_window_extent()
        probe.remove()
        place = _free(point, (size.width + 6, size.height + 4), solid, lines, _Box(*axes.bbox.extents))
        solid.append(place)
        lines += _leader(point, place)
        if not place.overlaps(_box(point, (20, 20))):
            style["arrowprops"] = {"arrowstyle": "-", "color": _GREY, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
        middle = place.middle
        axes.annotate(
            one.model,
            (float(1000 * one.cost_usd), one.mean_score),
            ((middle[0] - point[0]) * 72 / figure.dpi, (middle[1] - point[1]) * 72 / figure.dpi),
            textcoords="offset points",
            ha="center",
            va="center",
            **style,
        )


def _leader(point: Pixels, place: _Box) -> list[_Box]:
    """Small boxes on the line from a point to its name, but for its ends."""
    across, up = place.middle[0] - point[0], place.middle[1] - point[1]
    return [_box((point[0] + across * at / 24, point[1] + up * at / 24), (2, 2)) for at in range(5, 20)]


def _pixels(one: Standing, axes: Axes) -> Pixels:
    x, y = axes.transData.transform((float(1000 * one.cost_usd), one.mean_score))
    return float(x), float(y)


def _steps(line: Sequence[Pixels]) -> list[_Box]:
    """The frontier's treads and risers."""
    treads = [((a[0] + b[0]) / 2, a[1], b[0] - a[0], 3.0) for a, b in pairwise(line)]
    risers = [(b[0], (a[1] + b[1]) / 2, 3.0, b[1] - a[1]) for a, b in pairwise(line)]
    return [_box((x, y), (width, height)) for x, y, width, height in treads + risers]


def _box(middle: Pixels, size: Pixels) -> _Box:
    (x, y), (width, height) = middle, size
    return _Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _free(point: Pixels, size: Pixels, solid: Sequence[_Box], lines: Sequence[_Box], within: _Box) -> _Box:
    """The nearest box around a point that hides nothing, and whose leader passes no name or point; else the best."""
    least, best = inf, _box((point[0], point[1] + size[1]), size)
    for gap, turn in product((6, 12, 20, 32, 48, 68, 92, 120, 160, 220), _TURNS):
        across, up = cos(radians(turn)), sin(radians(turn))
        box = _box((point[0] + (size[0] / 2 + gap) * across, point[1] + (size[1] / 2 + gap) * up), size)
        if box.x0 < within.x0 or box.x1 > within.x1 or box.y0 < within.y0 or box.y1 > within.y1:
            continue
        leader = _leader(point, box)
        passed = sum(any(other.overlaps(part) for part in leader) for other in solid)
        overlaps = 10 * sum(box.overlaps(other) for other in (*solid, *lines)) + passed
        if overlaps < least:
            least, best = overlaps, box
        if not overlaps:
            break
    return best
