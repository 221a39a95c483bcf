"""Engines as the catalog describes them: attached, started by the infer process, or inside it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from tieryard.catalog.base import Strict, too_large
from tieryard.requests import Duration

Check = Literal["stops", "structured_output", "chat_template", "tokenizer", "isolation"]
"""What a vLLM server is asked at its start, before it is given work."""


OWN_SERVERS = ("vllm", "llama_cpp")
"""Servers of `AttachedEngine` that are run for this fleet; others are hosted APIs."""


class RateLimits(Strict):
    """What a hosted API lets one key do. The router keeps within it, and overflow goes elsewhere."""

    requests_per_minute: int | None = Field(default=None, gt=0, description="Default: no limit.")
    tokens_per_minute: int | None = Field(default=None, gt=0, description="Prompt and completion.")


def _plain_url(url: str) -> str:
    """The refusal does not quote it."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("a URL with a user or a password has no place in a catalog: name a variable in `key_env`")
    if parts.query or parts.fragment:
        raise ValueError("must end before `/v1`, without `?` and `#`: routes are put behind it")
    return url


class AttachedEngine(Strict):
    """An OpenAI-compatible server that somebody else runs."""

    kind: Literal["openai_http"] = Field(description="Tells engines apart.")
    url: Annotated[str, AfterValidator(_plain_url)] = Field(
        pattern=r"^https?://", description="Base URL, up to but without `/v1`."
    )
    server: Literal["vllm", "llama_cpp", "openai", "mistral"] = Field(
        default="vllm", description="Which server it is: decides how usage is asked for while streaming."
    )
    served_model: str | None = Field(default=None, description="`model` to send. Default: the deployment's model.")
    key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="The environment variable that holds its bearer key. Default: TIERYARD_ENGINE_KEY.",
    )
    limits: RateLimits | None = Field(default=None, description="What a hosted API allows.")
    unchecked: frozenset[Check] = Field(default=frozenset(), description="Start-up checks of a vLLM to leave out.")


class LlamaCppEngine(Strict):
    """llama.cpp's own server, started by the inference worker."""

    kind: Literal["llama_cpp"] = Field(description="Tells engines apart.")
    weights: str = Field(description="Path of a GGUF file, or `package:file` of an installed package.")
    slots: int = Field(default=4, ge=1, le=256, description="Requests decoded together; each has the full context.")
    threads: int | None = Field(default=None, ge=1, description="For decoding. Default: llama.cpp's own choice.")


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
    if too_large(value):
        raise ValueError("must fit in 64 bits")
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


_EnvValue = Annotated[str, BeforeValidator(_env_value), WithJsonSchema({"type": ["string", "number"]})]
FlagName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$"), AfterValidator(_flag_name)]
FlagValue = Annotated[Any, AfterValidator(_flag_value)]
EnvName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$"), AfterValidator(_env_name)]


class VllmEngine(Strict):
    """`vllm serve`, started by the inference worker from an environment of its own."""

    kind: Literal["vllm_server"] = Field(description="Tells engines apart.")
    weights: str | None = Field(
        default=None, min_length=1, description="A directory, or a name on the hub. Default: the deployment's model."
    )
    python: str | None = Field(
        default=None, min_length=1, description="Interpreter of the environment that vLLM is installed in."
    )
    flags: dict[FlagName, FlagValue] = Field(default={}, description="vLLM's own, with underscores.")
    env: dict[EnvName, _EnvValue] = Field(default={}, description="Environment variables for vLLM.")
    start_within: Duration = Field(default=timedelta(minutes=15), description="A start that takes longer has failed.")
    unchecked: frozenset[Check] = Field(default=frozenset(), description="Start-up checks to leave out.")

    @model_validator(mode="after")
    def _length_is_a_number(self) -> Self:
        length = self.flags.get("max_model_len")
        if length is not None and (type(length) is not int or length <= 0):
            raise ValueError("flags.max_model_len must be a whole number of tokens")
        return self


class LoraEngine(Strict):
    """A LoRA adapter, served by another deployment's vLLM under this deployment's name."""

    kind: Literal["lora"] = Field(description="Tells engines apart.")
    host: str = Field(description="The deployment whose engine and infer process serve it.")
    weights: str = Field(min_length=1, description="The adapter's directory, or its name on the hub.")


class InstantEngine(Strict):
    """Answers at once, inside the worker: for measuring everything else."""

    kind: Literal["instant"] = Field(description="Tells engines apart.")
    delay_ms: float = Field(default=0, ge=0, description="Before the answer.")


EngineSpec = Annotated[
    AttachedEngine | LlamaCppEngine | VllmEngine | LoraEngine | InstantEngine, Field(discriminator="kind")
]
