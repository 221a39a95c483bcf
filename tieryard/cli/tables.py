"""Tables that fit a terminal of 80 columns: words may fold, numbers and ids are never cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 10_000


class _FiguresFirst(Table):
    """Where it is too wide, headers fold, then columns draw closer, then those that may fold do. Rich alone narrows
    figures too."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(width=_UNBOUNDED)
        if Measurement.get(console, unbounded, self).maximum > options.max_width:
            for column in self.columns:
                column.width = column.min_width
            if Measurement.get(console, unbounded, self).minimum > options.max_width:
                self.padding = 0
        yield from super().__rich_console__(console, options)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    right: Collection[str] = (),
    folds: Collection[str] = (),
    title: str | None = None,
    sections: Collection[int] = (),
) -> Table:
    """Headers and cells; cells are taken as they are, never as markup. `right`: columns of figures. `folds`: those
    that give way when the terminal is narrow. `sections`: rows after which a line is drawn.
    """
    made = _FiguresFirst(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0), show_edge=False)
    for i, name in enumerate(headers):
        widest = max((len(line) for row in rows for line in str(row[i]).splitlines()), default=0)
        least = max(widest, *map(len, name.split() or [""]))
        made.add_column(
            name,
            justify="right" if name.strip() in right else "left",
            overflow="fold",
            min_width=None if name in folds else least,
            no_wrap=name not in folds and least >= len(name),  # else rich narrows it first, and then cuts the last one
        )
    for number, row in enumerate(rows):
        made.add_row(
            *(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row), end_section=number in sections
        )
    return made


def printable(text: str) -> str:
    """Without escape characters: what a model or a caller wrote must not steer the terminal."""
    return text.replace("\x1b", "␛")
