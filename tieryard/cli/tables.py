"""Tables that fit a terminal of 80 columns: names fold between their parts, numbers and ids are never cut."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_PART_ENDS = re.compile(r"\s+|(?<=[-_/:@=,→|])(?=[^\s])|(?<=\.)(?=[^\W\d])")
"""Where a name may go on below: after a mark, and not within `2.5`."""


@dataclass(frozen=True, slots=True)
class _Column:
    """`widest`: as it is; `least`: the longest of what is not to be broken, of its cells where they fold, and of its
    header."""

    header: str
    cells: tuple[Text, ...]
    is_figures: bool
    folds: bool

    @property
    def _in_cells(self) -> int:
        return max((_longest(cell.plain, "\n") for cell in self.cells), default=0)

    @property
    def widest(self) -> int:
        return max(self._in_cells, cell_len(self.header))

    @property
    def headed(self) -> int:
        """With its header folded."""
        return max(self._in_cells, _longest_part(self.header))

    @property
    def least(self) -> int:
        if not self.folds:
            return self.headed
        return max(_longest_part(text) for text in (self.header, *(cell.plain for cell in self.cells)))


@dataclass(frozen=True, slots=True)
class FittedTable:
    """Where it is too wide, headers fold, then columns draw closer, then those that may fold do: between words and the
    parts of names, and within them only where even these do not fit. Rich alone narrows figures too."""

    columns: tuple[_Column, ...]
    title: str | None
    sections: Collection[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths, space = self._fitted(options.max_width)
        made = Table(
            box=box.SIMPLE_HEAD,
            title=self.title,
            title_justify="left",
            padding=(0, space - 1, 0, 0),
            show_edge=False,
        )
        for column, width in zip(self.columns, widths, strict=True):
            header = _folded(Text(column.header), width)
            made.add_column(
                header, justify="right" if column.is_figures else "left", overflow="fold", width=max(width, 1)
            )
        for number, row in enumerate(zip(*(column.cells for column in self.columns), strict=True)):
            cells = (_folded(cell, width) for cell, width in zip(row, widths, strict=True))
            made.add_row(*cells, end_section=number in self.sections)
        yield made

    def _fitted(self, room: int) -> tuple[list[int], int]:
        """(width of each column, space after each)."""
        for widths in ([c.widest for c in self.columns], [c.headed for c in self.columns]):
            if sum(widths) + 2 * len(widths) <= room + 1:
                return widths, 2
        room -= len(self.columns) - 1
        if sum(widths) > room:
            room -= sum(c.headed for c in self.columns if not c.folds)
            folding = [c for c in self.columns if c.folds]
            shared = iter(_shared(room, [c.least for c in folding], [c.headed for c in folding]))
            widths = [next(shared) if c.folds else c.headed for c in self.columns]
        return widths, 1


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    right: Collection[str] = (),
    folds: Collection[str] = (),
    title: str | None = None,
    sections: Collection[int] = (),
) -> FittedTable:
    """Headers and cells; cells are taken as they are, never as markup. `right`: columns of figures. `folds`: those
    that give way when the terminal is narrow. `sections`: rows after which a line is drawn.
    """
    columns = (
        _Column(name, tuple(_text(row[i]) for row in rows), name.strip() in right, name in folds)
        for i, name in enumerate(headers)
    )
    return FittedTable(tuple(columns), title, sections)


def printable(text: str) -> str:
    """Without escape characters: what a model or a caller wrote must not steer the terminal."""
    return text.replace("\x1b", "␛")


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(cell))


def _longest(text: str, separator: str) -> int:
    return max(map(cell_len, text.split(separator)))


def _longest_part(text: str) -> int:
    return max(cell_len(part.strip()) for part in _PART_ENDS.split(text))


def _shared(room: int, least: list[int], most: list[int]) -> list[int]:
    """The narrowest grows first. Where not even the least fits, what is widest gives way."""
    widths = least if sum(least) <= room else [1] * len(least)
    limits = most if sum(least) <= room else least
    widths = list(widths)
    for _ in range(room - sum(widths)):
        growing = [i for i, width in enumerate(widths) if width < limits[i]]
        if not growing:
            break
        widths[min(growing, key=lambda i: widths[i])] += 1
    return widths


def _folded(text: Text, width: int) -> Text:
    """Over as many lines as it takes, none wider."""
    lines = [piece for line in text.split("\n", allow_blank=True) for piece in line.divide(_cuts(line.plain, width))]
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def _cuts(line: str, width: int) -> list[int]:
    """Where to break it: at the last end of a part that fits, or after as many characters as do."""
    cuts: list[int] = []
    start = last = 0
    for end in [*(found.end() for found in _PART_ENDS.finditer(line)), len(line)]:
        if last > start and cell_len(line[start:end].rstrip()) > width:
            cuts.append(start := last)
        while cell_len(line[start:end].rstrip()) > width:
            start += max((n for n in range(1, width + 1) if cell_len(line[start : start + n]) <= width), default=1)
            cuts.append(start)
        last = end
    return cuts
