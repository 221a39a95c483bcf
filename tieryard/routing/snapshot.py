"""What the router knows when it decides: a frozen value that is stored, so a decision can be explained later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Self

import orjson

from tieryard.catalog import Catalog, Deployment, Price, SizeClass
from tieryard.requests import Relative
from tieryard.routing.profiles import Profile
from tieryard.routing.trials import NO_TRIALS, Trials


@dataclass(frozen=True, slots=True)
class Measured:
    """What a deployment's replicas publish, summed. `backlog` is what a new job waits for, and `behind` what would wait
    for it. `kv_usage`, 0 to 1, is of the emptiest KV cache, None where no
    server says so. `broken` says that the circuit breaker is open, and since when, or that it lets a few through.
    `awaited`: a replica served lately, and one is likely to again."""

    capacity: int = 0
    in_flight: int = 0
    backlog: int = 0
    behind: int = 0
    replicas: int = 0
    kv_usage: float | None = None
    broken: str = ""
    probing: bool = False
    awaited: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an answer must keep to: a tier's, or one job's. See `tieryard.requests.TierSlo`."""

    max_ttft_ms: float | None = None
    max_latency_ms: float | None = None
    max_cost_per_1k: Decimal | None = None
    min_quality: float | None = None
    quality_share: float | None = None
    quality_of: str | None = None

    @classmethod
    def of(cls, slo: Any) -> Self:
        """Of a `TierSlo` or `Slo`."""
        floor = slo.min_quality
        relative = floor if isinstance(floor, Relative) else None
        return cls(
            slo.max_ttft_ms,
            slo.max_latency_ms,
            slo.max_cost_per_1k,
            None if relative else floor,
            relative.share if relative else None,
            relative.of if relative else None,
        )

    def over(self, other: Bounds) -> Bounds:
        """This, with the other's where it says nothing; a floor of quality is one thing, however it is put."""
        floor = self if self.min_quality is not None or self.quality_of is not None else other
        return Bounds(
            other.max_ttft_ms if self.max_ttft_ms is None else self.max_ttft_ms,
            other.max_latency_ms if self.max_latency_ms is None else self.max_latency_ms,
            other.max_cost_per_1k if self.max_cost_per_1k is None else self.max_cost_per_1k,
            floor.min_quality,
            floor.quality_share,
            floor.quality_of,
        )

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        dear = stored.get("max_cost_per_1k")
        return cls(**{**stored, "max_cost_per_1k": None if dear is None else Decimal(dear)})


@dataclass(frozen=True, slots=True)
class TierRules:
    """A tier, as the router needs it. `needed_tps` is the rate (output tokens a second) at which its backlog must be
    worked off so that the earliest deadlines hold; 0 where there is none."""

    bounds: Bounds = Bounds()
    from_claim: bool = False
    may_wait: bool = False
    needed_tps: float = 0.0


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """What holds for one tenant; None leaves it open."""

    models: frozenset[str] | None = None
    regions: frozenset[str] | None = None
    min_quality: float | None = None
    max_cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """The catalog's routing section, and tiers. `classifier` is `learned` or `rules`; `step_back` says why it is the
    latter though the former was asked for. `trials` are in force under this catalog."""

    tiers: dict[str, TierRules] = field(default_factory=dict)
    policies: dict[str, PolicyRules] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    weights: tuple[float, float, float] = (0.5, 0.3, 0.2)
    quality_worth: float = 0.2
    classifier: str = "rules"
    step_back: str = ""
    max_error_rate: float = 0.01
    explore_share: float = 0.0
    explore_tiers: frozenset[str] = frozenset()
    trials: Trials = NO_TRIALS

    @classmethod
    def of(cls, catalog: Catalog) -> Self:
        routing = catalog.routing
        return cls(
            tiers={
                name: TierRules(Bounds.of(tier.slo), tier.slo_from == "claimed", tier.may_wait)
                for name, tier in catalog.tiers.items()
            },
            policies={
                tenant: PolicyRules(
                    frozenset(p.models) if p.models is not None else None,
                    frozenset(p.regions) if p.regions is not None else None,
                    p.min_quality,
                    p.max_cost_usd,
                )
                for tenant, p in routing.policies.items()
            },
            floors=dict(routing.floors),
            weights=(routing.weights.quality, routing.weights.cost, routing.weights.latency),
            quality_worth=routing.quality_worth,
            classifier=routing.classifier,
            max_error_rate=routing.max_error_rate,
            explore_share=routing.exploration.share,
            explore_tiers=frozenset(routing.exploration.tiers),
        )

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        tiers = {k: TierRules(**{**t, "bounds": Bounds.from_dict(t["bounds"])}) for k, t in stored["tiers"].items()}
        policies = {
            k: PolicyRules(
                None if p["models"] is None else frozenset(p["models"]),
                None if p["regions"] is None else frozenset(p["regions"]),
                p["min_quality"],
                None if p["max_cost_usd"] is None else Decimal(p["max_cost_usd"]),
            )
            for k, p in stored["policies"].items()
        }
        plain = {"weights": tuple(stored["weights"]), "explore_tiers": frozenset(stored["explore_tiers"])}
        trials = Trials.from_dict(stored["trials"]) if "trials" in stored else NO_TRIALS
        return cls(**{**stored, **plain, "tiers": tiers, "policies": policies, "trials": trials})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment as the router sees it. `live` is whether a replica is serving now; `refused` says why it can take
    nothing at this moment, for a call that cannot wait until it can. `candidate_of` is what it may take jobs beside,
    where it is promoted. `quality` is what to expect of it until it is measured, None for what its size class gives.
    `measured_as` is its name in the quality model. Of the rest see `Measured`."""

    name: str
    size_class: SizeClass
    context_limit: int
    tokenizer: str
    capabilities: frozenset[str]
    input_usd_per_1m: Decimal
    output_usd_per_1m: Decimal
    quality: float | None
    live: bool = False
    serves: frozenset[str] = frozenset({"/v1/chat/completions", "/v1/completions"})
    capacity: int = 0
    in_flight: int = 0
    backlog: int = 0
    behind: int = 0
    replicas: int = 0
    kv_usage: float | None = None
    broken: str = ""
    probing: bool = False
    awaited: bool = False
    refused: str = ""
    named_only: bool = False
    candidate_of: str = ""
    region: str | None = None
    measured_as: str = ""
    profiles: dict[str, Profile] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, d: Deployment, price: Price, seen: Measured, profiles: dict[str, Profile]) -> Self:
        return cls(
            name=name,
            size_class=d.size_class,
            context_limit=d.context_limit,
            tokenizer=d.tokenizer,
            capabilities=frozenset(d.capabilities),
            input_usd_per_1m=price.input_usd_per_1m,
            output_usd_per_1m=price.output_usd_per_1m,
            quality=d.quality,
            serves=d.endpoints,
            named_only=d.named_only,
            candidate_of=d.candidate_of or "",
            region=d.region,
            measured_as=d.measured_as or name,
            live=seen.capacity > 0,
            **asdict(seen),
            profiles=profiles,
        )

    @property
    def price(self) -> Price:
        return Price(input_usd_per_1m=self.input_usd_per_1m, output_usd_per_1m=self.output_usd_per_1m)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All candidates, with the hash of the catalog they come from, and its rules. `quality_model` is the hash of the
    learned model whose word the features hold, also while the rules decide; empty where none has one."""

    catalog: str
    candidates: tuple[Candidate, ...]
    rules: Rules = Rules()
    quality_model: str = ""
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What is worked out once a category; no part of the value."""

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        *,
        gauges: Mapping[str, Measured] | None = None,
        profiles: Mapping[str, dict[str, Profile]] | None = None,
        needed_tps: Mapping[str, float] | None = None,
        exploring: bool = True,
        step_back: str = "",
        quality_model: str = "",
        trials: Trials = NO_TRIALS,
        prices: Mapping[str, Price] | None = None,
    ) -> Self:
        """The catalog with what is measured of each deployment: summed gauges, and profiles by category. `exploring`:
        there is money left for it today. `prices`: what tokens cost now, where that is not what the catalog says of
        today."""
        usd = catalog.prices_on(datetime.now(tz=UTC).date()) | dict(prices or {})
        rules = replace(Rules.of(catalog), trials=trials.holding(catalog))
        if step_back:
            rules = replace(rules, classifier="rules", step_back=step_back)
        if not exploring:
            rules = replace(rules, explore_share=0.0)
        if needed_tps:
            tiers = {k: replace(t, needed_tps=needed_tps.get(k, 0.0)) for k, t in rules.tiers.items()}
            rules = replace(rules, tiers=tiers)
        return cls(
            catalog.hash(),
            tuple(
                Candidate.of(name, d, usd[name], (gauges or {}).get(name, Measured()), (profiles or {}).get(name, {}))
                for name, d in catalog.deployments.items()
            ),
            rules,
            quality_model,
        )

    def refusing(self, reasons: Mapping[str, str]) -> Self:
        """The same, but these candidates (by name) can take nothing now, for these reasons."""
        candidates = (replace(c, refused=reasons.get(c.name, c.refused)) for c in self.candidates)
        return replace(self, candidates=tuple(candidates))

    def to_json(self) -> bytes:
        """The same snapshot gives the same bytes."""
        known = {"catalog": self.catalog, "candidates": self.candidates, "rules": self.rules}
        known["quality_model"] = self.quality_model
        return orjson.dumps(known, default=plain, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        return cls(
            body["catalog"],
            tuple(
                Candidate(
                    **{
                        **c,
                        "size_class": SizeClass(c["size_class"]),
                        "capabilities": frozenset(c["capabilities"]),
                        **({"serves": frozenset(c["serves"])} if "serves" in c else {}),
                        "input_usd_per_1m": Decimal(c["input_usd_per_1m"]),
                        "output_usd_per_1m": Decimal(c["output_usd_per_1m"]),
                        "profiles": {k: Profile(**p) for k, p in c["profiles"].items()},
                    }
                )
                for c in body["candidates"]
            ),
            Rules.from_dict(body["rules"]) if "rules" in body else Rules(),
            body.get("quality_model", ""),
        )


def plain(value: Any) -> Any:
    """What orjson does not know, as it is stored."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(type(value).__name__)
