"""`tieryard deployments`: what each engine does now, why one does not serve, and what prefix caches save. Works on the
database and on Redis themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import redis
import typer
from rich.console import Console

from tieryard.breakers import Breaker
from tieryard.catalog import Catalog
from tieryard.cli.fleet import DataDirOption, database, live_metrics
from tieryard.cli.tables import printable, table
from tieryard.errors import StoreError, TieryardError
from tieryard.metrics import EngineState, Metrics, Replica
from tieryard.store import reads
from tieryard.store.reads import PrefixCache

_LOAD = ("limit", "in flight", "backlog", "waits", "KV used", "pre- empted", "cache hits", "TTFT ms")
_CACHE = ("starts", "prompt tokens", "from cache", "hit rate", "prefill saved")

Found = list[tuple[str, Replica | None]]
"""A deployment's name with each of its replicas; with None where no worker has one."""


def deployments(
    data_dir: DataDirOption = None,
    hours: Annotated[float, typer.Option(min=0.1, max=24 * 366, help="Of starts, for the prefix caches.")] = 24,
) -> None:
    """Shows every deployment's replicas (engine state, in-flight limit, load, KV cache), what keeps those that do not
    serve from it, whom a provider's limits or a circuit breaker hold back, and what prefix caches saved. Exit code 1 if
    any does not serve, or the database does not answer."""
    try:
        with live_metrics(data_dir) as (metrics, catalog):
            found = replicas(metrics, catalog)
            breakers = {name: metrics.breaker(name, catalog) for name in catalog.deployments}
    except redis.RedisError as error:
        raise TieryardError(f"Redis does not answer: {error}") from error
    console = Console()
    _show_replicas(console, found)
    _show_breakers(console, breakers)
    try:
        with database(data_dir) as store:
            caches = reads.prefix_cache(store, since=datetime.now(tz=UTC) - timedelta(hours=hours))
    except StoreError as error:
        said = f"What prefix caches saved is not known: {printable(str(error)).strip()}"
        console.print(said, markup=False, highlight=False)
        raise typer.Exit(1) from None
    if caches:
        console.print(
            table(
                ("deployment", *_CACHE),
                [_cache(cache, _servers_hit(found, cache.deployment)) for cache in caches],
                right=_CACHE,
                folds=("deployment",),
                title=f"\nprefix caches, last {hours:g} h",
            )
        )
    if any(replica is None or replica.state is not EngineState.SERVING for _, replica in found):
        raise typer.Exit(1)


def _show_replicas(console: Console, found: Found) -> None:
    empty = ("–", "no worker", *("–" for _ in _LOAD))
    rows = [(name, *(_load(replica) if replica is not None else empty)) for name, replica in found]
    console.print(table(("deployment", "worker", "engine", *_LOAD), rows, right=_LOAD, folds=("deployment",)))
    for name, replica in found:
        if replica is not None and replica.why:
            said = f"{name}, worker {replica.worker_id}: {printable(replica.why)}"
            console.print(said, markup=False, highlight=False)
    for name, why in {name: replica.held for name, replica in found if replica is not None and replica.held}.items():
        console.print(f"{name}: held; {why}", markup=False, highlight=False)


def _show_breakers(console: Console, breakers: dict[str, Breaker]) -> None:
    for name, breaker in breakers.items():
        refused = f"its provider refused {breaker.refused:,} requests (429) of late" if breaker.refused else ""
        if said := "; ".join(part for part in (breaker.why, refused) if part):
            console.print(f"{name}: {said}", markup=False, highlight=False)


def replicas(metrics: Metrics, catalog: Catalog) -> Found:
    """Of every deployment in the catalog."""
    nobody: list[Replica | None] = [None]
    return [(name, replica) for name in catalog.deployments for replica in metrics.replicas(name) or nobody]


def _load(replica: Replica) -> tuple[str, ...]:
    load = replica.load
    server = ("–",) * 4
    if load is not None:
        hits = f"{load.prefix_hits / load.prefix_queries:.0%}" if load.prefix_queries else "–"
        server = (f"{load.waiting:,}", f"{load.kv_usage:.0%}", f"{load.preemptions:,}", hits)
    return (
        str(replica.worker_id),
        str(replica.state),
        f"{replica.capacity:,}",
        f"{replica.in_flight:,}",
        f"{replica.backlog:,}",
        *server,
        f"{replica.ttft_ms:,.0f}" if replica.ttft_ms is not None else "–",
    )


def _servers_hit(found: Found, deployment: str) -> bool | None:
    """Whether the servers of a deployment found anything in their prefix caches; None where none of them says."""
    loads = [replica.load for name, replica in found if name == deployment and replica and replica.load]
    return any(load.prefix_hits for load in loads) if any(load.prefix_queries for load in loads) else None


def _cache(cache: PrefixCache, servers_hit: bool | None) -> tuple[str, ...]:
    """No cached tokens are none only where the servers found none either: most do not tell of a request's."""
    saved_s = cache.saved_prefill_s
    known = cache.cached_tokens > 0 or servers_hit is False
    return (
        cache.deployment,
        f"{cache.starts:,}",
        f"{cache.prompt_tokens:,}",
        f"{cache.cached_tokens:,}" if known else "–",
        f"{cache.hit_rate:.0%}" if known else "–",
        f"~{saved_s:,.1f} s" if known and saved_s is not None else "–",
    )
