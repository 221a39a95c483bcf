"""Reads a catalog file and refuses a bad one whole: one row per fault, each with its line, field and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tieryard.catalog.prices import BY_BOOK, BY_TOKEN
from tieryard.catalog.whole import Catalog
from tieryard.complaints import complaint
from tieryard.errors import CatalogError

Location = tuple[int | str, ...]
"""Where something stands in the file: keys, and numbers of list items from 0."""

_Model = TypeVar("_Model", bound=BaseModel)


def load_catalog(path: Path) -> Catalog:
    """Reads and checks a catalog file. Raises CatalogError."""
    return parse_catalog(read_text(path), name=str(path))


def read_text(path: Path) -> str:
    """A catalog file as it is. Raises CatalogError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise CatalogError(f"{path}: cannot be read (it is not UTF-8)") from None


def parse_catalog(text: str, *, name: str = "tieryard.yaml") -> Catalog:
    """Checks a catalog's text. Raises CatalogError with one row per fault: `name:line: field: what is wrong`."""
    return parse_as(Catalog, text, name=name, kind="a catalog", fields="version, tiers, categories, deployments")


def parse_as(model: type[_Model], text: str, *, name: str, kind: str, fields: str) -> _Model:
    """Checks a YAML file's text against a model, as catalogs are checked. `kind` and `fields` say what it should have
    been. Raises CatalogError with one row per fault."""
    try:
        tree = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem).partition(" with value ")[0]  # what a duplicate key holds is nobody's business
        raise CatalogError(f"{name}:{line}: not valid YAML: {problem}", line=line) from None
    except YAMLError as error:
        raise CatalogError(f"{name}:1: not valid YAML: {error}", line=1) from None
    except RecursionError:
        raise CatalogError(f"{name}:1: nested too deeply to be {kind}", line=1) from None
    if not isinstance(tree, dict):
        raise CatalogError(f"{name}:1: expected a mapping with {fields}", line=1)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        faults = [
            _fault(tree, (*e["loc"], *e.get("ctx", {}).get("at", ())), complaint(e), e["type"])
            for e in error.errors(include_url=False)
        ]
    rows = [f"{name}:{line}: {field}: {message}" for line, field, message in sorted(faults)]
    line, field, _ = min(faults)
    raise CatalogError("\n".join(rows), param=field, line=line)


def line_of(text: str, at: Location) -> int:
    """The line (from 1) on which this part of a valid catalog stands; of what it leaves out, that of what holds it."""
    node, line = YAML(typ="rt", pure=True).load(text), 1
    for part in at:
        if not _holds(node, part):
            break
        line = _line_in(node, part)
        node = node[part]
    return line


def _fault(tree: Any, loc: Location, message: str, kind: str) -> tuple[int, str, str]:
    """Walks the YAML tree along pydantic's location: (line from 1, dotted field, what was expected)."""
    node, line, field = tree, 1, []
    for part in loc:
        if part == "[key]":
            continue
        if _holds(node, part):
            line = _line_in(node, part)
            node = node[part]
        elif kind != "missing" or part in _UNION_MEMBERS or part in (BY_TOKEN, BY_BOOK):
            continue  # the name of a union's member, which the file does not have
        field.append(str(part))
    if kind == "extra_forbidden":
        message = _moved(field) or "is not a known field"
    elif kind == "union_tag_not_found":
        message = f"`kind` is required: {_KINDS}"
    elif kind == "union_tag_invalid":
        message = f"there is no kind '{node['kind']}': {_KINDS}"
    return line, ".".join(field) or "(file)", message


_NOW_IN_SLO = {"slo_ms": "max_latency_ms", "ttft_ms": "max_ttft_ms"}
"""Fields that a tier once had, and their names in its `slo`."""


def _moved(field: list[str]) -> str | None:
    if field[-1] == "rent_usd_per_hour":
        return "is `rent.usd_per_hour` now: write `rent: {usd_per_hour: …}`"
    now = _NOW_IN_SLO.get(field[-1]) if len(field) == 3 and field[0] == "tiers" else None
    return now and f"is `slo.{now}` now: write `slo: {{{now}: …}}`"


_UNION_MEMBERS = ("openai_http", "llama_cpp", "vllm_server", "lora", "instant")
_KINDS = "one of " + ", ".join(f"'{kind}'" for kind in _UNION_MEMBERS)


def _line_in(node: Any, part: int | str) -> int:
    """The line (from 1) of a key or an item. What a merge (`<<: *base`) brings in stands where it was written."""
    if part in node.lc.data:
        return int(node.lc.data[part][0]) + 1
    return next(_line_in(base, part) for base in node.merge if part in base)


def _holds(node: Any, part: int | str) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)
