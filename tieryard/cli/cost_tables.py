"""How reports of costs are shown: tables for readers, and the same as JSON with every digit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console

from tieryard.cli.bench_reports import plain_number
from tieryard.cli.printing import shown_time
from tieryard.cli.tables import printable, table
from tieryard.costs.reporting import (
    SHARES,
    CostRow,
    Costs,
    Dimension,
    Invoice,
    InvoiceLine,
    Span,
    Utilisation,
    figures,
)
from tieryard.costs.savings import ASSUMED, CategorySavings, Comparison, Measured, Savings
from tieryard.costs.windows import Kind

HOSTS = "(hosts)"
_NONE = "–"
_NOT_MEASURED = "not measured"

LINE_COLUMNS = [field.name for field in dataclasses.fields(InvoiceLine)]
UTILISATION_COLUMNS = [
    *(f.name for f in dataclasses.fields(Utilisation) if f.name not in ("rented_s", "gpu_s")),
    "rented_hours",
    "gpu_hours",
    *(f"{part}_share" for part in SHARES),
]
SAVINGS_COLUMNS = [
    *(f.name for f in dataclasses.fields(CategorySavings)),
    "large_saved_usd",
    "large_saved_share",
    "hosted_saved_usd",
    "hosted_saved_share",
    "baseline_scored",
    "baseline_score",
]


def usd(amount: Decimal | None) -> str:
    """Six decimals, or four digits of what is less: for tables. JSON has all of them."""
    if amount is None:
        return _NONE
    if amount and abs(amount) < Decimal("0.0001"):
        return f"{Decimal(f'{amount:.4g}'):f}"
    return f"{amount:,.6f}"


def exact(amount: Decimal) -> str:
    """Every digit, two at the least."""
    text = f"{amount:f}".rstrip("0") if "." in f"{amount:f}" else f"{amount:f}."
    whole, _, digits = text.partition(".")
    sign = "-" if whole.startswith("-") else ""
    return f"{sign}${int(whole.removeprefix('-') or 0):,}.{digits.ljust(2, '0')}"


def span_as_json(span: Span) -> dict[str, Any]:
    return {"since": span.since, "until": span.until}


# --- costs by group ---------------------------------------------------------------------------------------------------


def costs_as_json(found: Costs) -> dict[str, Any]:
    return span_as_json(found.span) | {
        "group_by": [str(one) for one in found.dimensions],
        "open_windows": found.open_windows,
        "truncated": found.truncated,
        "total": row_as_json(found.total, grouped=False),
        "data": [row_as_json(row) for row in found.rows],
    }


def row_as_json(row: CostRow, *, grouped: bool = True) -> dict[str, Any]:
    by_kind = {"by_kind": {str(kind): usd for kind, usd in row.by_kind.items()}}
    return ({"group": row.group} if grouped else {}) | figures(row) | by_kind


_FIGURES = ("jobs", "tokens", "USD", "USD/1k tok", "USD/job", "USD/success")
_FEW = ("jobs", "tokens", "USD", "USD/job")
_MOST_APART = 2
"""Groups that have a column each. More share one, and have fewer figures beside them: 80 columns hold no more."""


def show_costs(console: Console, found: Costs) -> None:
    names = [str(one) for one in found.dimensions]
    if not found.rows:
        console.print(f"nothing was posted {_shown(found.span)}")
        return
    apart = len(names) <= _MOST_APART
    heads, shown = (names, _FIGURES) if apart else ([", ".join(names)], _FEW)
    rows = []
    for row in found.rows:
        group = [row.group[name] or _NONE for name in names]
        rows.append((*(group if apart else [", ".join(group)]), *_cells(row, shown)))
    rows.append(("total", *("" for _ in heads[1:]), *_cells(found.total, shown)))
    folds = [name for name in heads if name != "day"]
    console.print(table([*heads, *shown], rows, right=shown, folds=folds, sections=[len(rows) - 2]))
    if not apart:
        console.print("the other unit costs are in --json and --csv")
    if Dimension.KIND not in found.dimensions:
        _show_kinds(console, found.total.by_kind)
    console.print(f"total {exact(found.total.cost_usd)} {_shown(found.span)}", soft_wrap=True)
    if found.open_windows:
        estimated = exact(found.total.estimated_usd)
        console.print(
            f"~ {windows(found.open_windows)} not closed yet: {estimated} of it is an estimate, as if they ended now",
            soft_wrap=True,
        )


def _cells(row: CostRow, wanted: Sequence[str]) -> tuple[str, ...]:
    mark = "~" if row.estimated_usd else ""
    cells = {
        "jobs": f"{row.jobs:,}",
        "tokens": f"{row.prompt_tokens + row.completion_tokens:,}",
        "USD": mark + usd(row.cost_usd),
        "USD/1k tok": _unit(row.usd_per_1k_tokens),
        "USD/job": _unit(row.usd_per_job),
        "USD/success": _unit(row.usd_per_successful_job),
    }
    return tuple(cells[name] for name in wanted)


def _unit(amount: Decimal | None) -> str:
    """Three significant digits: JSON has all of them."""
    if amount is None:
        return _NONE
    return f"{amount:,.2f}" if abs(amount) >= 100 else f"{Decimal(f'{amount:.3g}').normalize():f}"


def _show_kinds(console: Console, by_kind: dict[Kind, Decimal]) -> None:
    rows = [(str(kind), usd(amount)) for kind, amount in by_kind.items() if amount]
    if len(rows) > 1:
        console.print(table(("kind", "USD"), rows, right=("USD",)))


def _shown(span: Span) -> str:
    return f"from {shown_time(span.since)} to {shown_time(span.until)}"


def windows(n: int) -> str:
    return f"{n:,} window{'s' if n != 1 else ''}"


# --- utilisation ------------------------------------------------------------------------------------------------------


def utilisation_as_json(one: Utilisation) -> dict[str, Any]:
    known = {name: value for name, value in dataclasses.asdict(one).items() if name not in ("rented_s", "gpu_s")}
    hours = {"rented_hours": one.hours, "gpu_hours": one.gpu_hours}
    return known | hours | {f"{part}_share": one.share(part) for part in SHARES}


_UTILISATION = ("hours", "GPU h", "rent USD", "used", "retry", "bench", "warm-up", "idle")


def show_utilisation(console: Console, found: Sequence[Utilisation], span: Span) -> None:
    if not found:
        console.print(f"nothing was rented {_shown(span)}")
        return
    rows = [
        (
            one.deployment or HOSTS,
            plain_number(one.hours),
            plain_number(one.gpu_hours),
            ("~" if one.open_windows else "") + usd(one.rent_usd),
            *(_share(one.share(part) if one.deployment else None) for part in SHARES if part != "overhead"),
        )
        for one in found
    ]
    console.print(table(("deployment", *_UTILISATION), rows, right=_UTILISATION, folds=("deployment",)))
    overhead = sum((one.overhead_usd for one in found), Decimal(0))
    rent = sum((one.rent_usd for one in found), Decimal(0))
    console.print(
        f"rent {exact(rent)} {_shown(span)}, of it {exact(overhead)} overhead of hosts that serve no model",
        soft_wrap=True,
    )
    if late := sum((one.adjustment_usd for one in found), Decimal(0)):
        console.print(f"adjustments for charges that came after the close: {exact(late)}", soft_wrap=True)
    if any(one.open_windows for one in found):
        console.print("~ with windows not closed yet: rent, warm-up and idle as if they ended now", soft_wrap=True)


def _share(share: Decimal | None) -> str:
    return _NONE if share is None else f"{share:.1%}"


# --- savings ----------------------------------------------------------------------------------------------------------


def category_as_json(found: Savings, row: CategorySavings) -> dict[str, Any]:
    large, hosted, baseline = found.large([row]), found.hosted([row]), found.baseline_of(row.category)
    return dataclasses.asdict(row) | {
        "large_saved_usd": large.saved_usd,
        "large_saved_share": large.saved_share,
        "hosted_saved_usd": hosted.saved_usd,
        "hosted_saved_share": hosted.saved_share,
        "baseline_scored": baseline.n if baseline else 0,
        "baseline_score": baseline.score if baseline else None,
    }


def savings_as_json(found: Savings) -> dict[str, Any]:
    quality = found.quality
    return {
        "baseline": found.baseline,
        "large": _comparison(found.large()),
        "hosted": _comparison(found.hosted()),
        "quality": None if quality is None else {"routed": _measured(quality[0]), "baseline": _measured(quality[1])},
        "categories": [category_as_json(found, row) for row in found.rows],
        "assumptions": list(ASSUMED),
    }


def _comparison(one: Comparison) -> dict[str, Any]:
    return dataclasses.asdict(one) | {"saved_usd": one.saved_usd, "saved_share": one.saved_share}


def _measured(one: Measured) -> dict[str, Any]:
    return {"n": one.n, "score": one.score}


_NO_BASELINE = "the catalog needs a `baseline`, or a large deployment, before the jobs run"
_NO_HOSTED = "the catalog's `price_book` needs hosted models before the jobs run"
_SAVINGS = ("jobs", "USD", "large USD", "saved", "hosted USD", "saved", "quality (n)", "large (n)")


def show_savings(console: Console, found: Savings, span: Span) -> None:
    if not found.rows:
        console.print(f"no job was charged {_shown(span)}")
        return
    rows = [_savings_cells(found, row) for row in found.rows]
    console.print(table(("category", *_SAVINGS), rows, right=_SAVINGS, folds=("category",)))
    name = f"always-large ({found.baseline})" if found.baseline else "always-large"
    console.print(_sentence(name, found.large(), lacks=_NO_BASELINE), soft_wrap=True)
    console.print(_sentence("the cheapest hosted equivalent", found.hosted(), lacks=_NO_HOSTED), soft_wrap=True)
    console.print(_quality(found), soft_wrap=True)
    console.print("\nassumed:")
    for line in ASSUMED:
        console.print(f"- {line}", soft_wrap=True)


def _savings_cells(found: Savings, row: CategorySavings) -> tuple[str, ...]:
    large, hosted, baseline = found.large([row]), found.hosted([row]), found.baseline_of(row.category)
    return (
        row.category or _NONE,
        f"{row.jobs:,}",
        usd(row.cost_usd),
        usd(large.instead_usd) if large.jobs else _NONE,
        _share(large.saved_share),
        usd(hosted.instead_usd) if hosted.jobs else _NONE,
        _share(hosted.saved_share),
        _NONE if row.score is None else f"{row.score:.3f} ({row.scored:,})",
        _NONE if baseline is None else f"{baseline.score:.3f} ({baseline.n:,})",
    )


def _sentence(versus: str, one: Comparison, *, lacks: str) -> str:
    if not one.jobs:
        return f"{versus}: nothing was recorded to compare with; {lacks}"
    of = "" if one.jobs == one.of else f" of {one.of:,}"
    share = "" if one.saved_share is None else f", {one.saved_share:.1%}"
    return (
        f"{versus}: {one.jobs:,}{of} jobs would have cost {exact(one.instead_usd)}; they cost {exact(one.cost_usd)}: "
        f"saved {exact(one.saved_usd)}{share}"
    )


def _quality(found: Savings) -> str:
    if (both := found.quality) is not None:
        routed, large = both
        return (
            f"quality where both are measured: routed {routed.score:.3f} (n = {routed.n:,} scored answers), "
            f"{found.baseline} {large.score:.3f} (n = {large.n:,} golden items)"
        )
    scored = sum(row.scored for row in found.rows)
    lacking = "no answer was scored" if not scored else "the baseline has no quality run where answers were scored"
    return (
        f"quality: {_NOT_MEASURED} on both sides in any category: {lacking}. What was saved says nothing of the answers"
    )


# --- invoices ---------------------------------------------------------------------------------------------------------


def line_as_json(line: InvoiceLine) -> dict[str, Any]:
    return dataclasses.asdict(line)


def invoice_as_json(found: Invoice) -> dict[str, Any]:
    return {
        "tenant": found.tenant,
        "month": found.month,
        **span_as_json(found.span),
        "complete": found.complete,
        "lines": [line_as_json(line) for line in found.lines],
        "total_usd": found.total_usd,
    }


def show_invoice(console: Console, found: Invoice) -> None:
    console.print(f"{found.tenant}, {found.month} (UTC)", markup=False)
    if found.lines:
        headers = ("for", "tier", "deployment", "jobs", "prompt", "cached", "completion", "amount")
        rows = [
            (
                "jobs" if line.kind == Kind.INFERENCE else line.kind,
                line.tier or _NONE,
                line.deployment or _NONE,
                *(f"{n:,}" for n in (line.jobs, line.prompt_tokens, line.cached_tokens, line.completion_tokens)),
                exact(line.amount_usd),
            )
            for line in found.lines
        ]
        console.print(table(headers, rows, right=headers[3:], folds=("tier", "deployment")))
    for line in found.lines:
        if line.note is not None:
            console.print(f"{exact(line.amount_usd)}: {printable(line.note)}", markup=False, soft_wrap=True)
    console.print(f"total {exact(found.total_usd)}")
    if not found.complete:
        console.print("the month is not over: more may come")
