"""What `tieryard classify` writes down beside its out file while a run is under way: by it the same command, with
`--resume`, finds the run again. It is gone when the out file is whole."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import orjson

from tieryard.classification.survey import Reading
from tieryard.errors import UserError
from tieryard.requests.classification import ClassificationSpec

_HEAD_BYTES = 2**20
_VERSION = 1
_MAY_CHANGE = {"max_cost_usd", "metadata"}


@dataclass(frozen=True, slots=True)
class Kept:
    """A run under way. `run` is None until the fleet has answered; `key` is what it is asked for under, so that it is
    made once. `file` and `asked` tell the input and the spec by hashes."""

    key: str
    file: dict[str, Any]
    asked: str
    run: str | None = None
    version: int = _VERSION

    @classmethod
    def new(cls, path: Path, spec: ClassificationSpec, reading: Reading) -> Self:
        return cls(secrets.token_hex(16), file_mark(path), asked_mark(spec, reading))

    def named(self, run: str) -> Kept:
        return replace(self, run=run)


def place(out: Path) -> Path:
    """Where the state of the run that makes this file is."""
    return out.with_name(f"{out.name}.run.json")


def file_mark(path: Path) -> dict[str, Any]:
    """By which a file is known again: size, time and the hash of its first MiB."""
    found = path.stat()
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns, "head_sha256": head}


def asked_mark(spec: ClassificationSpec, reading: Reading) -> str:
    """Of all that a run is asked for, less what may change while it goes on."""
    said = [spec.model_dump(mode="json", exclude=_MAY_CHANGE), reading.column, reading.truth]
    return hashlib.sha256(orjson.dumps(said)).hexdigest()


def save(out: Path, kept: Kept) -> None:
    where = place(out)
    partly = where.with_name(f".{where.name}.part")
    partly.write_bytes(orjson.dumps(asdict(kept), option=orjson.OPT_INDENT_2))
    partly.replace(where)


def forget(out: Path) -> None:
    place(out).unlink(missing_ok=True)


def load(out: Path) -> Kept | None:
    """None where there is none. Raises UserError for a file that is none of ours."""
    where = place(out)
    try:
        found = orjson.loads(where.read_bytes())
        return Kept(**found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise UserError(f"{where}: is no run's; remove it, or name another --out") from None


def begun(out: Path, now: Kept, *, resume: bool) -> Kept:
    """The run to go on with, or a new one. Raises UserError where there is one and nobody said to go on with it, where
    there is none to go on with, or one of another file or question."""
    kept = load(out)
    if kept is None:
        if resume:
            raise UserError(f"--resume: there is no {place(out)}, so nothing to go on with")
        return now
    if not resume:
        raise UserError(
            f"{place(out)}: {kept.run or 'a run'} makes {out} already; go on with it by --resume, or remove that file "
            "to begin anew"
        )
    if kept.file != now.file:
        raise UserError("--resume: the file is not what it was when the run began; its rows would not fit the answers")
    if kept.asked != now.asked:
        raise UserError("--resume: labels, models or another option are not those that the run began with")
    return kept
