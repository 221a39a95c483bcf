"""Costs per day as stacked bars, SVG or PNG by the file's ending. Needs the extra `pictures`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tieryard.costs.reporting import CostRow, Costs, Dimension
from tieryard.errors import RequestError, UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png")
_COLORS = ("#0b6e4f", "#c05746", "#d9a441", "#3d6b99", "#7a5195", "#5f8f3f", "#b0729b", "#4aa3a2", "#8a6d3b")
_GREY = "#8a8a8a"
_MOST = len(_COLORS)
_REST = "others"
_TICKS = 14
_LONGEST = 50  # letters of a name
_WIDTH_IN = 8.0
_SIGN_IN, _LETTER_IN = 0.6, 0.1  # of a name in the legend: its patch with the space around, and its widest letters


def stacking(path: Path, dimensions: Sequence[Dimension]) -> Dimension | None:
    """What the days' bars are made of; None: of one part. Raises UserError for another ending, and where there are no
    days, or more than one thing beside them."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"a picture ends in {' or '.join(ENDINGS)}, not '{path.suffix}'", param="--picture")
    others = [one for one in dimensions if one is not Dimension.DAY]
    if len(others) == len(dimensions) or len(others) > 1:
        raise RequestError("a picture is of days and one thing more, such as day,deployment or day,kind", param="--by")
    return others[0] if others else None


def draw(found: Costs, path: Path) -> None:
    """Raises UserError as `stacking` does, where a report has more rows than were read, and without matplotlib."""
    by = stacking(path, found.dimensions)
    if found.truncated:
        raise UserError("too many groups for a picture: ask for less time, or group by less", param="--by")
    try:
        matplotlib = import_module("matplotlib")
    except ModuleNotFoundError:
        raise UserError("a picture needs matplotlib: pip install 'tieryard[pictures]'") from None
    svg = path.suffix.lower() == ".svg"
    with matplotlib.rc_context({"svg.hashsalt": "tieryard"}):  # the same costs give the same file
        figure_of(found, by).savefig(path, dpi=150, metadata={"Date": None} if svg else None)


def layers(rows: Iterable[CostRow], by: Dimension | None) -> dict[str, dict[date, float]]:
    """USD by part and day: the dearest parts first, all beyond the ninth as one."""
    parts: dict[str, dict[date, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        name = "cost" if by is None else row.group[by] or f"no {by}"
        parts[name][date.fromisoformat(str(row.group[Dimension.DAY]))] += float(row.cost_usd)
    ranked = sorted(parts, key=lambda name: (-sum(map(abs, parts[name].values())), name))
    kept = {name: dict(parts[name]) for name in ranked[:_MOST]}
    rest: dict[date, float] = defaultdict(float)
    for name in ranked[_MOST:]:
        for day, usd in parts[name].items():
            rest[day] += usd
    return kept | ({_REST: dict(rest)} if rest else {})


def figure_of(found: Costs, by: Dimension | None) -> Figure:
    """The picture, not drawn yet. Its days are one bar each, of the parts that `by` names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, 5), layout="constrained")
    axes = figure.subplots()
    days = _days(found)
    parts = layers(found.rows, by)
    _stack(axes, days, parts)
    axes.axhline(0, color="black", linewidth=0.6)
    step = -(-len(days) // _TICKS)
    axes.set_xticks(range(0, len(days), step), [f"{day:%m-%d}" for day in days[::step]], fontsize=9)
    axes.set_ylabel("USD a day")
    about = f" by {by}" if by else ""
    mark = "\nwhat windows that are not closed owe is an estimate" if found.total.estimated_usd else ""
    axes.set_title(f"Costs{about}, {days[0]} to {days[-1]} (UTC){mark}", fontsize=11)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    if parts:
        figure.legend(loc="outside lower center", ncols=_columns(parts), fontsize=9, frameon=False)
    return figure


def _label(name: str) -> str:
    shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
    return shown if not shown.startswith("_") else f" {shown}"  # matplotlib hides labels that begin so


def _columns(names: Collection[str]) -> int:
    """As many as the longest name leaves room for."""
    each_in = _SIGN_IN + _LETTER_IN * min(_LONGEST, max(map(len, names)))
    return max(1, min(4, len(names), int(_WIDTH_IN / each_in)))


def _days(found: Costs) -> list[date]:
    """All of the report's, those without costs too."""
    first = found.span.since.date()
    last = max(first, (found.span.until - timedelta(microseconds=1)).date())
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _stack(axes: Axes, days: Sequence[date], parts: Mapping[str, Mapping[date, float]]) -> None:
    """What is below zero, such as an idle share where the standard price was beaten, hangs from the axis."""
    above, below = [0.0] * len(days), [0.0] * len(days)
    for number, (name, by_day) in enumerate(parts.items()):
        usd = [by_day.get(day, 0.0) for day in days]
        bottoms = [below[i] if value < 0 else above[i] for i, value in enumerate(usd)]
        color = _GREY if name in (_REST, "idle") else _COLORS[number % len(_COLORS)]
        label = _label(name)
        axes.bar(range(len(days)), usd, 0.8, bottom=bottoms, color=color, label=label)
        for i, value in enumerate(usd):
            (below if value < 0 else above)[i] += value
    low, high = min(below), max(above)
    room = 0.05 * ((high - low) or 1)
    axes.set_ylim(low - room if low else 0, high + room)
