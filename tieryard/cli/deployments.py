"""`tieryard deployments`: what each engine does now, why one does not serve, and what prefix caches save. Works on the
database and on Redis themselves."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import redis
import typer
from rich.console import Console

from tieryard.breakers import Breaker
from tieryard.catalog import Catalog
from tieryard.cli.fleet import DataDirOption, database, live_metrics
from tieryard.cli.printing import JsonOption, print_json
from tieryard.cli.tables import FittedTable, printable, table
from tieryard.errors import StoreError, TieryardError
from tieryard.metrics import EngineState, Metrics, Replica
from tieryard.store import reads, workers
from tieryard.store.reads import PrefixCache
from tieryard.store.workers import Followers

_LOAD = ("limit", "in flight", "backlog", "waits", "KV used", "pre-empted", "cache hits", "TTFT ms")
_CACHE = ("starts", "prompt tokens", "from cache", "hit rate", "prefill saved")

Found = list[tuple[str, Replica | None]]
"""A deployment's name with each of its replicas; with None where no worker has one."""


def deployments(
    data_dir: DataDirOption = None,
    hours: Annotated[float, typer.Option(min=0.1, max=24 * 366, help="Of starts, for the prefix caches.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Shows every deployment's replicas (engine state, in-flight limit, load, KV cache), what keeps those that do not
    serve from it, whom a provider's limits or a circuit breaker hold back, what prefix caches saved, and which
    processes go by another catalog than the newest. Exit code 1 if any does not serve, a process cannot take the newest
    catalog, or the database does not answer."""
    try:
        with live_metrics(data_dir) as (metrics, catalog):
            found = replicas(metrics, catalog)
            breakers = {name: metrics.breaker(name, catalog) for name in catalog.deployments}
    except redis.RedisError as error:
        raise TieryardError(f"Redis does not answer: {error}") from error
    caches, followers, away = _in_database(data_dir, hours)
    if as_json:
        print_json(_as_json(found, breakers, caches))
    else:
        console = Console()
        _show_replicas(console, found)
        _show_breakers(console, breakers)
        if caches:
            console.print(_cache_table(caches, found, hours))
    if away is not None:
        said = f"What prefix caches saved is not known: {printable(away).strip()}"
        Console(stderr=as_json).print(said, markup=False, highlight=False)
    if followers is not None and followers.behind:  # with --json it is no deployment's
        Console(stderr=as_json).print(printable(followers.told()), markup=False, highlight=False)
    unable = followers is None or followers.unable
    if unable or any(replica is None or replica.state is not EngineState.SERVING for _, replica in found):
        raise typer.Exit(1)


def _in_database(data_dir: Path | None, hours: float) -> tuple[list[PrefixCache], Followers | None, str | None]:
    """What prefix caches saved, and who goes by which catalog; with why the database does not tell, if so."""
    try:
        with database(data_dir) as store:
            since = datetime.now(tz=UTC) - timedelta(hours=hours)
            return reads.prefix_cache(store, since=since), workers.followers(store), None
    except StoreError as error:
        return [], None, str(error)


def _as_json(found: Found, breakers: dict[str, Breaker], caches: list[PrefixCache]) -> list[dict[str, Any]]:
    """A deployment each. `prefix_cache` is null where nothing started of late, or the database does not answer."""
    saved = {cache.deployment: asdict(cache) for cache in caches}
    return [
        {
            "deployment": name,
            "replicas": [replica for other, replica in found if other == name and replica is not None],
            "breaker": asdict(breaker) | {"why": breaker.why},
            "prefix_cache": saved.get(name),
        }
        for name, breaker in breakers.items()
    ]


def _cache_table(caches: list[PrefixCache], found: Found, hours: float) -> FittedTable:
    rows = [_cache(cache, _servers_hit(found, cache.deployment)) for cache in caches]
    title = f"\nprefix caches, last {hours:g} h"
    return table(("deployment", *_CACHE), rows, right=_CACHE, folds=("deployment",), title=title)


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
