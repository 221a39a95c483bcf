"""What the API's routes stand on, made once at start, and how a request finds who calls and what the key may do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from copy import copy
from decimal import Decimal
from typing import Annotated

import redis
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.rate_headers import note_headers
from api.switchboard import Switchboard
from tieryard import telemetry
from tieryard.admission import Admission
from tieryard.catalog import Catalog, Price
from tieryard.errors import AuthError, ScopeError
from tieryard.in_force import InForce
from tieryard.metrics import Metrics
from tieryard.queues import Publisher, make_celery
from tieryard.rates import Rates
from tieryard.requests import Request as JobRequest
from tieryard.settings import Settings
from tieryard.store import Store, keys
from tieryard.store.budgeted import Budgeted
from tieryard.store.keys import Holder, Scope

_KEY_CACHE_S = 5.0  # so long may a revoked key still work
_KEY_CACHE_SIZE = 10_000
_LOCK_TIMEOUT_S = 10.0  # nothing here holds a lock for so long; who waits for one that is held is told to try again


class State:
    """The parts of one API process. A request sees a copy, in which the catalog and what is made of it stay."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.database_url.get_secret_value(), lock_timeout_s=_LOCK_TIMEOUT_S)
        self.in_force = InForce(settings, self.store, telemetry.logger(process="api", pid=os.getpid()))
        self.admission = Admission(self.in_force.catalog, cache_dir=settings.cache_dir)
        self.admission.load_model()
        self.redis = redis.Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=2)
        self.metrics = Metrics(self.redis)
        self.publisher = Publisher(make_celery(settings.redis_url.get_secret_value()))
        self.rates = Rates(settings.redis_url.get_secret_value())
        self.calls = Switchboard(
            settings,
            self.in_force,
            self.store,
            metrics=self.metrics,
            admission=self.admission,
            publisher=self.publisher,
            lock_timeout_s=_LOCK_TIMEOUT_S,
        )
        self.budgeted = Budgeted(self.store)
        self._holders: dict[bytes, tuple[float, Holder]] = {}

    @property
    def catalog(self) -> Catalog:
        return self.admission.catalog

    def prepare(self, _: Catalog, catalog: Catalog) -> Callable[[], None]:
        """Requests that come from then on are taken by this catalog. Raises UserError."""
        admission = Admission(catalog, cache_dir=self.settings.cache_dir)
        admission.load_model()

        def put() -> None:
            self.calls.take_over(admission)
            self.admission = admission

        return put

    @property
    def signs_callbacks(self) -> bool:
        return self.settings.webhook_secret is not None

    def holder_of(self, key: str) -> Holder:
        """Whose key it is, remembered for a few seconds. Raises AuthError."""
        digest = keys.digest(key)
        found = self._holders.get(digest)
        if found is not None and time.monotonic() - found[0] < _KEY_CACHE_S:
            return found[1]
        holder = keys.holder_of(self.store, key)
        if len(self._holders) >= _KEY_CACHE_SIZE:
            self._holders.clear()
        self._holders[digest] = (time.monotonic(), holder)
        return holder

    def budget_prices(self, holder: Holder) -> Mapping[str, Price] | None:
        """What a budget reserves tokens at, by deployment; None where nothing is to be reserved for this caller."""
        bound = self.budgeted.binds(holder.tenant_id, holder.key_id)
        return self.budgeted.prices(self.catalog) if bound else None

    def worst_usd(self, holder: Holder, request: JobRequest) -> Decimal | None:
        """The most that it can cost; None where its caller has no budget."""
        prices = self.budget_prices(holder)
        return self.admission.worst_usd([request], prices, tenant=holder.tenant)[0] if prices is not None else None

    async def open(self) -> None:
        await self.calls.open()
        self.in_force.follow(self.prepare)

    async def close(self) -> None:
        """Returns when calls have ended, and their endings are written."""
        await self.calls.close()
        await asyncio.to_thread(self.in_force.close)
        self.store.close()
        self.redis.close()
        self.rates.close()


def state(request: Request) -> State:
    found: State = copy(request.app.state.tieryard)
    return found


_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer ty_…`")


def _caller(scope: Scope | None, *, counted: bool) -> Callable[..., Holder]:
    """A dependency: who calls, with a key that has this scope, if one is needed; `counted`, against its requests a
    minute."""

    # Sync, so that it runs in the thread pool, where store and limits may block.
    def caller(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Holder:
        if credentials is None:
            raise AuthError("no API key; send it as 'Authorization: Bearer ty_…'")
        parts = state(request)
        holder = parts.holder_of(credentials.credentials)
        if scope is not None and scope not in holder.scopes:
            has = ", ".join(sorted(holder.scopes)) or "none"
            raise ScopeError(f"this needs a key with the scope '{scope}'; this key's scopes: {has}")
        if counted:
            note_headers(request, parts.rates.admit(holder, requests=1, tokens=0))
        return holder

    return caller


StateDep = Annotated[State, Depends(state)]
AnyDep = Annotated[Holder, Depends(_caller(None, counted=False))]
# Reads are not counted: whoever waits for a job polls.
ReadDep = Annotated[Holder, Depends(_caller(Scope.READ, counted=False))]
BatchDep = Annotated[Holder, Depends(_caller(Scope.BATCH, counted=True))]
InferDep = Annotated[Holder, Depends(_caller(Scope.INFER, counted=True))]
WebhooksDep = Annotated[Holder, Depends(_caller(Scope.WEBHOOKS, counted=True))]
BenchmarkDep = Annotated[Holder, Depends(_caller(Scope.BENCHMARK, counted=True))]
BenchmarkReadDep = Annotated[Holder, Depends(_caller(Scope.BENCHMARK, counted=False))]
OperateDep = Annotated[Holder, Depends(_caller(Scope.OPERATE, counted=False))]
