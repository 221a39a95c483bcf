"""What the planning commands print: tables in 80 columns, each followed by what it assumes; or one object of JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from rich.console import Console

from tieryard.catalog import Price
from tieryard.catalog.price_book import HostedPrice, PriceBook, PrintedLimits
from tieryard.cli.tables import printable, table
from tieryard.costs.ownership import Comparison, Line, Option, Rent
from tieryard.costs.planning import DAYS_A_MONTH, Breakeven, Needed, Throughput, Workload, saved_share
from tieryard.costs.price_book import EXAMPLE

_LIMITS = ("requests_per_minute", "tokens_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
_LIST_PRICES = "list prices: no discount, no tax, no cached input, no failed request that is paid twice"
_MONTH = f"a month has {DAYS_A_MONTH} days"


def usd(amount: Decimal) -> str:
    """To the cent; a price below a cent in full."""
    sign, size = "-" if amount < 0 else "", abs(amount)
    return f"{sign}${size.normalize():f}" if 0 < size < Decimal("0.01") else f"{sign}${size:,.2f}"


def _price_of(amount: Decimal | None) -> str:
    """With all its digits, two at the least."""
    if amount is None:
        return "–"
    return usd(amount) if amount == amount.quantize(Decimal("0.01")) else f"${amount.normalize():f}"


def _share(part: Decimal) -> str:
    return f"{part * 100:.1f} %"


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(printable(text), markup=False, highlight=False, style=style)


def _assume(console: Console, assumptions: Iterable[str]) -> None:
    console.rule("assumes", align="left")
    for one in assumptions:
        _say(console, f"– {one}")


def _each(workload: Workload) -> str:
    return f"{workload.input_tokens:,} tokens in and {workload.output_tokens:,} out"


@dataclass(frozen=True, slots=True)
class Estimated:
    """`given`: prices from the command line; `rows`: models to compare; `known`: all whose limits may be shown."""

    workload: Workload
    peak_factor: Decimal
    needed: Needed
    given: Price | None
    rows: list[HostedPrice]
    known: list[HostedPrice]
    book: Path
    day: date

    @property
    def assumptions(self) -> list[str]:
        found = [
            _MONTH,
            f"every query has {_each(self.workload)}, as the model's own tokenizer counts them",
            _LIST_PRICES,
            f"the busiest minute has {self.peak_factor:f} times the day's average (--peak-factor)",
            "limits are those of one account at the usage tier shown; yours are in your provider's console",
        ]
        return [*found, f"prices of {called(self.book)} that hold on {self.day}"]

    def _models(self) -> list[dict[str, Any]]:
        """Cheapest first; those without an output price last."""
        found = []
        for row in self.rows:
            known = row.output_usd_per_1m is not None and row.doubt is None
            found.append(
                {
                    "name": row.name,
                    "input_usd_per_1m": row.input_usd_per_1m,
                    "output_usd_per_1m": row.output_usd_per_1m,
                    "month_usd": self.workload.month_usd(row.price()) if known else None,
                    "status": row.status,
                    "source": row.source,
                }
            )
        return sorted(found, key=lambda one: (one["month_usd"] is None, one["month_usd"] or 0, one["name"]))

    def as_json(self) -> dict[str, Any]:
        limits = [
            {"name": row.name, **row.limits.model_dump(), "too_low_by": self.needed.beyond(row.limits)}
            for row in self.known
            if row.limits is not None
        ]
        return {
            "workload": self.workload,
            "month_usd": None if self.given is None else self.workload.month_usd(self.given),
            "models": self._models(),
            "peak_factor": self.peak_factor,
            "needed_per_minute": {**_parts(self.needed), "tokens": self.needed.tokens},
            "limits": limits,
            "assumptions": self.assumptions,
        }

    def show(self, console: Console) -> None:
        _say(console, f"{self.workload.daily_queries:,} queries a day, {_each(self.workload)}", style="bold")
        if self.given is not None:
            into, out = _price_of(self.given.input_usd_per_1m), _price_of(self.given.output_usd_per_1m)
            _say(console, f"{usd(self.workload.month_usd(self.given))} a month at {into} in and {out} out per million")
        if self.rows:
            console.print()
            heads = ("in per 1M", "out per 1M", "a month")
            cells = [
                (
                    one["name"],
                    _price_of(one["input_usd_per_1m"]),
                    _price_of(one["output_usd_per_1m"]),
                    "–" if one["month_usd"] is None else usd(one["month_usd"]),
                    one["status"].replace("_", " "),
                )
                for one in self._models()
            ]
            console.print(table(("model", *heads, "status"), cells, right=heads, folds=("model",)))
        console.print()
        console.print(self._limits())
        _assume(console, self.assumptions)

    def _limits(self) -> Any:
        heads = ("requests", "tokens", "in", "out")
        needed = (self.needed.requests, self.needed.tokens, self.needed.input_tokens, self.needed.output_tokens)
        rows = [("needed", "", *(f"{count:,}" for count in needed), "")]
        rows += [
            (row.name, row.limits.usage_tier, *_limits(row.limits), _verdict(self.needed, row.limits))
            for row in self.known
            if row.limits is not None
        ]
        named = ("per minute", "usage tier", *heads, "carries it")
        return table(named, rows, right=heads, folds=("per minute", "carries it"), sections=(0,))


def _limits(limits: PrintedLimits) -> tuple[str, str, str, str]:
    requests, tokens, into, out = (getattr(limits, name) for name in _LIMITS)
    return _count(requests), _count(tokens), _count(into), _count(out)


def _count(most: int | None) -> str:
    return "–" if most is None else f"{most:,}"


def _verdict(needed: Needed, limits: PrintedLimits) -> str:
    beyond = needed.beyond(limits)
    factors = {name: factor.quantize(Decimal("0.01"), ROUND_CEILING) for name, factor in beyond.items()}
    return "yes" if not beyond else "no: " + ", ".join(f"{name} × {factor:,f}" for name, factor in factors.items())


def _parts(needed: Needed) -> dict[str, int]:
    return {
        "requests": needed.requests,
        "input_tokens": needed.input_tokens,
        "output_tokens": needed.output_tokens,
    }


def called(book: Path) -> str:
    """What a sentence calls it."""
    return "the example price book" if book == EXAMPLE else str(book)


@dataclass(frozen=True, slots=True)
class BrokenEven:
    found: Breakeven
    rent_usd_per_day: Decimal
    input_tokens: int
    output_tokens: int
    price: Price
    throughput: Throughput | None

    @property
    def assumptions(self) -> list[str]:
        found = [
            f"every query has {self.input_tokens:,} tokens in and {self.output_tokens:,} out: the mix decides",
            "the rent is due all day, used or not; both answer equally well",
            "engineering, maintenance and monitoring are not in it (tieryard tco)",
            _LIST_PRICES,
        ]
        if self.throughput is None:
            return [*found, "whether the GPU can do it is not checked: give --prefill-tps and --decode-tps"]
        share = _share(self.throughput.utilization)
        return [
            *found,
            f"the GPU reads {self.throughput.prefill_tps:,f} or writes {self.throughput.decode_tps:,f} tokens a second,"
            f" by turns, {share} of the day (--utilization)",
        ]

    @property
    def verdict(self) -> str:
        found, rent = self.found, usd(self.rent_usd_per_day)
        if found.tokens_a_day is None or found.queries_a_day is None:
            return "never: the API is free"
        tokens, queries = _whole(found.tokens_a_day), _whole(found.queries_a_day)
        need = f"{tokens} tokens a day ({queries} queries) cost {rent} there: above that, renting is cheaper"
        if found.capacity is None:
            return need
        most = f"{_whole(found.capacity)} tokens a day at {self._load}"
        if found.is_reached:
            part = _share(found.tokens_a_day / found.capacity)
            return f"{need}. The GPU can do {most}: it breaks even at {part} of that"
        worth = usd(found.capacity * found.api_usd_per_1m / 1_000_000)
        return (
            f"never with this GPU: it would take {tokens} tokens a day, and it can do {most}. The API does as much for"
            f" {worth}, the rent is {rent}. More such GPUs change nothing: rent and tokens grow together"
        )

    @property
    def _load(self) -> str:
        if self.throughput is None or self.throughput.utilization == 1:
            return "full load"
        return f"full load, {_share(self.throughput.utilization)} of the day"

    def as_json(self) -> dict[str, Any]:
        return {
            "rent_usd_per_day": self.rent_usd_per_day,
            "api_usd_per_1m": self.found.api_usd_per_1m,
            "queries_a_day": self.found.queries_a_day,
            "tokens_a_day": self.found.tokens_a_day,
            "capacity_tokens_a_day": self.found.capacity,
            "rented_usd_per_1m": self.found.rented_usd_per_1m,
            "is_reached": self.found.is_reached,
            "verdict": self.verdict,
            "assumptions": self.assumptions,
        }

    def show(self, console: Console) -> None:
        rented = self.found.rented_usd_per_1m
        rows = [
            ("rent", usd(self.rent_usd_per_day), "a day"),
            ("API", f"${self.found.api_usd_per_1m:,.4f}", "per million tokens of this mix"),
            ("rented", "–" if rented is None else f"${rented:,.4f}", f"per million tokens at {self._load}"),
        ]
        console.print(table(("", "USD", "is"), rows, right=("USD",), folds=("is",)))
        console.print()
        _say(console, self.verdict)
        _assume(console, self.assumptions)


def _whole(count: Decimal) -> str:
    return f"{count:,.0f}"


@dataclass(frozen=True, slots=True)
class Owned:
    found: Comparison
    a: Option
    b: Option
    workload: Workload
    usd_per_hour: Decimal

    @property
    def totals_usd(self) -> tuple[Decimal, Decimal]:
        return self.found.spent(self.found.months)

    @property
    def verdict(self) -> str:
        a, b = self.totals_usd
        share = saved_share(a, b)
        after = f"after {self.found.months} months"
        if share is None or share == 0:
            total = f"B costs what A does {after}" if a == b else f"A costs nothing, B {usd(b)} {after}"
        elif share > 0:
            total = f"B saves {usd(a - b)} of {usd(a)} {after}: {_share(share)}"
        else:
            total = f"B costs {usd(b - a)} more than A's {usd(a)} {after}: {_share(-share)}"
        return f"{total}. {self._payback}"

    @property
    def _payback(self) -> str:
        month = self.found.payback_month
        if month is None:
            return "It never pays back: B is not cheaper a month"
        beyond = f", beyond the {self.found.months} that were looked at" if month > self.found.months else ""
        return f"It has paid back by the end of month {month}{beyond}"

    @property
    def assumptions(self) -> list[str]:
        found = [
            _MONTH,
            f"{self.workload.daily_queries:,} queries a day of {_each(self.workload)}, the same in every month",
            _LIST_PRICES,
            "what is paid once is paid before month 1; nothing is discounted to today's value",
            "both answer equally well; what a worse answer costs is not in it",
        ]
        if self.usd_per_hour:
            found.append(f"an hour of work costs {usd(self.usd_per_hour)} (--hourly-rate)")
        for letter, option in (("A", self.a), ("B", self.b)):
            if isinstance(option.running, Rent):
                rent = f"{option.running.instances} × {_price_of(option.running.usd_per_h)} an hour, day and night"
                found.append(f"{letter}: {rent}, carry the workload: not checked (tieryard breakeven)")
        return found

    def as_json(self) -> dict[str, Any]:
        a, b = self.totals_usd
        months = [(month, *self.found.spent(month)) for month in range(self.found.months + 1)]
        return {
            "a": {"name": self.a.name, "lines": self.found.a, "total_usd": a},
            "b": {"name": self.b.name, "lines": self.found.b, "total_usd": b},
            "months": [{"month": month, "a_usd": first, "b_usd": second} for month, first, second in months],
            "saved_share": saved_share(a, b),
            "payback_month": self.found.payback_month,
            "verdict": self.verdict,
            "assumptions": self.assumptions,
        }

    def show(self, console: Console) -> None:
        _say(console, f"A: {self.a.name}\nB: {self.b.name}\n", style="bold")
        heads = ("A once", "A a month", "B once", "B a month")
        rows = [
            (first.what if first.what == second.what else f"{first.what}, {second.what}", *_sums(first), *_sums(second))
            for first, second in zip(self.found.a, self.found.b, strict=True)
        ]
        console.print(table(("", *heads), rows, right=heads))
        console.print()
        sums = ("A", "B", "B − A")
        spent = [(month, *self.found.spent(month)) for month in range(self.found.months + 1)]
        cells = [(str(month), usd(a), usd(b), usd(b - a)) for month, a, b in spent]
        console.print(table(("month", *sums), cells, right=("month", *sums)))
        console.print()
        _say(console, self.verdict)
        _assume(console, self.assumptions)


def _sums(line: Line) -> list[str]:
    return [usd(amount) if amount else "–" for amount in (line.once_usd, line.month_usd)]


def show_prices(console: Console, book: PriceBook) -> None:
    """Both tables, then notes and doubts."""
    heads = ("in per 1M", "out per 1M", "cached")
    hosted = [
        (
            row.name,
            _price_of(row.input_usd_per_1m),
            _price_of(row.output_usd_per_1m),
            _price_of(row.cached_input_usd_per_1m),
            *_days(row.valid_from, row.valid_until),
            row.status.replace("_", " "),
        )
        for row in book.hosted
    ]
    console.print(table(("model", *heads, "from", "until", "status"), hosted, right=heads, folds=("model",)))
    console.print()
    rented = [
        (
            row.name,
            f"{row.gpus} × {row.gpu_type}" if row.gpus else "–",
            _price_of(row.usd_per_h),
            row.purchase.replace("_", " "),
            row.region,
            *_days(row.valid_from, row.valid_until),
            row.status.replace("_", " "),
        )
        for row in book.instances
    ]
    named = ("instance", "GPUs", "an hour", "bought", "region", "from", "until", "status")
    console.print(table(named, rented, right=("an hour",), folds=("instance", "bought", "region", "status")))
    console.print()
    for one in book.rows:
        for said in (one.note, one.doubt):
            if said is not None:
                _say(console, f"– {one.name}: {said}")


def _days(first: date, last: date | None) -> tuple[str, str]:
    return str(first), "–" if last is None else str(last)
