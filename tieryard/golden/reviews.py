"""Answers for people to score, blind to whose they are; their scores read again; and how far a judge agrees with them.

A sample names no model, no run and no judge's score. What was drawn is not kept: an answer's token follows from its run
and item, and from the moment its run was made, which stands nowhere but in the database.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from tieryard.bench import PASS_MARK
from tieryard.golden.importers import sampled
from tieryard.golden.items import Item
from tieryard.golden.reading import Fault, refuse

if TYPE_CHECKING:
    from tieryard.bench.stats import Interval

LEAST = 50
"""Labels below which a kappa says too little to rest a judge on."""

_COLUMNS = ("token", "question", "criteria", "good_answers", "answer", "score")
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take for the beginning of a formula."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """An answer that may be drawn: `run_id` and `made_at` are of the quality run."""

    run_id: int
    made_at: datetime
    item: Item
    answer: str

    @property
    def token(self) -> str:
        return token(self.run_id, self.made_at, self.item.id)


@dataclass(frozen=True, slots=True)
class Label:
    """A person's score of the answer behind a token, 0 to 1."""

    token: str
    score: float


@dataclass(frozen=True, slots=True)
class Rated:
    """An answer with the judge's score and those of people."""

    judge: float
    people: Sequence[float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Who passes an answer (score ≥ 0.7, of people their mean). `kappa` is None where both gave one label only."""

    n: int
    both_pass: int
    judge_only: int
    people_only: int
    both_fail: int
    kappa: Interval | None

    @property
    def agreed(self) -> float | None:
        return (self.both_pass + self.both_fail) / self.n if self.n else None

    @property
    def says(self) -> list[str]:
        if self.n == 0:
            return ["no answer has both a judge's score and a person's: tieryard golden review draws a sample"]
        said = []
        if self.kappa is None:
            said.append("judge and people gave one label only: how far they agree beyond chance cannot be told")
        else:
            said.append(f"kappa {self.kappa.value:.2f} (95 %: {self.kappa.low:.2f} to {self.kappa.high:.2f})")
        if self.n < LEAST:
            said.append(f"{self.n} labels are too few to rest a judge on: {LEAST} at least, better 100")
        return said


def token(run_id: int, made_at: datetime, item_id: str) -> str:
    """The same whenever it is worked out, and not to be guessed from a file of answers. A letter stands first: a
    spreadsheet would take some digests for numbers."""
    return "r" + hashlib.sha256(orjson.dumps([run_id, made_at, item_id])).hexdigest()[:15]


def draw(answers: Sequence[Reviewed], *, sample: int, seed: int) -> list[Reviewed]:
    """`sample` of them, of each run and category its share, in an order that tells nothing."""
    stay = sampled([f"{one.run_id} {one.item.category}" for one in answers], sample, seed)
    drawn = [answers[at] for at in stay]
    random.Random(seed).shuffle(drawn)  # noqa: S311  # to be drawn again, no secret
    return drawn


def as_jsonl(drawn: Sequence[Reviewed]) -> bytes:
    """One answer a line, its `score` to be filled in."""
    return b"".join(orjson.dumps(_shown(one) | {"score": None}) + b"\n" for one in drawn)


def as_csv(drawn: Sequence[Reviewed]) -> bytes:
    """The same for a spreadsheet, which takes none of it for a formula."""
    file = io.StringIO(newline="")
    rows = csv.DictWriter(file, _COLUMNS)
    rows.writeheader()
    for one in drawn:
        shown = _shown(one)
        question = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in shown["question"])
        good = "\n\n".join(text if isinstance(text, str) else orjson.dumps(text).decode() for text in _good(one.item))
        cells = {"question": question, "criteria": shown["criteria"] or "", "good_answers": good, "answer": one.answer}
        rows.writerow({"token": one.token, **{name: _cell(text) for name, text in cells.items()}, "score": ""})
    return file.getvalue().encode("utf-8-sig")  # by whose mark spreadsheets know it


def read_labels(data: bytes, *, name: str, known: Mapping[str, Any]) -> list[Label]:
    """The scores of a sample that was filled in, of either form; what was left blank is left out. `known` are the
    tokens there are. Raises UserError with the line of every fault, and takes nothing then."""
    rows, faults = _rows(data)
    labels: list[Label] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        label, fault = _label(row, line, known)
        if fault is not None:
            faults.append(fault)
        elif label is not None:
            first = seen.setdefault(label.token, line)
            if first != line:
                faults.append(Fault(line, "token", f"line {first} scores the same answer; keep one of the two"))
            labels.append(label)
    if not labels and not faults:
        faults.append(Fault(1, "score", "no answer is scored; write 0 to 1 into `score`"))
    refuse(sorted(faults, key=lambda fault: fault.line), name)
    return labels


def agreement(rated: Sequence[Rated]) -> Agreement:
    """Of the answers that both have scored."""
    from tieryard.bench.stats import cohen_kappa  # brings SciPy, which no other command is to wait for

    given = [one for one in rated if one.people]
    judge = [one.judge >= PASS_MARK for one in given]
    people = [sum(one.people) / len(one.people) >= PASS_MARK for one in given]
    both = list(zip(judge, people, strict=True))
    return Agreement(
        n=len(both),
        both_pass=both.count((True, True)),
        judge_only=both.count((True, False)),
        people_only=both.count((False, True)),
        both_fail=both.count((False, False)),
        kappa=cohen_kappa(judge, people) if both else None,
    )


def _shown(one: Reviewed) -> dict[str, Any]:
    item = one.item
    question = item.conversation
    return {
        "token": one.token,
        "question": question,
        "criteria": item.criteria,
        "good_answers": _good(item),
        "answer": one.answer,
    }


def _good(item: Item) -> list[Any]:
    expected = item.expected if isinstance(item.expected, list) else [item.expected]
    return [text for text in expected if text is not None] + list(item.references)


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _rows(data: bytes) -> tuple[list[tuple[int, dict[str, Any]]], list[Fault]]:
    """(line, fields) of a file of either form."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return [], [Fault(line, None, "it is not UTF-8; save the file as UTF-8")]
    if not text.lstrip().startswith("{"):
        return _of_csv(text)
    rows: list[tuple[int, dict[str, Any]]] = []
    faults: list[Fault] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            found = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            faults.append(Fault(number, None, f"no JSON: {error}"))
            continue
        if isinstance(found, dict):
            rows.append((number, found))
        else:
            faults.append(Fault(number, None, "no object; write token and score"))
    return rows, faults


def _of_csv(text: str) -> tuple[list[tuple[int, dict[str, Any]]], list[Fault]]:
    first = text.partition("\n")[0]
    marks = ";" if first.count(";") > first.count(",") else ","  # as spreadsheets of half the world save it
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=marks)
    if missing := [name for name in ("token", "score") if name not in (reader.fieldnames or ())]:
        return [], [Fault(1, missing[0], "no such column; keep the header of the file that was drawn")]
    rows: list[tuple[int, dict[str, Any]]] = []
    before = 1
    try:
        for row in reader:
            rows.append((before + 1, row))
            before = reader.line_num
    except csv.Error as error:
        return rows, [Fault(reader.line_num, None, f"no CSV: {error}")]
    return rows, []


def _label(row: Mapping[str, Any], line: int, known: Mapping[str, Any]) -> tuple[Label | None, Fault | None]:
    """The label, or what is wrong with it; neither where it was left blank."""
    token, given = row.get("token"), row.get("score")
    if given is None or given == "":
        return None, None
    if not isinstance(token, str) or token not in known:
        return None, Fault(line, "token", f"no answer has the token {token!r}; keep it as it was drawn")
    try:
        score = float(given.replace(",", ".") if isinstance(given, str) else given)
    except (TypeError, ValueError):
        score = -1.0
    if isinstance(given, bool) or not 0 <= score <= 1:
        return None, Fault(line, "score", f"{given!r} is no score; write 0 (useless) to 1 (perfect), such as 0.7")
    return Label(token, score), None
