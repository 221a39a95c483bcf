"""The catalog: tiers, deployments, prices and categories, read from `tieryard.yaml`.

It is declarative and validated whole: a bad file is refused with the line, the field and what was expected.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from tieryard.errors import CatalogError
from tieryard.requests import CHAT, COMPLETIONS, EMBEDDINGS, Duration


class SizeClass(StrEnum):
    """≤ 8B, > 8B and < 70B, ≥ 70B parameters. A property of a deployment, never of a job."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


REALTIME = "realtime"
"""The tier that other tiers leave room for."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _exact(value: object) -> object:
    """YAML reads 0.10 as a float; its shortest decimal form is what the author wrote."""
    return repr(float(value)) if isinstance(value, float) else value


Usd = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, max_digits=20, decimal_places=6)]


class Tier(_Strict):
    """A service class."""

    slo_ms: int | None = Field(default=None, gt=0, description="p95 of end-to-end time; none for `bulk`.")
    slo_from: Literal["accepted", "claimed"] = Field(default="accepted", description="Where that time starts.")
    ttft_ms: int | None = Field(default=None, gt=0, description="p95 of the time to the first token.")
    window: Duration = Field(
        default=timedelta(hours=24), description="A job not final this long after acceptance expires."
    )


class Price(_Strict):
    """What tokens cost, in USD per million."""

    input_usd_per_1m: Usd
    output_usd_per_1m: Usd


class AttachedEngine(_Strict):
    """An OpenAI-compatible server that somebody else runs."""

    kind: Literal["openai_http"]
    url: str = Field(pattern=r"^https?://", description="Base URL, up to but without `/v1`.")
    server: Literal["vllm", "llama_cpp", "openai"] = Field(
        default="vllm", description="Which server it is: decides how usage is asked for while streaming."
    )
    served_model: str | None = Field(default=None, description="`model` to send. Default: the deployment's model.")


class LlamaCppEngine(_Strict):
    """llama.cpp's own server, started by the inference worker."""

    kind: Literal["llama_cpp"]
    weights: str = Field(description="Path of a GGUF file, or `package:file` of an installed package.")
    slots: int = Field(default=4, ge=1, le=256, description="Requests decoded together; each has the full context.")
    threads: int | None = Field(default=None, ge=1)


class InstantEngine(_Strict):
    """Answers at once, inside the worker: for measuring everything else."""

    kind: Literal["instant"]
    delay_ms: float = Field(default=0, ge=0)


EngineSpec = Annotated[AttachedEngine | LlamaCppEngine | InstantEngine, Field(discriminator="kind")]


class Deployment(_Strict):
    """A model on an engine somewhere: one model queue, one price, one context limit, N replicas."""

    model: str = Field(min_length=1)
    revision: str = Field(min_length=1, description="Commit, tag or quantization that pins the weights.")
    size_class: SizeClass
    engine: EngineSpec
    context_limit: int = Field(gt=0, description="Tokens: prompt and completion together.")
    max_in_flight: int = Field(gt=0, description="Requests kept in the engine at once, per replica.")
    realtime_reserve: int = Field(default=0, ge=0, description="Of those, kept free for realtime jobs.")
    tokenizer: str = Field(
        description="Directory with tokenizer.json, a GGUF (path or `package:file`), or `utf8`: a token a byte."
    )
    price: Price
    capabilities: frozenset[Literal["json_schema", "tools", "logprobs"]] = frozenset()
    serves: Literal["text", "embeddings"] = Field(default="text", description="Completions, or embeddings.")
    quality: float = Field(default=0.5, ge=0, le=1, description="Prior, until it is measured.")

    @property
    def pinned(self) -> str:
        """Just what answers: the model at its revision."""
        return f"{self.model}@{self.revision}"

    @property
    def endpoints(self) -> frozenset[str]:
        """The routes whose requests it takes."""
        return frozenset({EMBEDDINGS} if self.serves == "embeddings" else {CHAT, COMPLETIONS})

    @model_validator(mode="after")
    def _reserve_leaves_room(self) -> Self:
        if self.realtime_reserve >= self.max_in_flight:
            raise ValueError("realtime_reserve must be below max_in_flight")
        return self


class Catalog(_Strict):
    """The whole file."""

    version: Literal[1]
    tiers: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")], Tier] = Field(min_length=1)
    categories: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]] = Field(min_length=1)
    deployments: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,62}$")], Deployment] = Field(min_length=1)

    def hash(self) -> str:
        """Names this exact content: the same catalog always gives the same 12 hex digits."""
        body = orjson.dumps(self.model_dump(), default=lambda v: sorted(v) if isinstance(v, frozenset) else str(v))
        return hashlib.sha256(body).hexdigest()[:12]

    def due_in(self, tier: str, window: timedelta | None) -> timedelta:
        """How long a job of this tier may take before it expires."""
        return window if window is not None else self.tiers[tier].window


def load_catalog(path: Path) -> Catalog:
    """Reads and checks a catalog file. Raises CatalogError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_catalog(text, name=str(path))


def parse_catalog(text: str, *, name: str = "tieryard.yaml") -> Catalog:
    """Checks a catalog's text. Raises CatalogError with one row per fault: `name:line: field: what is wrong`."""
    try:
        tree = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CatalogError(f"{name}:{line}: not valid YAML: {error.problem}", line=line) from None
    if not isinstance(tree, dict):
        raise CatalogError(f"{name}:1: expected a mapping with version, tiers, categories, deployments", line=1)
    try:
        return Catalog.model_validate(tree)
    except ValidationError as error:
        faults = [_fault(tree, e["loc"], e["msg"], e["type"]) for e in error.errors(include_url=False)]
    rows = [f"{name}:{line}: {field}: {message}" for line, field, message in sorted(faults)]
    line, field, _ = min(faults)
    raise CatalogError("\n".join(rows), param=field, line=line)


def _fault(tree: Any, loc: tuple[int | str, ...], message: str, kind: str) -> tuple[int, str, str]:
    """Walks the YAML tree along pydantic's location: (line from 1, dotted field, what was expected)."""
    node, line, field = tree, 1, []
    for part in loc:
        if part == "[key]":
            continue
        if _holds(node, part):
            line = node.lc.data[part][0] + 1
            node = node[part]
        elif kind != "missing" or part in _UNION_MEMBERS:
            continue  # the name of a union's member, which the file does not have
        field.append(str(part))
    if kind == "missing":
        message = "is required"
    elif kind == "extra_forbidden":
        message = "is not a known field"
    else:
        message = message.removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
    return line, ".".join(field) or "(file)", message


_UNION_MEMBERS = ("openai_http", "llama_cpp", "instant")


def _holds(node: Any, part: int | str) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)
