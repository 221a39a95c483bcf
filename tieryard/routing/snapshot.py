"""What the router knows when it decides: a frozen value that is stored, so a decision can be explained later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import Any, Self

import orjson

from tieryard.catalog import Catalog, SizeClass


@dataclass(frozen=True, slots=True)
class Profile:
    """A deployment's measurements on one category. Rates are tokens a second; None was never measured."""

    samples: int
    timestamp: float
    ttft_ms: float | None = None
    throughput_tps: float | None = None
    cost_per_1k: float | None = None
    error_rate: float | None = None
    quality_score: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a deployment's replicas publish, summed. `kv_usage`, 0 to 1, is of the emptiest KV cache, None where no
    server says so."""

    capacity: int = 0
    in_flight: int = 0
    backlog: int = 0
    kv_usage: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment as the router sees it. `live` is whether a replica is serving now; `refused` says why it can take
    nothing at this moment, for a call that cannot wait until it can. Of the rest see `Measured`."""

    name: str
    size_class: SizeClass
    context_limit: int
    tokenizer: str
    capabilities: frozenset[str]
    input_usd_per_1m: Decimal
    output_usd_per_1m: Decimal
    quality: float
    live: bool = False
    serves: frozenset[str] = frozenset({"/v1/chat/completions", "/v1/completions"})
    capacity: int = 0
    in_flight: int = 0
    backlog: int = 0
    kv_usage: float | None = None
    refused: str = ""
    named_only: bool = False
    profiles: dict[str, Profile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All candidates, with the hash of the catalog they come from."""

    catalog: str
    candidates: tuple[Candidate, ...]

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        *,
        gauges: Mapping[str, Measured] | None = None,
        profiles: dict[str, dict[str, Profile]] | None = None,
    ) -> Self:
        """The catalog with what is measured of each deployment: summed gauges, and profiles by category."""
        seen = {name: (gauges or {}).get(name, Measured()) for name in catalog.deployments}
        profiles = profiles or {}
        return cls(
            catalog.hash(),
            tuple(
                Candidate(
                    name=name,
                    size_class=d.size_class,
                    context_limit=d.context_limit,
                    tokenizer=d.tokenizer,
                    capabilities=frozenset(d.capabilities),
                    input_usd_per_1m=d.price.input_usd_per_1m,
                    output_usd_per_1m=d.price.output_usd_per_1m,
                    quality=d.quality,
                    serves=d.endpoints,
                    named_only=d.named_only,
                    live=seen[name].capacity > 0,
                    **asdict(seen[name]),
                    profiles=profiles.get(name, {}),
                )
                for name, d in catalog.deployments.items()
            ),
        )

    def refusing(self, reasons: Mapping[str, str]) -> Self:
        """The same, but these candidates (by name) can take nothing now, for these reasons."""
        candidates = (replace(c, refused=reasons.get(c.name, c.refused)) for c in self.candidates)
        return replace(self, candidates=tuple(candidates))

    def to_json(self) -> bytes:
        """The same snapshot gives the same bytes."""
        return orjson.dumps(self, default=_plain, option=orjson.OPT_SORT_KEYS)

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
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(type(value).__name__)
