"""Golden sets from public data, read from files as their authors publish them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from tieryard.complaints import complaint
from tieryard.errors import UserError
from tieryard.golden.items import GoldenSet, Item
from tieryard.golden.reading import Fault, refuse
from tieryard.golden.scorers.base import shown

Kind = Literal["banking77", "gsm8k", "humaneval", "scitldr", "wnut17"]
ENTITY_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
_TAG = re.compile(r"O|[BI]-(?:" + "|".join(ENTITY_TYPES) + ")")


class Row(NamedTuple):
    """One item to be, from a line of the file. `stratum` is what a limited sample keeps the shares of."""

    line: int
    stratum: str
    item: dict[str, Any]


Found = Iterator[Row | Fault]


@dataclass(frozen=True, slots=True)
class Source:
    """How one kind is read: the files of each split, the first of which has the rows."""

    splits: dict[str, tuple[str, ...]]
    read: Callable[[list[str], list[str]], Found]
    """From the lines of the first file, and of the second where there is one."""


def import_set(kind: Kind, folder: Path, *, split: str = "test", limit: int | None = None, seed: int = 0) -> GoldenSet:
    """The set of that kind in `folder`, named `kind-split`; with `limit`, a sample of that many items that keeps the
    shares of labels, difficulties or entity types, the same for the same seed. Rows that ask the same as an earlier one
    are left out. Raises UserError for a folder that lacks the data, and with the line of each row that is malformed."""
    source = _SOURCES.get(kind)
    if source is None:
        raise UserError(f"{shown(kind)} is no kind of set; write one of {', '.join(get_args(Kind))}", param="kind")
    if split not in source.splits:
        raise UserError(f"{kind} has no {shown(split)}; write one of {', '.join(source.splits)}", param="split")
    if limit is not None and limit < 1:
        raise UserError("write 1 or more", param="limit")
    files = source.splits[split]
    contents = [_lines(folder, file, f"{kind}'s {split} split is {' and '.join(files)}") for file in files]
    items: list[tuple[str, Item]] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    for found in source.read(contents[0], contents[-1]):
        made = found if isinstance(found, Fault) else _made(found, f"{kind}-{split}")
        if isinstance(made, Fault):
            faults.append(made)
        elif isinstance(found, Row) and made.input_hash not in seen:
            seen.add(made.input_hash)
            items.append((found.stratum, made))
    if not items and not faults:
        faults.append(Fault(1, None, f"the file has no rows; take {files[0]} as it was published"))
    refuse(faults, files[0])
    return GoldenSet(f"{kind}-{split}", tuple(items[at][1] for at in sampled([s for s, _ in items], limit, seed)))


def _made(row: Row, prefix: str) -> Item | Fault:
    try:
        return Item.model_validate({"id": f"{prefix}-{row.line}"} | row.item)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return Fault(row.line, ".".join(str(part) for part in first["loc"]) or None, complaint(first))


def sampled(strata: list[str], limit: int | None, seed: int) -> list[int]:
    """Which rows stay, in the file's order: from each stratum its share of `limit`, by largest remainder. The same for
    the same seed."""
    if limit is None or limit >= len(strata):
        return list(range(len(strata)))
    chance = random.Random(seed)  # noqa: S311  # a sample that can be drawn again, no secret
    rows: dict[str, list[int]] = defaultdict(list)
    for at, stratum in enumerate(strata):
        rows[stratum].append(at)
    shares = {stratum: limit * len(among) / len(strata) for stratum, among in sorted(rows.items())}
    taken = {stratum: int(share) for stratum, share in shares.items()}
    by_remainder = sorted(shares, key=lambda stratum: (taken[stratum] - shares[stratum], chance.random()))
    for stratum in by_remainder[: limit - sum(taken.values())]:
        taken[stratum] += 1
    return sorted(at for stratum, n in taken.items() for at in chance.sample(rows[stratum], n))


def _lines(folder: Path, file: str, needed: str) -> list[str]:
    path = folder / file
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise UserError(f"{folder} has no {file}; {needed}") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{file} is no whole gzip file ({error}); take it as it was published") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return list(
            io.StringIO(data.decode("utf-8-sig"), newline="")
        )  # not splitlines, to which more than \n is an end
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file} is not UTF-8; take it as it was published", line=line) from None


def _objects(lines: list[str], fields: dict[str, type]) -> Iterator[tuple[int, dict[str, Any]] | Fault]:
    """The objects of JSON lines that have these fields of these types."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Fault(number, None, f"no JSON: {error}")
            continue
        wrong = [f for f, kind in fields.items() if not isinstance(given, dict) or not isinstance(given.get(f), kind)]
        if wrong:
            yield Fault(number, wrong[0], f"it needs {' and '.join(fields)}, as texts or lists; this is another file")
        else:
            yield number, given


def _banking77(lines: list[str], labels_file: list[str]) -> Found:
    """CSV with `text,category`, and the labels in categories.json (Casanueva et al. 2020, arXiv:2003.04807)."""
    labels = _labels(labels_file)
    instruction = (
        "Which of these labels fits the message of a bank's customer? Answer with the label alone.\n\n"
        f"Labels: {', '.join(labels)}\n\nMessage: "
    )
    constraint = {
        "type": "json_schema",
        "json_schema": {"name": "label", "schema": {"type": "string", "enum": labels}},
    }
    reader = csv.reader(lines, strict=True)
    at = 1
    try:
        for row in reader:
            number, at = at, reader.line_num + 1
            if number == 1:
                if row != ["text", "category"]:
                    yield Fault(1, None, "the header is not text,category; this is another file")
                    return
            elif row and (len(row) != 2 or not row[0].strip()):
                yield Fault(number, None, "a row is a text and a category; mind the quotes")
            elif row and row[1] not in labels:
                yield Fault(number, "category", f"{shown(row[1])} is not in categories.json")
            elif row:
                asked = {"prompt": instruction + row[0].strip(), "response_format": constraint, "max_tokens": 32}
                item = asked | {"expected": row[1], "scorer": "normalised"}
                yield Row(number, row[1], item | {"category": "classification"})
    except csv.Error as error:
        yield Fault(at, None, f"no CSV: {error}; mind the quotes")


def _labels(lines: list[str]) -> list[str]:
    try:
        labels = json.loads("".join(lines))
    except ValueError as error:
        raise UserError(f"categories.json is no JSON: {error}; take it as it was published") from None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise UserError("categories.json is no list of labels; take it as it was published")
    return sorted(labels)


def _gsm8k(lines: list[str], _: list[str]) -> Found:
    """JSON lines with `question` and an `answer` that ends in `#### N` (Cobbe et al. 2021, arXiv:2110.14168)."""
    instruction = "Solve the problem step by step. End with a line `#### ` and the number.\n\n"
    for found in _objects(lines, {"question": str, "answer": str}):
        if isinstance(found, Fault):
            yield found
            continue
        number, given = found
        steps, mark, right = given["answer"].rpartition("####")
        if not mark or not right.strip():
            yield Fault(number, "answer", "it does not end in `#### ` and a number")
            continue
        yield Row(
            number,
            str(len(steps.strip().splitlines())),
            {
                "category": "reasoning",
                "prompt": instruction + given["question"].strip(),
                "max_tokens": 512,
                "expected": right.strip(),
                "references": [given["answer"]],
                "scorer": "numeric",
            },
        )


def _humaneval(lines: list[str], _: list[str]) -> Found:
    """JSON lines with `task_id`, `prompt`, `entry_point`, `canonical_solution` and `test` (Chen et al. 2021,
    arXiv:2107.03374)."""
    parts = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    for found in _objects(lines, dict.fromkeys(parts, str)):
        if isinstance(found, Fault):
            yield found
            continue
        number, given = found
        instruction = "Complete this Python function. Answer with the whole function."
        scorer = {
            "name": "unit_tests",
            "tests": given["test"],
            "entry_point": given["entry_point"],
            "prefix": given["prompt"],
        }
        yield Row(
            number,
            "",
            {
                "id": given["task_id"],
                "category": "code",
                "prompt": f"{instruction}\n\n```python\n{given['prompt'].strip()}\n```",
                "max_tokens": 768,
                "references": [given["prompt"] + given["canonical_solution"]],
                "scorer": scorer,
            },
        )


def _scitldr(lines: list[str], _: list[str]) -> Found:
    """JSON lines with the sentences of an abstract in `source` and summaries in `target` (Cachola et al. 2020,
    arXiv:2004.15011)."""
    instruction = "Summarize this abstract of a paper in one short sentence that says what is new.\n\n"
    for found in _objects(lines, {"source": list, "target": list}):
        if isinstance(found, Fault):
            yield found
            continue
        number, given = found
        if not all(isinstance(text, str) for text in given["source"] + given["target"]):
            yield Fault(number, "source", "it and `target` are lists of sentences")
            continue
        references = [text.strip() for text in given["target"] if text.strip()]
        yield Row(
            number,
            "several" if len(references) > 1 else "one",
            {
                "category": "summarization",
                "prompt": instruction + " ".join(given["source"]).strip(),
                "max_tokens": 96,
                "references": references,
                "scorer": "rouge_l",
            },
        )


def _wnut17(lines: list[str], __: list[str]) -> Found:
    """A token, a tab and its tag on each line, sentences parted by blank ones (Derczynski et al. 2017, W17-4418)."""
    instruction = (
        f"List the named entities of the text, each with one of the types {', '.join(ENTITY_TYPES)}, as they are "
        'written. Answer with JSON alone: [{"type": "person", "text": "Ada Lovelace"}], or [] where there are none.\n\n'
        "Text: "
    )
    tokens: list[tuple[str, str]] = []
    first = 1
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            token, _, tag = line.rstrip("\r\n").partition("\t")
            if not token.strip() or not _TAG.fullmatch(tag.strip()):
                yield Fault(number, None, "a line is a token, a tab, and O, B- or I- with one of WNUT's types")
                continue
            first = first if tokens else number
            tokens.append((token.strip(), tag.strip()))
        elif tokens:
            spans = _spans(tokens)
            item = {"category": "extraction", "max_tokens": 256, "expected": spans, "scorer": "entity_f1"}
            prompt = instruction + " ".join(word for word, _ in tokens)
            kinds = ",".join(sorted({span["type"] for span in spans}))
            yield Row(first, kinds, item | {"prompt": prompt})
            tokens = []


def _spans(tokens: list[tuple[str, str]]) -> list[dict[str, str]]:
    """What B- begins and I- of the same type goes on with; an I- with nothing to go on with begins one, too."""
    spans: list[dict[str, str]] = []
    before = "O"
    for token, tag in tokens:
        kind = tag[2:]
        if tag.startswith("I-") and before[2:] == kind:
            spans[-1]["text"] += f" {token}"
        elif tag != "O":
            spans.append({"type": kind, "text": token})
        before = tag
    return spans


_SOURCES: dict[str, Source] = {
    "banking77": Source({s: (f"{s}.csv", "categories.json") for s in ("test", "train")}, _banking77),
    "gsm8k": Source({"test": ("test.jsonl",)}, _gsm8k),
    "humaneval": Source({"test": ("HumanEval.jsonl.gz",)}, _humaneval),
    "scitldr": Source({"test": ("test.jsonl",), "dev": ("dev.jsonl",)}, _scitldr),
    "wnut17": Source({"test": ("emerging.test.annotated",), "train": ("wnut17train.conll",)}, _wnut17),
}
