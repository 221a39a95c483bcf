"""`/healthz`: this process answers. `/readyz`: the fleet can take a job and finish it."""

from __future__ import annotations

import redis
from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.state import StateDep
from tieryard.errors import StoreError
from tieryard.store import migrate, reads, workers

router = APIRouter()

_NEEDED = ("expand", "classify", "callback", "beat")


class Health(BaseModel):
    status: str = "ok"


class CatalogTaken(BaseModel):
    """Whether processes go by the newest catalog. One that cannot goes on with what it has, so the fleet is ready."""

    version: int
    unable: bool
    found: str


class Readiness(BaseModel):
    """What a job needs on its way: each check is `ok`, or says what is wrong."""

    ready: bool
    checks: dict[str, str]
    catalog: CatalogTaken | None = None


@router.get("/healthz")
def healthz() -> Health:
    """This process answers."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness}})
def readyz(state: StateDep, response: Response) -> Readiness:
    """Postgres at this version, Redis, a worker of each kind, and every deployment serving."""
    checks: dict[str, str] = {}
    catalog: CatalogTaken | None = None
    try:
        checks["postgres"] = "ok" if migrate.is_current(state.store) else "schema is not current: tieryard migrate"
        kinds = {row[1] for row in reads.live_workers(state.store)}
        checks |= {kind: "ok" if kind in kinds else "no live worker" for kind in _NEEDED}
        if checks["postgres"] == "ok":
            found = workers.followers(state.store)
            catalog = CatalogTaken(version=found.newest, unable=found.unable, found=found.summary())
    except StoreError:
        checks["postgres"] = "does not answer"  # no more: this route needs no key
    try:
        gauges = state.metrics.read(state.catalog).gauges
        checks["redis"] = "ok"
        for name in state.catalog.deployments:
            # Also as calls see it, whose view is a moment older: who was told "ready" must not be refused.
            seen = state.calls.snapshots.live.replicas.get(name)
            serving = name in gauges and gauges[name].capacity > 0 and bool(seen)
            checks[f"deployment {name}"] = "ok" if serving else "no replica is serving; see tieryard deployments"
    except redis.RedisError:
        checks["redis"] = "does not answer"
    ready = all(value == "ok" for value in checks.values())
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, checks=checks, catalog=catalog)
