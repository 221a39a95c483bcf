"""What the API's routes stand on, made once at start, and how a request finds its tenant."""

from __future__ import annotations

import time
from typing import Annotated

import redis
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tieryard.admission import Admission
from tieryard.catalog import load_catalog
from tieryard.errors import AuthError
from tieryard.metrics import Metrics
from tieryard.queues import Publisher, make_celery
from tieryard.settings import Settings
from tieryard.store import Store, keys

_KEY_CACHE_S = 5.0  # so long may a revoked key still work
_KEY_CACHE_SIZE = 10_000


class State:
    """The parts of one API process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.catalog = load_catalog(settings.catalog)
        self.admission = Admission(self.catalog, cache_dir=settings.cache_dir)
        self.store = Store(settings.database_url.get_secret_value())
        self.redis = redis.Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=2)
        self.metrics = Metrics(self.redis)
        self.publisher = Publisher(make_celery(settings.redis_url.get_secret_value()))
        self._tenants: dict[bytes, tuple[float, int]] = {}

    @property
    def signs_callbacks(self) -> bool:
        return self.settings.webhook_secret is not None

    def tenant_of(self, key: str) -> int:
        """The tenant of a key, remembered for a few seconds. Raises AuthError."""
        digest = keys.digest(key)
        found = self._tenants.get(digest)
        if found is not None and time.monotonic() - found[0] < _KEY_CACHE_S:
            return found[1]
        tenant_id = keys.tenant_of(self.store, key)
        if len(self._tenants) >= _KEY_CACHE_SIZE:
            self._tenants.clear()
        self._tenants[digest] = (time.monotonic(), tenant_id)
        return tenant_id

    def close(self) -> None:
        self.store.close()
        self.redis.close()


def state(request: Request) -> State:
    found: State = request.app.state.tieryard
    return found


_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer ty_…`")


def tenant(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> int:
    """The caller's tenant id. A sync dependency: it runs in the thread pool, where the store may block."""
    if credentials is None:
        raise AuthError("no API key; send it as 'Authorization: Bearer ty_…'")
    return state(request).tenant_of(credentials.credentials)


StateDep = Annotated[State, Depends(state)]
TenantDep = Annotated[int, Depends(tenant)]
