"""Quality models on disk: files are read and written here, so that routing need not."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tieryard.errors import UserError
from tieryard.routing.quality import MAX_FILE_BYTES, Part, QualityModel, dump_quality_model, parse_quality_model


def load_model(path: Path) -> QualityModel:
    """Raises UserError where the file is missing, damaged, or something else."""
    try:
        with path.open("rb") as file:
            packed = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return parse_quality_model(packed, str(path))


def save_model(path: Path, part: Part, about: dict[str, Any], before: QualityModel | None = None) -> QualityModel:
    """Writes the part, behind those of `before`. `about` says what the part was trained on."""
    parts = (*(before.parts if before else ()), part)
    known = [name for one in parts for name in one.models]
    twice = sorted({name for name in known if known.count(name) > 1})
    if twice:
        raise UserError(f"both models know {', '.join(twice)}; name one of them otherwise: --weak COL=NAME")
    tables = [*(before.about.get("tables", []) if before else []), about]
    packed = dump_quality_model(parts, {"tables": tables})
    part_written = path.with_name(f"{path.name}.part")
    try:
        part_written.write_bytes(packed)
        part_written.replace(path)  # at once: a fleet may be reading the one that is there
    except OSError as error:
        with contextlib.suppress(OSError):
            part_written.unlink()
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return parse_quality_model(packed, str(path))
