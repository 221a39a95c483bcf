"""A deployment: a model on an engine somewhere, its price, its limits, and what it can do."""

from __future__ import annotations

import hashlib
from typing import Literal, Self

import orjson
from pydantic import Field, model_validator

from tieryard.catalog.base import DeploymentName, Strict, misfit
from tieryard.catalog.engines import AttachedEngine, EngineSpec, LoraEngine, VllmEngine
from tieryard.catalog.prices import AnyPrice, BookPrice
from tieryard.catalog.rents import Rent
from tieryard.catalog.sizes import SizeClass
from tieryard.requests import CHAT, COMPLETIONS, EMBEDDINGS

_FLOATING = frozenset({"main", "master", "head", "latest", "stable", "default", "current", "nightly", "trunk", "dev"})


class Deployment(Strict):
    """A model on an engine somewhere: one model queue, one price, one context limit, N replicas."""

    model: str = Field(min_length=1, description="Its name; sent to an attached engine unless `served_model` differs.")
    revision: str = Field(min_length=1, description="Commit, tag or version that pins what answers.")
    allow_floating: bool = Field(default=False, description="Whether a revision that moves, such as `main`, is meant.")
    quantization: str | None = Field(default=None, min_length=1, description="Of the weights: `awq`, `gptq`, `fp8` …")
    size_class: SizeClass = Field(description="`small` ≤ 8B, `medium` > 8B and < 70B, `large` ≥ 70B parameters.")
    engine: EngineSpec = Field(description="What serves it.")
    context_limit: int = Field(gt=0, description="Tokens: prompt and completion together.")
    max_in_flight: int = Field(gt=0, description="Requests kept in the engine at once, per replica.")
    realtime_reserve: int = Field(default=0, ge=0, description="Of those, kept free for realtime jobs.")
    tokenizer: str = Field(
        description="Directory with tokenizer.json, a GGUF (path or `package:file`), or `utf8`: a token a byte."
    )
    price: AnyPrice = Field(
        description="What its tokens cost. Of a rented one: until a speed run under full load says it, with its rent."
    )
    capabilities: frozenset[Literal["json_schema", "tools", "logprobs"]] = Field(
        default=frozenset(), description="What it can do beside plain answers."
    )
    serves: Literal["text", "embeddings"] = Field(default="text", description="Completions, or embeddings.")
    quality: float | None = Field(
        default=None, ge=0, le=1, description="What to expect until it is measured. Default: by its size class."
    )
    measured_as: str | None = Field(default=None, description="Its name in the quality model. Default: its own.")
    gpus: int | None = Field(default=None, ge=1, description="A replica's.")
    region: str | None = Field(default=None, min_length=1, description="Where it runs, for policies.")
    auto: bool | None = Field(
        default=None,
        description="Whether `auto` and classes may choose it. Default: yes; no for LoRA adapters and candidates.",
    )
    candidate_of: DeploymentName | None = Field(
        default=None, description="The deployment that it may take the place of, where it is promoted."
    )
    rent: Rent | None = Field(
        default=None, description="Of a replica, whether it works or not. Its tokens' price is then measured."
    )

    @property
    def pinned(self) -> str:
        """Just what answers: the model at its revision."""
        return f"{self.model}@{self.revision}"

    @property
    def named_only(self) -> bool:
        """Whether only jobs that name it may go there: what an adapter was tuned for, `auto` cannot know, and how good
        a candidate is, nobody."""
        own = isinstance(self.engine, LoraEngine) or self.candidate_of is not None
        return own if self.auto is None else not self.auto

    @property
    def build(self) -> str:
        """All that decides what it answers: model and revision, and a digest of quantization, engine and template."""
        engine = self.engine.model_dump(mode="json", exclude={"url", "key_env", "limits", "unchecked", "start_within"})
        parts = orjson.dumps([engine, self.quantization, self.tokenizer], option=orjson.OPT_SORT_KEYS)
        return f"{self.pinned}#{hashlib.sha256(parts).hexdigest()[:12]}"

    @property
    def endpoints(self) -> frozenset[str]:
        """The routes whose requests it takes."""
        return frozenset({EMBEDDINGS} if self.serves == "embeddings" else {CHAT, COMPLETIONS})

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        if self.revision.lower() in _FLOATING and not self.allow_floating:
            raise misfit(
                f"'{self.revision}' moves: name a commit, tag or version, or set allow_floating: true", "revision"
            )
        return self

    @model_validator(mode="after")
    def _rent_is_its_own(self) -> Self:
        if self.rent is not None and isinstance(self.engine, LoraEngine):
            raise misfit("an adapter is paid with its host: leave this out", "rent")
        if self.rent is not None and isinstance(self.price, BookPrice):
            raise misfit("is a hosted model's: what is rented has a price of its own, or no `rent`", "price", "book")
        return self

    @model_validator(mode="after")
    def _candidate_waits(self) -> Self:
        if self.candidate_of is not None and self.auto:
            raise misfit("a candidate takes jobs where it is promoted, and nowhere else: leave this out", "auto")
        return self

    @model_validator(mode="after")
    def _has_one_quantization(self) -> Self:
        flag = self.engine.flags.get("quantization") if isinstance(self.engine, VllmEngine) else None
        if flag is not None and self.quantization not in (None, flag):
            raise misfit(f"'{self.quantization}' is not the engine's flags.quantization, '{flag}'", "quantization")
        return self

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
