"""What differs between two catalogs, field by field, and what that needs of the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from tieryard.catalog.deployments import Deployment
from tieryard.catalog.engines import LoraEngine, VllmEngine
from tieryard.catalog.price_book import HostedPrice, InstancePrice
from tieryard.catalog.whole import Catalog

_FOOTING = ("model", "revision", "serves", "engine", "context_limit", "max_in_flight", "realtime_reserve", "tokenizer")


@dataclass(frozen=True, slots=True)
class Change:
    """A field and its values, as they are shown; None where a catalog does not have it."""

    field: str
    before: str | None
    after: str | None


def changes(old: Catalog, new: Catalog) -> list[Change]:
    """Every field whose value differs, defaults included. What is new or gone as a whole is one change."""
    found = [*_order(old, new), *_differences("", _fields(old), _fields(new))]
    whole = {f"deployments.{name}": one_line(d) for c in (old, new) for name, d in c.deployments.items()}
    whole |= {f"price_book.{_row_name(row)}": _price_line(row) for c in (old, new) for row in c.price_book.rows}
    return [_shortened(change, whole.get(change.field)) for change in found]


def _fields(catalog: Catalog) -> dict[str, Any]:
    """Rows of the price book and hosts by their names, so that one that is added moves no other."""
    found = catalog.model_dump(exclude_none=True)
    found["price_book"] = {_row_name(row): row.model_dump(exclude_none=True) for row in catalog.price_book.rows}
    found["overhead"] = {host.name: host.model_dump(exclude_none=True) for host in catalog.overhead}
    return found


def _row_name(row: HostedPrice | InstancePrice) -> str:
    where = f" ({row.purchase}, {row.region})" if isinstance(row, InstancePrice) else ""
    return f"{row.name}{where} from {row.valid_from}"


def _price_line(row: HostedPrice | InstancePrice) -> str:
    if isinstance(row, InstancePrice):
        return f"{shown(row.usd_per_h)} USD an hour, {row.gpus} GPUs"
    return f"{shown(row.input_usd_per_1m)} in, {shown(row.output_usd_per_1m) or 'nothing known'} out, USD per 1M"


def _shortened(change: Change, whole: str | None) -> Change:
    """A deployment that comes or goes has too many fields to be shown."""
    if whole is None:
        return change
    return Change(change.field, change.before and whole, change.after and whole)


def _order(old: Catalog, new: Catalog) -> Iterator[Change]:
    """Of the tiers that both have, which says what is urgent."""
    before, after = [t for t in old.tiers if t in new.tiers], [t for t in new.tiers if t in old.tiers]
    if before != after:
        yield Change("tiers", " > ".join(before), " > ".join(after))


def _differences(field: str, before: Any, after: Any) -> Iterator[Change]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from _differences(f"{field}.{name}" if field else str(name), before.get(name), after.get(name))
    else:
        yield Change(field, shown(before), shown(after))


def shown(value: Any) -> str | None:
    """A value much as the file has it."""
    match value:
        case None:
            return None
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.12g}"
        case Decimal():
            return f"{value.normalize():f}"
        case timedelta():
            return duration(value)
        case dict():
            return "{" + ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) + "}"
        case frozenset():
            return shown(sorted(value))
        case list() | tuple():
            return "[" + ", ".join(str(shown(item)) for item in value) + "]"
    return str(value)


def duration(value: timedelta) -> str:
    """In the longest unit that it is a whole number of."""
    ms = round(value.total_seconds() * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def same_footing(old: Catalog, new: Catalog, host: str) -> bool:
    """Whether a running infer process of this deployment is as the new catalog would start it: what its engine, its
    adapters and its in-flight limits were made of. Prices, quality and the like are taken over while it runs."""
    return _footing(old, host) == _footing(new, host)


def _footing(catalog: Catalog, host: str) -> list[Any]:
    spec = catalog.deployments[host]
    own = [getattr(spec, name) for name in _FOOTING]
    return [*own, *((name, catalog.deployments[name].engine) for name in catalog.adapters_of(host))]


def needs(old: Catalog, new: Catalog) -> list[str]:
    """What the fleet does about it, and what is left to do by hand, a sentence each."""
    return [*_of_processes(old, new), *_of_machines(old, new), *_of_callers(old, new)]


def _of_processes(old: Catalog, new: Catalog) -> Iterator[str]:
    for name in (name for name in old.deployments if name not in new.deployments):
        ends = "its infer processes end; " if name in old.hosts else ""
        yield f"{name}: {ends}what waits for it is routed again, and fails where it named it"
    for name in (name for name in new.hosts if name in old.hosts and not same_footing(old, new, name)):
        loads = ", which load the model again" if isinstance(new.deployments[name].engine, VllmEngine) else ""
        yield f"{name}: its infer processes finish what they run, and start again{loads}"
    for name in (name for name in new.hosts if name not in old.hosts):
        yield f"{name}: needs an infer process, `python -m workers infer {name}`; the embedded fleet starts it itself"


def _of_machines(old: Catalog, new: Catalog) -> Iterator[str]:
    def news(of: str) -> list[str]:
        return sorted(_named(new, of) - _named(old, of))

    for path in (spec for spec in news("tokenizer") if spec != "utf8"):
        yield f"the tokenizer {path} must be where API, expand, classify and infer processes run"
    for variable in news("key_env"):
        yield f"{variable} must be in the environment of API and infer processes: those that lack it start again"
    if new.routing.quality_model not in (None, old.routing.quality_model):
        yield f"the quality model {new.routing.quality_model} must be where API and classify processes run"


def _named(catalog: Catalog, field: str) -> set[str]:
    found = {getattr(d, field, None) or getattr(d.engine, field, None) for d in catalog.deployments.values()}
    return {name for name in found if name is not None}


def _of_callers(old: Catalog, new: Catalog) -> Iterator[str]:
    if any(_order(old, new)):
        yield "the new order of tiers holds in classify processes once they are started again"
    for name in (name for name in old.tiers if name not in new.tiers):
        yield f"tier {name}: new jobs of it are refused; it can only go once none of its jobs is unfinished"
    for category in sorted({*old.categories} - {*new.categories}):
        yield f"category {category}: requests that name it are refused"
    for name in (name for name in new.deployments if name in old.deployments):
        if (limit := new.deployments[name].context_limit) < old.deployments[name].context_limit:
            yield f"{name}: jobs that need more than {limit:,} tokens go elsewhere, or fail where they named it"


def one_line(deployment: Deployment) -> str:
    """What a deployment is, for a list of those that come and go."""
    engine = deployment.engine
    on = f"on {engine.host}" if isinstance(engine, LoraEngine) else engine.kind
    return f"{deployment.pinned}, {deployment.size_class}, {on}"
