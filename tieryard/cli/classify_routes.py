"""`tieryard classify --routes FILE`: where each job of a file would go, what it would cost and how long it would take,
without running any."""

from __future__ import annotations

import random
import threading
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tieryard.bench.percentiles import percentile
from tieryard.classification.saving import Saving, Type
from tieryard.classification.tables import Batch, JsonRows, Table, check_column, open_table, text_of
from tieryard.cli.classify_progress import span
from tieryard.cli.classify_reports import usd
from tieryard.cli.client import Client
from tieryard.cli.patience import NDJSON, PatientClient
from tieryard.cli.printing import print_json
from tieryard.cli.tables import FittedTable, printable, table
from tieryard.errors import UserError

_MOST_LINES, _MOST_BYTES = 500, 2 * 2**20
"""Of one request."""
_DRAWN = 1000
_DRAWN_BYTES = 16 * 2**20
_MOST_FAULTS = 5
_NOWHERE = "(nowhere)"
_WAITS = "(waits)"
_REFUSED = "(no job)"
_ADDED: dict[str, Type] = {
    "deployment": "text",
    "reason": "text",
    "predicted_cost_usd": "money",
    "predicted_latency_ms": "number",
    "error": "text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesAsked:
    """The options. Without `column` a line is a job as `POST /v1/jobs` takes it, or one of OpenAI's batch files; with
    it the cell is the prompt. `model` and `tier` are for jobs that name none."""

    file: Path
    column: str | None = None
    model: str | None = None
    tier: str | None = None
    out: Path | None = None
    prefix: str = ""


@dataclass(slots=True)
class Share:
    """What one deployment would get."""

    jobs: int = 0
    fallbacks: int = 0
    cost_usd: Decimal = Decimal(0)
    prompt_tokens: int = 0
    output_tokens: int = 0
    latencies_ms: array[float] = field(default_factory=lambda: array("f"))


@dataclass(slots=True)
class Totals:
    shares: dict[str, Share] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def see(self, number: int, found: dict[str, Any]) -> None:
        where = found["deployment"] or (_REFUSED if found["error"] else _WAITS if found["defer_s"] else _NOWHERE)
        share = self.shares.setdefault(where, Share())
        share.jobs += 1
        if (said := _fault(found)) and len(self.faults) < _MOST_FAULTS:
            self.faults.append(f"row {number}: {said}")
        if found["deployment"] is not None:
            share.fallbacks += found["fallback"]
            share.cost_usd += Decimal(found["expected_cost_usd"])
            share.prompt_tokens += found["prompt_tokens"]
            share.output_tokens += found["output_tokens"]
            share.latencies_ms.append(found["latency_ms"])


def run(asked: RoutesAsked, url: str, *, as_json: bool) -> None:
    """Asks about all of the file, writes what each row was told, and prints what it comes to."""
    source, console = open_table(asked.file), Console(stderr=True)
    columns, rows = _counted(source, asked)
    saving = _saving(asked, source, columns)
    totals, drawn = Totals(), _Drawn()
    client = PatientClient(url, stopping=threading.Event(), told=lambda text: console.print(printable(text)))
    shown = (TextColumn("routing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        stack.callback(client.close)
        writer = stack.enter_context(saving.open()) if saving is not None else None
        progress = stack.enter_context(Progress(*shown, console=console, transient=True))
        bar, number = progress.add_task("", total=rows), 0
        for batch in source.batches():
            jobs = [_job(asked, line) for line in _lines(asked, batch)]
            found = list(_routed(client, jobs))
            for job, one in zip(jobs, found, strict=True):
                number += 1
                totals.see(number, one)
                drawn.add(job)
            if writer is not None:
                writer.write(batch, _columns(asked, found))
            progress.update(bar, completed=number)
    quote = _whole(Client(url), asked, drawn, rows)
    if as_json:
        print_json(_as_json(asked, rows, totals, quote))
    else:
        _show(Console(), rows, totals, quote)


def _counted(source: Table, asked: RoutesAsked) -> tuple[tuple[str, ...], int]:
    """Columns and rows, by a look at all of it: a file that is not whole is found before anything is asked."""
    names, rows = dict.fromkeys(source.columns), 0
    for batch in source.batches():
        rows += len(batch)
        if not source.columns:
            names |= dict.fromkeys(name for row in batch.objects() for name in row)
    if not rows:
        raise UserError(f"{source.path}: has no rows")
    if asked.column is not None:
        check_column(source, tuple(names), asked.column, option="--column")
    elif source.kind != "jsonl":
        raise UserError("--routes: of a file that is no JSON lines, say which column is the prompt: --column")
    return tuple(names), rows


def _saving(asked: RoutesAsked, source: Table, columns: tuple[str, ...]) -> Saving | None:
    if asked.out is None:
        return None
    return Saving(source, columns, asked.out, {f"{asked.prefix}{name}": kind for name, kind in _ADDED.items()})


def _lines(asked: RoutesAsked, batch: Batch) -> Iterable[dict[str, Any] | bytes]:
    """What each row asks: a prompt, or the line as it stands."""
    if asked.column is not None:
        return ({"prompt": text_of(value) or ""} for value in batch.values(asked.column))
    assert isinstance(batch, JsonRows)
    if asked.model is None and asked.tier is None:
        return batch.lines
    return batch.objects()


def _job(asked: RoutesAsked, line: dict[str, Any] | bytes) -> bytes:
    if isinstance(line, bytes):
        return line
    wished = {name: value for name, value in (("model", asked.model), ("tier", asked.tier)) if value is not None}
    return orjson.dumps(line if "url" in line else wished | line)


def _routed(client: PatientClient, jobs: list[bytes]) -> Iterator[dict[str, Any]]:
    while jobs:
        size = taken = 0
        for job in jobs[:_MOST_LINES]:
            size += len(job) + 1
            if taken and size > _MOST_BYTES:
                break
            taken += 1
        yield from client.post_lines("/v1/route", b"\n".join(jobs[:taken]))
        jobs = jobs[taken:]


def _columns(asked: RoutesAsked, found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    rows = [
        (
            one["deployment"],
            one["reason"],
            None if one["expected_cost_usd"] is None else Decimal(one["expected_cost_usd"]),
            None if one["latency_ms"] is None else round(one["latency_ms"], 1),
            _error(one),
        )
        for one in found
    ]
    return {f"{asked.prefix}{name}": list(values) for name, values in zip(_ADDED, zip(*rows, strict=True), strict=True)}


def _error(one: dict[str, Any]) -> str | None:
    found = one["error"]
    if found is None:
        return None
    return f"{found['param']}: {found['message']}" if found["param"] else str(found["message"])


def _fault(one: dict[str, Any]) -> str | None:
    """Why it would go nowhere."""
    return _error(one) or (one["reason"] if one["deployment"] is None else None)


class _Drawn:
    """A sample of the jobs, each as likely as any other (Vitter 1985, algorithm R)."""

    def __init__(self) -> None:
        self._chance = random.Random(0)  # noqa: S311  # a sample that can be drawn again, no secret
        self._seen = 0
        self.jobs: list[bytes] = []

    def add(self, job: bytes) -> None:
        self._seen += 1
        if len(self.jobs) < _DRAWN:
            self.jobs.append(job)
        elif (at := self._chance.randrange(self._seen)) < _DRAWN:
            self.jobs[at] = job


def _whole(client: Client, asked: RoutesAsked, drawn: _Drawn, rows: int) -> dict[str, Any] | str:
    """The file as one batch, quoted by the sample; or why it could not be."""
    jobs: list[bytes] = []
    size = 0
    for job in drawn.jobs:
        size += len(job)
        if jobs and size > _DRAWN_BYTES:
            break
        jobs.append(job)
    params: dict[str, Any] = {"sample_of": rows} | ({"tier": asked.tier} if asked.tier is not None else {})
    try:
        return client.post("/v1/quotes", content=b"\n".join(jobs), headers=NDJSON, params=params)
    except UserError as error:
        return str(error)


def _as_json(asked: RoutesAsked, rows: int, totals: Totals, quote: dict[str, Any] | str) -> dict[str, Any]:
    return {
        "file": str(asked.file),
        "out": str(asked.out) if asked.out is not None else None,
        "rows": rows,
        "deployments": {
            name: {
                "jobs": share.jobs,
                "fallbacks": share.fallbacks,
                "cost_usd": f"{share.cost_usd:f}",
                "prompt_tokens": share.prompt_tokens,
                "output_tokens": share.output_tokens,
                "latency_ms": _spread(share),
            }
            for name, share in _ordered(totals)
        },
        "cost_usd": f"{_cost(totals):f}",
        "faults": totals.faults,
        "quote": quote if isinstance(quote, dict) else None,
        "not_quoted": quote if isinstance(quote, str) else None,
    }


def _show(console: Console, rows: int, totals: Totals, quote: dict[str, Any] | str) -> None:
    console.print(_shares(rows, totals))
    for fault in totals.faults:
        _say(console, fault)
    if isinstance(quote, str):
        _say(console, f"when all would be done is not known: {quote}")
        return
    for offer in quote["offers"]:
        cost = offer["cost_usd"]
        ends = " – ".join(usd(Decimal(cost[end])) for end in ("low", "worst"))
        done = span(offer["finish"]["expected_s"]) if offer["finish"] else "nobody knows when, since nothing serves it"
        _say(console, f"as one batch in {offer['tier']}: {usd(Decimal(cost['expected']))} ({ends}), done in {done}")
    if quote["lines"]["read"] < rows:
        _say(console, f"the batch by a sample of {quote['lines']['read']:,} jobs; the table by all of them")


def _shares(rows: int, totals: Totals) -> FittedTable:
    headers = ("deployment", "jobs", "share", "fallback", "USD", "latency ms p50", "p95")
    cells = []
    for name, share in _ordered(totals):
        spread = _spread(share)
        times = [f"{spread[p]:,.0f}" for p in ("p50", "p95")] if spread is not None else ["–", "–"]
        cost = usd(share.cost_usd) if spread is not None else "–"
        cells.append((name, f"{share.jobs:,}", f"{share.jobs / rows:.1%}", f"{share.fallbacks:,}", cost, *times))
    cells.append(("all", f"{rows:,}", "", "", usd(_cost(totals)), "", ""))
    return table(headers, cells, right=headers[1:], folds=("deployment",), sections=(len(cells) - 2,))


def _ordered(totals: Totals) -> list[tuple[str, Share]]:
    return sorted(totals.shares.items(), key=lambda item: (item[0].startswith("("), -item[1].jobs, item[0]))


def _cost(totals: Totals) -> Decimal:
    return sum((share.cost_usd for share in totals.shares.values()), Decimal(0))


def _spread(share: Share) -> dict[str, float | None] | None:
    """Of predicted times, without what jobs of this file would wait for each other."""
    if not share.latencies_ms:
        return None
    found = sorted(share.latencies_ms)
    return {"p50": percentile(found, 0.5), "p95": percentile(found, 0.95)}


def _say(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
