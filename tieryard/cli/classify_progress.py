"""How far a classification run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from tieryard.cli.tables import printable

_FIRST_LINE_S, _LINE_EVERY_S = 1.0, 10.0


class Progress:
    """Of `total` rows. Used as a context, in which the bar stands."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._line_due = time.monotonic() + _FIRST_LINE_S

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            told = TextColumn("{task.fields[told]}")
            columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), told)
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, told="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Something that is worth a line of its own."""
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def show(self, run: dict[str, Any], *, sent: int | None) -> None:
        """A run as the API tells of it; `sent` is how many rows are up, None where all are."""
        done, told = run["counts"]["final_rows"], _told(run)
        going_up = sent is not None and sent < self._total
        what = f"{run['id']} {run['state']}" + (f", {sent:,} rows sent" if going_up else "")
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=what, told=told)
        elif time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + _LINE_EVERY_S
            self.say(f"{what}: {done:,} of {self._total:,} rows, {told}")


def _told(run: dict[str, Any]) -> str:
    """Rate, time left and cost, as far as they are known."""
    left = f"{span(run['eta_s'])} left" if run.get("eta_s") is not None else "? left"
    rate = run["rate"]
    return f"{rate:,.{0 if rate >= 10 else 1}f}/s · {left} · {run['cost_usd']} USD"


def span(seconds: float) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours < 48 else f"{hours / 24:.1f}d"
