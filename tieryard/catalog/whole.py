"""The whole catalog, and what holds between its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from datetime import date, timedelta
from typing import Literal, Self

import orjson
from pydantic import Field, model_validator

from tieryard.catalog import tariffs
from tieryard.catalog.base import CategoryName, DeploymentName, Strict, TierName, misfit
from tieryard.catalog.benchmarks import Benchmarks
from tieryard.catalog.deployments import Deployment, served_model
from tieryard.catalog.engines import AttachedEngine, LoraEngine, VllmEngine
from tieryard.catalog.price_book import InstancePrice, PriceBook
from tieryard.catalog.prices import Price
from tieryard.catalog.rents import Host, Rent
from tieryard.catalog.routing import Routing
from tieryard.catalog.sizes import SizeClass
from tieryard.catalog.tiers import Tier
from tieryard.errors import UserError
from tieryard.requests import Relative


class Catalog(Strict):
    """The whole file."""

    version: Literal[1] = Field(description="Of this format.")
    tiers: dict[TierName, Tier] = Field(min_length=1, description="By name, most urgent first.")
    categories: list[CategoryName] = Field(min_length=1, description="What callers may name.")
    deployments: dict[DeploymentName, Deployment] = Field(min_length=1, description="By name.")
    routing: Routing = Field(default=Routing(), description="How the router chooses; each part has a default.")
    benchmarks: Benchmarks = Field(default=Benchmarks(), description="How the fleet measures itself.")

    price_book: PriceBook = Field(default=PriceBook(), description="What hosted models and instances cost, by day.")
    overhead: tuple[Host, ...] = Field(default=(), description="Hosts that are rented and serve no model.")
    baseline: DeploymentName | None = Field(
        default=None,
        description="What savings are counted against. Default: the large one with the dearest completion tokens.",
    )

    @model_validator(mode="after")
    def _prices_are_in_the_book(self) -> Self:
        if self.baseline is not None and self.baseline not in self.deployments:
            raise misfit(f"'{self.baseline}' is not a deployment of this catalog", "baseline")
        tariffs.check(self.price_book, self.deployments, self.overhead)
        return self

    @model_validator(mode="after")
    def _hosts_have_one_name_each(self) -> Self:
        names = [host.name for host in self.overhead]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise misfit(f"'{name}' is overhead.{names.index(name)} too", "overhead", number, "name")
        return self

    @model_validator(mode="after")
    def _adapters_fit_their_hosts(self) -> Self:
        for name, deployment in self.deployments.items():
            if isinstance(deployment.engine, LoraEngine):
                field, fault = self._misfit(name, deployment, deployment.engine.host)
                if fault:
                    raise misfit(fault, "deployments", name, *field.split("."))
        return self

    @model_validator(mode="after")
    def _routing_names_what_there_is(self) -> Self:
        for kind, known, name, at in self._named():
            if name not in known:
                raise misfit(f"'{name}' is not a {kind} of this catalog", *at)
        for number, shadow in enumerate(self.routing.shadows):
            if shadow.of == shadow.to:
                raise misfit("is where the jobs go anyway", "routing", "shadows", number, "to")
        return self

    @model_validator(mode="after")
    def _candidates_stand_beside_others(self) -> Self:
        for name, deployment in self.deployments.items():
            if (other := deployment.candidate_of) is None:
                continue
            at = ("deployments", name, "candidate_of")
            if other == name:
                raise misfit("is the candidate itself", *at)
            if self.deployments[other].candidate_of is not None:
                raise misfit(f"'{other}' is a candidate too: name the one that serves", *at)
        return self

    @model_validator(mode="after")
    def _judge_writes(self) -> Self:
        judge = self.benchmarks.judge
        if judge is not None and self.deployments[judge.deployment].serves != "text":
            raise misfit(f"'{judge.deployment}' serves embeddings: a judge writes", "benchmarks", "judge", "deployment")
        return self

    def _named(self) -> Iterator[tuple[str, Collection[str], str, tuple[str | int, ...]]]:
        """What is spoken of by name: (kind, the names there are, the name, where it stands)."""
        routing = self.routing
        for name, tier in self.tiers.items():
            if isinstance(tier.slo.min_quality, Relative):
                at = ("tiers", name, "slo", "min_quality", "of")
                yield "deployment", self.deployments, tier.slo.min_quality.of, at
        for category in routing.floors:
            yield "category", self.categories, category, ("routing", "floors", category)
        for number, tier_name in enumerate(routing.exploration.tiers):
            if "tiers" in routing.exploration.model_fields_set:
                yield "tier", self.tiers, tier_name, ("routing", "exploration", "tiers", number)
        for number, shadow in enumerate(routing.shadows):
            for field in ("of", "to"):
                yield "deployment", self.deployments, getattr(shadow, field), ("routing", "shadows", number, field)
        for tenant, policy in routing.policies.items():
            for number, model in enumerate(policy.models or ()):
                yield "deployment", self.deployments, model, ("routing", "policies", tenant, "models", number)
        yield from self._named_by_benchmarks()

    def _named_by_benchmarks(self) -> Iterator[tuple[str, Collection[str], str, tuple[str | int, ...]]]:
        bench = self.benchmarks
        for name, deployment in self.deployments.items():
            if deployment.candidate_of is not None:
                yield "deployment", self.deployments, deployment.candidate_of, ("deployments", name, "candidate_of")
        for number, item in enumerate(bench.sample.items):
            yield "category", self.categories, item.category, ("benchmarks", "sample", "items", number, "category")
        for category in bench.gate.floors:
            yield "category", self.categories, category, ("benchmarks", "gate", "floors", category)
        if bench.judge is not None:
            yield "deployment", self.deployments, bench.judge.deployment, ("benchmarks", "judge", "deployment")
        for name, schedule in bench.schedules.items():
            for number, deployment_name in enumerate(schedule.deployments or ()):
                at = ("benchmarks", "schedules", name, "deployments", number)
                yield "deployment", self.deployments, deployment_name, at

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

    def price_of(self, name: str, day: date) -> Price:
        """What this deployment's tokens cost on a day. A rented one is charged so until its own price is measured."""
        return tariffs.price_on(self.price_book, self.deployments[name].price, day)

    def prices_on(self, day: date) -> dict[str, Price]:
        """Of every deployment, as `price_of`."""
        return {name: self.price_of(name, day) for name in self.deployments}

    def instance_of(self, rent: Rent, day: date) -> InstancePrice | None:
        """The price book's row that a rent is by on a day; None where the catalog says the rent itself."""
        return tariffs.instance_on(self.price_book, rent, day)

    def lapsed_on(self, day: date) -> list[tuple[tariffs.At, str]]:
        """Where a deployment or a host goes by the price book, and no row of it holds on that day: where in the file,
        and why. What runs all the same is paid as it last was."""
        return tariffs.lapsed(self.price_book, self.deployments, self.overhead, day)

    def baseline_on(self, day: date) -> str | None:
        """What savings are counted against: as the catalog says, else the large one with the dearest completion tokens
        on that day. None where there is no large one."""
        if self.baseline is not None:
            return self.baseline
        large = [
            name
            for name, d in self.deployments.items()
            if d.size_class is SizeClass.LARGE and d.serves == "text" and d.candidate_of is None
        ]
        return max(large, key=lambda name: self.price_of(name, day).output_usd_per_1m, default=None)

    def with_server(self, name: str, url: str) -> Catalog:
        """The same, but for where this deployment's attached server is: of a replica that has a server of its own.
        Raises UserError."""
        deployment = self.deployments[name]
        if not isinstance(deployment.engine, AttachedEngine) or not url.startswith(("http://", "https://")):
            raise UserError(f"'{url}': a URL is http://… or https://…, and for a deployment with `kind: openai_http`")
        moved = deployment.model_copy(update={"engine": deployment.engine.model_copy(update={"url": url})})
        return self.model_copy(update={"deployments": {**self.deployments, name: moved}})

    def hash(self) -> str:
        """Names this exact content: the same catalog always gives the same 12 hex digits."""
        body = orjson.dumps(self.model_dump(), default=lambda v: sorted(v) if isinstance(v, frozenset) else str(v))
        return hashlib.sha256(body).hexdigest()[:12]

    def due_in(self, tier: str, window: timedelta | None) -> timedelta:
        """How long a job of this tier may take before it expires."""
        return window if window is not None else self.tiers[tier].window
