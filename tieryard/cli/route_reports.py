"""`tieryard route replay` and `summary`: what became of the jobs that were routed, and what another catalog would have
made of them. They work on the database itself, and only read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from tieryard.catalog import load_catalog
from tieryard.cli.candidates import shown_usd
from tieryard.cli.fleet import DataDirOption, database
from tieryard.cli.printing import JsonOption, print_json
from tieryard.cli.tables import table
from tieryard.errors import UserError
from tieryard.replay import Report, Sums, notes
from tieryard.replay import replay as decide_again
from tieryard.requests import parse_duration
from tieryard.store import routes
from tieryard.store.routes import Routes

_CENT = Decimal("0.01")
"""Below it four decimals say too little."""

SinceOption = Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d.")]

_COST = ("jobs", "moved", "USD then", "USD new", "change")
_SERVICE = ("measured", "missed SLO", "predicted then", "predicted new", "quality then", "quality new")
_MOVES = ("jobs", "USD then", "USD new", "change", "quality then", "quality new")
_SUMMARY = ("routed", "share", "fallback", "explored", "deferred", "measured", "missed SLO")


def replay(
    catalog: Annotated[Path, typer.Option(help="The tieryard.yaml to try.")],
    since: SinceOption = "24h",
    limit: Annotated[int | None, typer.Option(min=1, help="So many jobs at most, the oldest ones.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """What another catalog would have made of the jobs that were routed: which would move, and what that does to cost,
    SLO and quality. Each is decided again on what was measured at its time."""
    wanted, length = load_catalog(catalog), duration(since)
    with database(data_dir) as store, Console(stderr=True).status("deciding again …") as status:
        start, end = routes.window(store, length)
        told: Callable[[int], None] = lambda done: status.update(f"deciding again … {done:,} jobs")  # noqa: E731
        report = decide_again(store, wanted, start, end, limit=limit, told=told)
    if as_json:
        print_json(_as_json(report))
    else:
        _show(Console(), report, since)


def summary(since: SinceOption = "24h", as_json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Where jobs went: by tier and deployment, with the shares of SLO fallbacks, of jobs that explored or had waited
    for a cheaper deployment, and of starts that missed their tier's SLO."""
    with database(data_dir) as store:
        found = routes.summary(store, *routes.window(store, duration(since)))
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo(f"no job was routed in the last {since}")
        return
    total = sum(row.decisions for row in found)
    cells = [(row.tier or "–", _where(row), *_figures(row, total)) for row in found]
    ends = {n for n in range(len(found) - 1) if found[n].tier != found[n + 1].tier}
    console = Console()
    console.print(table(("tier", "deployment", *_SUMMARY), cells, right=_SUMMARY, folds=("deployment",), sections=ends))
    fallbacks, explored = sum(r.fallbacks for r in found), sum(r.explored for r in found)
    said = f"{total:,} decisions in the last {since}: {_share(fallbacks, total)} SLO fallbacks"
    console.print(f"{said}, {_share(explored, total)} explored", highlight=False)


def duration(given: str) -> timedelta:
    """Raises UserError."""
    try:
        return cast("timedelta", parse_duration(given))
    except ValueError as error:
        raise UserError(f"--since {given}: {error}") from None


def _where(row: Routes) -> str:
    if row.deployment is not None:
        return row.deployment
    return "(waiting)" if row.deferred == row.decisions else "(refused, waiting)" if row.deferred else "(refused)"


def _figures(row: Routes, total: int) -> tuple[str, ...]:
    parts = (row.fallbacks, row.explored, row.deferred)
    shares = (_share(part, row.decisions) for part in parts)
    missed = _share(row.missed, row.measured)
    return f"{row.decisions:,}", _share(row.decisions, total), *shares, f"{row.measured:,}", missed


def _show(console: Console, report: Report, since: str) -> None:
    total = report.total
    if not total.jobs:
        console.print(f"no job was routed in the last {since}")
        for note in notes(report):
            console.print(f"– {note}", markup=False, highlight=False)
        return
    by_tier = [*sorted(report.tiers.items()), *([("all", total)] if len(report.tiers) > 1 else [])]
    ends = {len(by_tier) - 2}
    cost = [(name, f"{sums.jobs:,}", _share(sums.moved, sums.jobs), *money(sums)) for name, sums in by_tier]
    console.print(table(("tier", *_COST), cost, right=_COST, sections=ends))
    service = [(name, *_service(sums)) for name, sums in by_tier]
    title = "\nSLO and predicted quality"
    console.print(table(("tier", *_SERVICE), service, right=_SERVICE, sections=ends, title=title))
    if report.moves:
        moves = sorted(report.moves.items(), key=lambda item: (-item[1].jobs, item[0]))
        moved = [(*move, f"{sums.jobs:,}", *money(sums), *_qualities(sums)) for move, sums in moves]
        headers, title = ("from", "to", *_MOVES), f"\n{total.moved:,} jobs move"
        console.print(table(headers, moved, right=_MOVES, folds=("from", "to"), title=title))
    else:
        console.print("no job moves")
    for note in notes(report):
        console.print(f"– {note}", markup=False, highlight=False)


def _service(sums: Sums) -> tuple[str, ...]:
    return (
        f"{sums.measured:,}",
        _share(sums.missed, sums.measured),
        _share(sums.old_missed, sums.compared),
        _share(sums.new_missed, sums.compared),
        *_qualities(sums),
    )


def money(sums: Sums) -> tuple[str, str, str]:
    """Both sides, and the change."""
    if not sums.charged:
        return "–", "–", "–"
    change = f"{float(sums.new_usd / sums.old_usd) - 1:+.1%}" if sums.old_usd else "–"
    return _usd(sums.old_usd), _usd(sums.new_usd), change


def _usd(usd: Decimal) -> str:
    return f"{usd:,.4f}" if usd >= _CENT or not usd else shown_usd(usd)


def _qualities(sums: Sums) -> tuple[str, str]:
    if not sums.compared:
        return "–", "–"
    return f"{sums.old_quality / sums.compared:.3f}", f"{sums.new_quality / sums.compared:.3f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "total": _sums_json(report.total),
        "tiers": {name: _sums_json(sums) for name, sums in sorted(report.tiers.items())},
        "moves": [
            {"from": before, "to": after, **_sums_json(sums)} for (before, after), sums in sorted(report.moves.items())
        ],
        "unknown": report.unknown,
        "notes": list(notes(report)),
    }


def _sums_json(sums: Sums) -> dict[str, Any]:
    """Money as text; shares and means in place of what only adds up."""
    found = {name: getattr(sums, name) for name in Sums.__dataclass_fields__ if "quality" not in name}
    shown = {name: f"{value:f}" if isinstance(value, Decimal) else value for name, value in found.items()}
    for side in ("old", "new"):
        whole = getattr(sums, f"{side}_quality")
        shown[f"{side}_quality"] = whole / sums.compared if sums.compared else None
    return shown
