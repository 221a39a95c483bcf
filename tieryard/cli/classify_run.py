"""A classification run as its file's owner sees it: rows go up, results come down meanwhile, and both are joined in the
order of rows. The fleet does the rest, also when nobody watches."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tieryard.classification.saving import Saving, Type, Writer
from tieryard.classification.survey import Reading, RowRead, Survey
from tieryard.classification.tables import Batch, Table
from tieryard.cli.classify_progress import Progress
from tieryard.cli.patience import NDJSON, PatientClient, StoppedError
from tieryard.errors import TieryardError, UserError

if TYPE_CHECKING:
    from tieryard.classification.evaluation import Counts, Evaluation

PATH = "/v1/classifications"
_FINAL = ("completed", "stopped", "failed", "cancelled")
_SENT_ROWS, _SENT_BYTES = 5000, 4 * 2**20
"""Of one request."""
_PAGE = 5000
_LOOK_S = 1.0
_WAIT_S = (0.1, 2.0)  # between two looks for results: the longer nothing has come, the longer
_NO_TEXT = "no text"


def added_columns(*, several: bool, prefix: str) -> dict[str, Type]:
    """What a run adds to each row."""
    label: dict[str, Type] = {"labels": "texts"} if several else {"label": "text"}
    return {
        f"{prefix}{name}": kind
        for name, kind in {
            **label, "confidence": "number", "model": "text", "cost_usd": "money", "error": "text",
        }.items()
    }  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What has come down. `counts` are there where the truth is known. `models` have rows, those with a confidence, and
    its sum; `shown` rows with a truth are examples themselves."""

    counts: Counts | None
    rows: int = 0
    answered: int = 0
    empty: int = 0
    failed: int = 0
    shown: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    cost_usd: Decimal = Decimal(0)
    models: dict[str, list[float]] = field(default_factory=dict)

    @property
    def evaluation(self) -> Evaluation | None:
        return self.counts.evaluation() if self.counts is not None else None

    def see(self, result: dict[str, Any]) -> None:
        self.cost_usd += Decimal(result["cost_usd"])
        if result["labels"] is None:
            self.failed += 1
            self.see_error(result["error"])
            return
        self.answered += 1
        sums = self.models.setdefault(result["model"] or "?", [0, 0, 0.0])
        sums[0] += 1
        if result["confidence"] is not None:
            sums[1] += 1
            sums[2] += result["confidence"]

    def see_error(self, said: str | None) -> None:
        """The first few kinds are told; a million rows may each have an error of their own."""
        kind = (said or "no answer")[:200]
        if kind in self.errors or len(self.errors) < _MOST_ERRORS:
            self.errors[kind] = self.errors.get(kind, 0) + 1


_MOST_ERRORS = 20


@dataclass(frozen=True, slots=True)
class Work:
    """All that a run needs to know of its file. `wrong` takes the rows that are wrong or have no answer."""

    table: Table
    reading: Reading
    survey: Survey
    labels: tuple[str, ...]
    saving: Saving
    wrong: Saving | None
    prefix: str = ""
    shown: frozenset[str] = frozenset()
    """Texts that the model is shown with their labels."""


class Upload:
    """Sends the rows from row `first` (from 1) on, in a thread of its own, and then says that these were all."""

    def __init__(self, client: PatientClient, work: Work, run: str, first: int) -> None:
        self._client, self._work, self._path, self._first = client, work, f"{PATH}/{run}", first
        self._error: TieryardError | None = None
        self._done = False
        self.sent = first - 1
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    @property
    def error(self) -> TieryardError | None:
        """What has ended it before its end."""
        if self._error is None and not self._done and not self._thread.is_alive():
            return TieryardError("the upload has ended by a fault of ours, told above")
        return self._error

    def _run(self) -> None:
        try:
            for body, rows in self._bodies():
                self._client.ask(
                    "POST", f"{self._path}/rows", content=body, headers=NDJSON, params={"first": self.sent + 1}
                )
                self.sent += rows
            self._client.ask("POST", f"{self._path}/complete", json={"rows": self._work.survey.asked})
            self._done = True
        except StoppedError:
            self._done = True
        except TieryardError as error:
            self._error = error
        finally:
            self._client.close()

    def _bodies(self) -> Iterator[tuple[bytes, int]]:
        lines: list[bytes] = []
        size = number = 0
        several = self._work.reading.several
        for batch in self._work.table.batches():
            for read in self._work.reading.rows(batch):
                if read is None:
                    continue
                number += 1
                if number < self._first:
                    continue
                line = read.line(several=several)
                if lines and (len(lines) == _SENT_ROWS or size + len(line) > _SENT_BYTES):
                    yield b"".join(lines), len(lines)
                    lines, size = [], 0
                lines.append(line)
                size += len(line)
        if lines:
            yield b"".join(lines), len(lines)


class Watch:
    """Takes results as rows get them, and looks at the run meanwhile."""

    def __init__(self, client: PatientClient, run: str, upload: Upload | None, progress: Progress) -> None:
        self._client, self._path, self._upload, self._progress = client, f"{PATH}/{run}", upload, progress
        self._looked_at = -_LOOK_S
        self._page: list[dict[str, Any]] = []
        self._at = self._after = 0
        self.run: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        return bool(self.run) and self.run["state"] in _FINAL

    def next(self) -> dict[str, Any] | None:
        """The next row's result; None where the run is over, and there are no more."""
        wait_s = _WAIT_S[0]
        while self._at == len(self._page):
            was_over = self.is_over
            self._page = self._client.lines(f"{self._path}/results", after=self._after, limit=_PAGE)
            self._at = 0
            self.look()
            if self._page:
                self._after = self._page[-1]["row"]
            elif was_over:
                return None
            else:
                self._client.wait(wait_s)
                wait_s = min(_WAIT_S[1], wait_s * 1.5)
        self._at += 1
        return self._page[self._at - 1]

    def until_over(self) -> dict[str, Any]:
        """The run at its end, which comes a moment after its last row's."""
        while self.look(now=True)["state"] not in _FINAL:
            self._client.wait(_WAIT_S[0])
        return self.run

    def look(self, *, now: bool = False) -> dict[str, Any]:
        """At how far the run is, at most once a second. Raises what has stopped the upload."""
        if self._upload is not None and self._upload.error is not None and not self.is_over:
            self.run = self._client.ask("GET", self._path)
            if not self.is_over:  # a run that is over takes no rows, which is then no fault of theirs
                raise self._upload.error
        if now or time.monotonic() - self._looked_at >= _LOOK_S:
            self._looked_at = time.monotonic()
            self.run = self._client.ask("GET", self._path)
            self._progress.show(self.run, sent=self._upload.sent if self._upload is not None else None)
        return self.run


def collect(work: Work, watch: Watch) -> Outcome:
    """Joins rows with their results, and writes them. Raises UserError where the file is not what it was."""
    outcome = Outcome(_counts(work))
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(work.saving.open())
        wrong = stack.enter_context(work.wrong.open()) if work.wrong is not None else None
        for batch in work.table.batches():
            _join(work, watch, outcome, batch, writer, wrong)
        if outcome.rows != work.survey.rows:
            raise UserError(f"{work.table.path}: had {work.survey.rows} rows and now {outcome.rows}; it was changed")
    return outcome


def _counts(work: Work) -> Counts | None:
    if work.reading.truth is None:
        return None
    from tieryard.classification.evaluation import Counts  # brings SciPy, which no other run is to wait for

    return Counts(work.labels, several=work.reading.several)


def wrong_columns(added: dict[str, Type], *, prefix: str) -> dict[str, Type]:
    """What the file of wrong rows has beside theirs: their numbers in the whole, too."""
    return {f"{prefix}row": "count", **added}


def _join(work: Work, watch: Watch, outcome: Outcome, batch: Batch, writer: Writer, wrong: Writer | None) -> None:
    rows: list[list[Any]] = []
    bad: list[int] = []
    for at, read in enumerate(work.reading.rows(batch)):
        outcome.rows += 1
        if read is None:
            outcome.empty += 1
            rows.append([None, None, None, None, _NO_TEXT])
            continue
        found = watch.next()
        if found is None:
            found = {**_NOTHING, "error": f"not asked: {_why(watch.run)}"}
        outcome.see(found)
        outcome.shown += read.truth is not None and read.text in work.shown
        rows.append(_cells(found, several=work.reading.several))
        if not _is_right(outcome, read, found):
            bad.append(at)
    columns = [list(column) for column in zip(*rows, strict=True)]
    names = list(work.saving.added)
    writer.write(batch, dict(zip(names, columns, strict=True)))
    if wrong is not None and bad:
        numbers = [outcome.rows - len(batch) + at + 1 for at in bad]
        picked = [[column[at] for at in bad] for column in columns]
        names = list(wrong_columns(work.saving.added, prefix=work.prefix))
        wrong.write(batch.only(bad), dict(zip(names, [numbers, *picked], strict=True)))


_NOTHING: dict[str, Any] = {"labels": None, "confidence": None, "model": None, "cost_usd": "0"}


def _is_right(outcome: Outcome, read: RowRead, found: dict[str, Any]) -> bool:
    """Whether the answer is the truth; of a row whose truth nobody knows, whether there is one."""
    if read.truth is None or outcome.counts is None:
        return found["labels"] is not None
    return outcome.counts.add(read.truth, found["labels"], found["model"])


def _cells(found: dict[str, Any], *, several: bool) -> list[Any]:
    labels = found["labels"]
    label = labels if several or labels is None else labels[0]
    return [label, found["confidence"], found["model"], Decimal(found["cost_usd"]), found["error"]]


def _why(run: dict[str, Any]) -> str:
    return f"the run is {run['state']}" + (f", {run['why']}" if run.get("why") else "")
