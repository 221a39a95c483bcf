"""The day as a picture: cost and misses by hour, an SVG written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.day.outcome import Outcome

_WIDTH, _PANEL, _GAP, _LEFT, _TOP = 760, 190, 60, 60, 40
_COLOURS = ("#7f7f7f", "#bcbd22", "#17becf", "#9467bd", "#d62728", "#1f77b4", "#2ca02c")


def svg(outcomes: Mapping[str, Outcome]) -> str:
    """Two panels over the hours of the day, a line a policy."""
    cost = {name: [float(usd) for usd, _ in o.by_hour()] for name, o in outcomes.items()}
    missed = {name: [100 * share for _, share in o.by_hour()] for name, o in outcomes.items()}
    height = _TOP + 2 * (_PANEL + _GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + 190} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH + 190}" height="{height}" fill="white"/>',
        *_panel("USD an hour, by tokens", cost, _TOP),
        *_panel("% of realtime and interactive jobs that missed their SLO", missed, _TOP + _PANEL + _GAP),
        *_legend(list(outcomes)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(title: str, lines: Mapping[str, Sequence[float]], top: int) -> list[str]:
    most = max((max(values) for values in lines.values()), default=0.0) or 1.0
    bottom = top + _PANEL
    parts = [f'<text x="{_LEFT}" y="{top - 8}" font-weight="bold">{escape(title)}</text>']
    for part in range(5):
        y = bottom - part * _PANEL / 4
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{part * most / 4:.3g}</text>')
    for hour in range(0, 25, 3):
        parts.append(f'<text x="{_x(hour):.1f}" y="{bottom + 16}" text-anchor="middle">{hour}:00</text>')
    for colour, values in zip(_COLOURS, lines.values(), strict=False):
        points = " ".join(f"{_x(h + 0.5):.1f},{bottom - v / most * _PANEL:.1f}" for h, v in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    return parts


def _x(hour: float) -> float:
    return _LEFT + hour / 24 * (_WIDTH - _LEFT)


def _legend(names: list[str]) -> list[str]:
    parts = []
    for i, (colour, name) in enumerate(zip(_COLOURS, names, strict=False)):
        y = _TOP + 10 + 20 * i
        parts.append(f'<rect x="{_WIDTH + 20}" y="{y - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{_WIDTH + 38}" y="{y + 1}">{escape(name)}</text>')
    return parts
