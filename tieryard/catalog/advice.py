"""What of a valid catalog is unlike what its size classes usually cost and need. Advice: nothing is refused for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from math import inf

from tieryard.catalog.deployments import Deployment
from tieryard.catalog.engines import LoraEngine, VllmEngine
from tieryard.catalog.prices import Price
from tieryard.catalog.reading import Location
from tieryard.catalog.sizes import SizeClass
from tieryard.catalog.tiers import Tier
from tieryard.catalog.whole import Catalog


@dataclass(frozen=True, slots=True)
class Range:
    """Both ends belong to it."""

    least: float
    most: float
    shown: str

    def misses(self, value: float | Decimal) -> str | None:
        """`below` or `above`, or None inside."""
        number = float(value)  # a Decimal of 0.1 is below the float
        return "below" if number < self.least else "above" if number > self.most else None


@dataclass(frozen=True, slots=True)
class Usual:
    """Of one size class. `context` is in tokens; its ends take both 1,000 and 1,024 for a K."""

    usd_per_1m: Range
    ttft_ms: Range
    gpus: Range
    context: Range


USUAL: dict[SizeClass, Usual] = {
    SizeClass.SMALL: Usual(
        Range(0.10, 0.50, "0.10–0.50"),
        Range(100, 300, "100–300 ms"),
        Range(1, 2, "1–2"),
        Range(8_000, 128 * 1024, "8–128K"),
    ),
    SizeClass.MEDIUM: Usual(
        Range(0.50, 3, "0.50–3"),
        Range(300, 1000, "0.3–1 s"),
        Range(2, 4, "2–4"),
        Range(32_000, 128 * 1024, "32–128K"),
    ),
    SizeClass.LARGE: Usual(
        Range(3, 15, "3–15"),
        Range(1000, 3000, "1–3 s"),
        Range(4, inf, "4–8 or more"),
        Range(128_000, inf, "128K–1M or more"),
    ),
}


@dataclass(frozen=True, slots=True)
class Advice:
    """`at` is where in the file the value stands, or would."""

    at: Location
    message: str

    @property
    def field(self) -> str:
        return ".".join(map(str, self.at))


def advice(catalog: Catalog) -> list[Advice]:
    """Values of deployments that serve text, and of tiers, outside what is usual; in the order of the catalog."""
    found = [a for name, tier in catalog.tiers.items() for a in _of_tier(name, tier, catalog)]
    return found + [a for name, d in catalog.deployments.items() if d.serves == "text" for a in _of(name, d)]


def _of_tier(name: str, tier: Tier, catalog: Catalog) -> Iterator[Advice]:
    """A time to the first token that even the fastest class of this catalog seldom keeps."""
    limit_ms = tier.slo.max_ttft_ms
    classes = {d.size_class for d in catalog.deployments.values() if d.serves == "text"}
    if limit_ms is None or not classes:
        return
    fastest = min(classes, key=lambda size: USUAL[size].ttft_ms.least)
    usual = USUAL[fastest].ttft_ms
    if limit_ms < usual.least:
        message = (
            f"{limit_ms:g} ms is less than a {fastest} deployment usually needs ({usual.shown}), and none is faster"
        )
        yield Advice(("tiers", name, "slo", "max_ttft_ms"), message)


def _of(name: str, deployment: Deployment) -> Iterator[Advice]:
    usual, at = USUAL[deployment.size_class], ("deployments", name)
    whose = f"what {deployment.size_class} deployments usually"
    for field, usd in _tokens(deployment):
        if side := usual.usd_per_1m.misses(usd):
            message = f"{usd.normalize():f} USD is {side} {whose} cost ({usual.usd_per_1m.shown} USD per 1M tokens)"
            yield Advice((*at, "price", field), message)
    if side := usual.context.misses(deployment.context_limit):
        message = f"{deployment.context_limit:,} tokens is {side} {whose} have ({usual.context.shown})"
        yield Advice((*at, "context_limit"), message)
    gpus, where = _gpus(deployment)
    if gpus is not None and (side := usual.gpus.misses(gpus)):
        yield Advice((*at, *where), f"{gpus:,} is {side} {whose} need ({usual.gpus.shown} GPUs)")


def _tokens(deployment: Deployment) -> Iterator[tuple[str, Decimal]]:
    """What the catalog itself says of its tokens; a price book's rows are as their source has them."""
    if isinstance(deployment.price, Price):
        yield "input_usd_per_1m", deployment.price.input_usd_per_1m
        yield "output_usd_per_1m", deployment.price.output_usd_per_1m


def _gpus(deployment: Deployment) -> tuple[int | None, Location]:
    """A replica's GPUs, and where that is said; a LoRA adapter runs on its host's."""
    engine = deployment.engine
    if isinstance(engine, LoraEngine):
        return None, ()
    if deployment.gpus is None and isinstance(engine, VllmEngine):
        size = engine.flags.get("tensor_parallel_size")
        return (size, ("engine", "flags", "tensor_parallel_size")) if isinstance(size, int) else (None, ())
    return deployment.gpus, ("gpus",)
