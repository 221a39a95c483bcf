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
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
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


Check = Literal["stops", "structured_output", "chat_template", "tokenizer", "isolation"]
"""What a vLLM server is asked at its start, before it is given work."""


class AttachedEngine(_Strict):
    """An OpenAI-compatible server that somebody else runs."""

    kind: Literal["openai_http"]
    url: str = Field(pattern=r"^https?://", description="Base URL, up to but without `/v1`.")
    server: Literal["vllm", "llama_cpp", "openai"] = Field(
        default="vllm", description="Which server it is: decides how usage is asked for while streaming."
    )
    served_model: str | None = Field(default=None, description="`model` to send. Default: the deployment's model.")
    unchecked: frozenset[Check] = Field(default=frozenset(), description="Start-up checks of a vLLM to leave out.")


class LlamaCppEngine(_Strict):
    """llama.cpp's own server, started by the inference worker."""

    kind: Literal["llama_cpp"]
    weights: str = Field(description="Path of a GGUF file, or `package:file` of an installed package.")
    slots: int = Field(default=4, ge=1, le=256, description="Requests decoded together; each has the full context.")
    threads: int | None = Field(default=None, ge=1)


FLEET_FLAGS: dict[str, str] = {
    **dict.fromkeys(("host", "port", "uds"), "the infer process chooses where the server listens"),
    **dict.fromkeys(("model", "model_tag"), "the engine's `weights` name what is loaded"),
    "served_model_name": "it is the deployment's `model`",
    **dict.fromkeys(("revision", "tokenizer_revision"), "it is the deployment's `revision`"),
    **dict.fromkeys(("enable_lora", "lora_modules"), "an adapter is a deployment of its own, with `kind: lora`"),
    "config": "a file could set any flag unseen; write them here",
    "api_key": "the server listens on 127.0.0.1 and only the fleet asks it",
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "root_path"), "the fleet speaks plain HTTP to it"),
    "disable_log_stats": "the infer process reads the server's figures",
    "enable_prompt_tokens_details": "the fleet always sets it, to know what came from the prefix cache",
    **dict.fromkeys(
        ("enable_log_requests", "enable_log_outputs", "log_error_stack", "log_config_file"), "logs never hold a prompt"
    ),
    "hf_token": "keys do not belong into a catalog; set HF_TOKEN in the infer process's environment",
    **dict.fromkeys(("headless", "grpc", "help"), "the infer process needs the HTTP server"),
}
"""vLLM's flags that a catalog may not set, each with why."""


_KEYS_STAY_OUT = "a secret has no place in a catalog: set it in the infer process's environment, which passes it on"
FLEET_ENV: dict[str, str] = {
    "VLLM_API_KEY": FLEET_FLAGS["api_key"],
    **dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), _KEYS_STAY_OUT),
}
"""Environment variables that a catalog may not set for a vLLM, each with why."""


def _env_name(name: str) -> str:
    if (why := FLEET_ENV.get(name)) is not None:
        raise ValueError(f"is not for the catalog to set: {why}")
    return name


def _flag_name(name: str) -> str:
    if (why := FLEET_FLAGS.get(name)) is not None:
        raise ValueError(f"is not for the catalog to set: {why}")
    if name.startswith("no_"):
        raise ValueError(f"is written as `{name[3:]}: false`")
    return name


def _flag_value(value: object) -> object:
    """Plain Python of what the YAML reader gives, whose numbers remember how they were written."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, list):
        return [_flag_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _flag_value(item) for key, item in value.items()}
    raise ValueError("expected true, false, a number, text, a list or a mapping")


def _env_value(value: object) -> object:
    """Numbers are written without quotes; the environment holds text."""
    return f"{value}" if isinstance(value, int | float) and not isinstance(value, bool) else value


FlagName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$"), AfterValidator(_flag_name)]
FlagValue = Annotated[Any, AfterValidator(_flag_value)]
EnvName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$"), AfterValidator(_env_name)]


class VllmEngine(_Strict):
    """`vllm serve`, started by the inference worker from an environment of its own."""

    kind: Literal["vllm_server"]
    weights: str | None = Field(
        default=None, min_length=1, description="A directory, or a name on the hub. Default: the deployment's model."
    )
    python: str | None = Field(
        default=None, min_length=1, description="Interpreter of the environment that vLLM is installed in."
    )
    flags: dict[FlagName, FlagValue] = Field(default={}, description="vLLM's own, with underscores.")
    env: dict[EnvName, Annotated[str, BeforeValidator(_env_value)]] = Field(
        default={}, description="Environment variables for vLLM."
    )
    start_within: Duration = Field(default=timedelta(minutes=15), description="A start that takes longer has failed.")
    unchecked: frozenset[Check] = Field(default=frozenset(), description="Start-up checks to leave out.")

    @model_validator(mode="after")
    def _length_is_a_number(self) -> Self:
        length = self.flags.get("max_model_len")
        if length is not None and (type(length) is not int or length <= 0):
            raise ValueError("flags.max_model_len must be a whole number of tokens")
        return self


class LoraEngine(_Strict):
    """A LoRA adapter, served by another deployment's vLLM under this deployment's name."""

    kind: Literal["lora"]
    host: str = Field(description="The deployment whose engine and infer process serve it.")
    weights: str = Field(min_length=1, description="The adapter's directory, or its name on the hub.")


class InstantEngine(_Strict):
    """Answers at once, inside the worker: for measuring everything else."""

    kind: Literal["instant"]
    delay_ms: float = Field(default=0, ge=0)


EngineSpec = Annotated[
    AttachedEngine | LlamaCppEngine | VllmEngine | LoraEngine | InstantEngine, Field(discriminator="kind")
]


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
    auto: bool | None = Field(
        default=None, description="Whether `auto` and classes may choose it. Default: yes, and no for LoRA adapters."
    )

    @property
    def pinned(self) -> str:
        """Just what answers: the model at its revision."""
        return f"{self.model}@{self.revision}"

    @property
    def named_only(self) -> bool:
        """Whether only jobs that name it may go there: what an adapter was tuned for, `auto` cannot know."""
        return isinstance(self.engine, LoraEngine) if self.auto is None else not self.auto

    @property
    def endpoints(self) -> frozenset[str]:
        """The routes whose requests it takes."""
        return frozenset({EMBEDDINGS} if self.serves == "embeddings" else {CHAT, COMPLETIONS})

    @model_validator(mode="after")
    def _reserve_leaves_room(self) -> Self:
        if self.realtime_reserve >= self.max_in_flight:
            raise ValueError("realtime_reserve must be below max_in_flight")
        return self

    @model_validator(mode="after")
    def _vllm_holds_the_context(self) -> Self:
        if isinstance(self.engine, VllmEngine):
            length = self.engine.flags.get("max_model_len", self.context_limit)
            if length < self.context_limit:
                raise ValueError(
                    f"the engine's flags.max_model_len ({length}) must be at least context_limit ({self.context_limit})"
                )
        return self


def served_model(deployment: Deployment) -> str:
    """The name that its server knows the deployment's own model by."""
    engine = deployment.engine
    return (engine.served_model if isinstance(engine, AttachedEngine) else None) or deployment.model


class Catalog(_Strict):
    """The whole file."""

    version: Literal[1]
    tiers: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")], Tier] = Field(min_length=1)
    categories: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]] = Field(min_length=1)
    deployments: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,62}$")], Deployment] = Field(min_length=1)

    @model_validator(mode="after")
    def _adapters_fit_their_hosts(self) -> Self:
        for name, deployment in self.deployments.items():
            if isinstance(deployment.engine, LoraEngine):
                field, fault = self._misfit(name, deployment, deployment.engine.host)
                if fault:
                    at = ("deployments", name, *field.split("."))
                    raise PydanticCustomError("misfit", "{fault}", {"fault": fault, "at": at})
        return self

    def _misfit(self, name: str, adapter: Deployment, host_name: str) -> tuple[str, str]:
        """The field that keeps a LoRA adapter from being served by its host, and why; twice nothing when it fits."""
        host = self.deployments.get(host_name)
        if host is None:
            return "engine.host", f"'{host_name}' is not a deployment of this catalog"
        attached = isinstance(host.engine, AttachedEngine) and host.engine.server == "vllm"
        if not attached and not isinstance(host.engine, VllmEngine):
            return "engine.host", f"'{host_name}' must be a vLLM: `vllm_server`, or `openai_http` with `server: vllm`"
        if adapter.context_limit > host.context_limit:
            return "context_limit", f"{adapter.context_limit} is above its host's {host.context_limit}"
        if adapter.max_in_flight != host.max_in_flight:
            both = f"{adapter.max_in_flight} differs from its host's {host.max_in_flight}"
            return "max_in_flight", f"{both}, and they share one engine"
        if adapter.realtime_reserve not in (0, host.realtime_reserve):
            return "realtime_reserve", "is its host's to keep: leave it out"
        if adapter.serves != host.serves:
            return "serves", f"'{adapter.serves}' differs from its host's '{host.serves}'"
        if adapter.tokenizer != host.tokenizer:
            return "tokenizer", f"differs from its host's, whose server reads and counts for both: '{host.tokenizer}'"
        if unknown := sorted(adapter.capabilities - host.capabilities):
            return "capabilities", f"{', '.join(unknown)}: its host '{host_name}' has no such capability"
        if name == served_model(host):
            return "engine.host", f"'{host_name}' serves its own model as '{name}': name this deployment otherwise"
        return "", ""

    @property
    def hosts(self) -> list[str]:
        """The deployments that have infer processes of their own: all but LoRA adapters."""
        return [name for name, d in self.deployments.items() if not isinstance(d.engine, LoraEngine)]

    def host_of(self, name: str) -> str:
        """The deployment whose infer process serves this one: itself, or a LoRA adapter's host."""
        engine = self.deployments[name].engine
        return engine.host if isinstance(engine, LoraEngine) else name

    def adapters_of(self, host: str) -> list[str]:
        """The LoRA adapters that this deployment's engine serves beside its own model."""
        return [name for name in self.deployments if name != host and self.host_of(name) == host]

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
        faults = [
            _fault(tree, e["loc"] or e.get("ctx", {}).get("at", ()), e["msg"], e["type"])
            for e in error.errors(include_url=False)
        ]
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


_UNION_MEMBERS = ("openai_http", "llama_cpp", "vllm_server", "lora", "instant")


def _holds(node: Any, part: int | str) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)
