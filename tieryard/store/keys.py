"""Tenants and their API keys. A key is shown once; afterwards only its SHA-256 and a prefix exist."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tieryard.errors import AuthError, ConflictError, NotFoundError, UserError
from tieryard.ids import internal, public
from tieryard.store.benchmarks import BENCHMARK_TENANT
from tieryard.store.connection import Connection, Store, storable
from tieryard.store.shadows import SHADOW_TENANT
from tieryard.store.windows import RENT_TENANT

PREFIX = "ty_"
_SHOWN = 7
SYSTEM_TENANTS = {
    SHADOW_TENANT: "holds copies of all tenants' jobs",
    BENCHMARK_TENANT: "holds what the fleet asks to measure itself",
    RENT_TENANT: "holds rent that no job has used",
}
"""The system's own, whose jobs wait behind everybody's: what each is for."""

_ID = re.compile(r"key_([0-9]{1,18})")


class Scope(StrEnum):
    """What a key may do. A key has all that callers need unless it was made with others; `benchmark`, which measures
    the fleet at its operator's cost, and `operate`, which is about all tenants' money, must be named."""

    INFER = "infer"
    BATCH = "batch"
    READ = "read"
    WEBHOOKS = "webhooks"
    BENCHMARK = "benchmark"
    OPERATE = "operate"


_CALLERS = (Scope.INFER, Scope.BATCH, Scope.READ, Scope.WEBHOOKS)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who calls, and what the key allows. A limit that is None does not bind."""

    tenant_id: int
    key_id: int
    scopes: frozenset[str]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_enqueued_tokens: int | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as an operator sees it: never the key, nor its digest."""

    id: int
    prefix: str
    name: str
    tenant: str
    scopes: list[str]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant, how many of its keys work, and its cap on enqueued tokens (None: no cap)."""

    name: str
    keys: int
    max_enqueued_tokens: int | None
    created_at: datetime


def new_key() -> str:
    """A key of 192 random bits."""
    return PREFIX + secrets.token_urlsafe(24)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def add_key(
    store: Store,
    key: str,
    *,
    tenant: str,
    name: str,
    scopes: Iterable[Scope] | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> bool:
    """Gives the tenant (made if new) this key, with what callers need unless scopes are named. False when the key
    exists. Raises UserError for a tenant of the system's own."""
    if (holds := SYSTEM_TENANTS.get(tenant)) is not None:
        raise UserError(f"'{tenant}' {holds}, and has no keys; name another tenant")
    rows = store.fetch(
        """
        WITH t AS (
            INSERT INTO tenant (name) VALUES (%(tenant)s)
            ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
        )
        INSERT INTO api_key (tenant_id, name, prefix, digest, scopes, requests_per_minute, tokens_per_minute)
        SELECT id, %(name)s, %(prefix)s, %(digest)s, %(scopes)s, %(requests)s, %(tokens)s FROM t
        ON CONFLICT (digest) DO NOTHING RETURNING id
        """,
        {
            "tenant": tenant,
            "name": name,
            # A short key that somebody made up must not be given away by its prefix.
            "prefix": key[: min(_SHOWN, len(key) // 4)],
            "digest": digest(key),
            "scopes": [str(s) for s in dict.fromkeys(_CALLERS if scopes is None else scopes)],
            "requests": requests_per_minute,
            "tokens": tokens_per_minute,
        },
    )
    return bool(rows)


def any_key(store: Store) -> bool:
    return bool(store.fetch("SELECT EXISTS (SELECT FROM api_key WHERE revoked_at IS NULL)")[0][0])


def holder_of(store: Store, key: str) -> Holder:
    """Whom a key belongs to, and what it allows. Raises AuthError."""
    rows = store.fetch(
        "SELECT t.id, k.id, k.scopes, k.requests_per_minute, k.tokens_per_minute, t.max_enqueued_tokens, "
        "t.name FROM api_key k JOIN tenant t ON t.id = k.tenant_id "
        "WHERE k.digest = %(digest)s AND k.revoked_at IS NULL",
        {"digest": digest(key)},
    )
    if not rows:
        raise AuthError("this API key is not known, or was revoked")
    tenant_id, key_id, scopes, *limits = rows[0]
    return Holder(tenant_id, key_id, frozenset(scopes), *limits)


def tenant_names(connection: Connection, ids: list[int]) -> dict[int, str]:
    """Names by id."""
    rows = connection.execute("SELECT id, name FROM tenant WHERE id = ANY(%(ids)s)", {"ids": ids})
    return {row[0]: row[1] for row in rows}


def list_keys(store: Store) -> list[KeyRow]:
    """Every key, oldest first, revoked ones too."""
    rows = store.fetch(
        "SELECT k.id, k.prefix, k.name, t.name, k.scopes, k.requests_per_minute, k.tokens_per_minute, "
        "k.created_at, k.revoked_at FROM api_key k JOIN tenant t ON t.id = k.tenant_id ORDER BY k.id"
    )
    return [KeyRow(*row) for row in rows]


def revoke(store: Store, which: str) -> str:
    """Revokes the key of this id (`key_7`), of this prefix, or this very key: its id.

    Raises NotFoundError when there is none, ConflictError when it is revoked already or several keys start so.
    """
    by_id = _ID.fullmatch(which)
    with store.transaction() as connection:
        found = connection.execute(
            "SELECT id, revoked_at FROM api_key "
            "WHERE id = %(id)s::bigint OR %(id)s::bigint IS NULL AND (prefix = %(prefix)s OR digest = %(digest)s) "
            "ORDER BY id FOR UPDATE",
            {"id": int(by_id[1]) if by_id else None, "prefix": which.removesuffix("…"), "digest": digest(which)},
        ).fetchall()
        live = [int(key_id) for key_id, revoked_at in found if revoked_at is None]
        if not found:
            # Not what was typed: it may be a whole key.
            raise NotFoundError("no such key; `tieryard keys list` shows each key's id and prefix")
        if not live:
            since = max(revoked_at for _, revoked_at in found)
            raise ConflictError(f"revoked already, on {since:%Y-%m-%d %H:%M:%S} UTC; nothing is left to do")
        if len(live) > 1:
            ids = ", ".join(public("key", key_id) for key_id in live)
            raise ConflictError(f"several keys start so: {ids}; revoke the one you mean by its id")
        connection.execute("UPDATE api_key SET revoked_at = now() WHERE id = %s", live)
    return public("key", live[0])


def list_tenants(store: Store) -> list[TenantRow]:
    """Every tenant, oldest first."""
    rows = store.fetch(
        "SELECT t.name, count(k.id), t.max_enqueued_tokens, t.created_at FROM tenant t "
        "LEFT JOIN api_key k ON k.tenant_id = t.id AND k.revoked_at IS NULL GROUP BY t.id ORDER BY t.id"
    )
    return [TenantRow(*row) for row in rows]


def tenant_id_of(store: Store, name: str) -> int:
    """As `find_tenant`, in a transaction of its own."""
    with store.transaction() as connection:
        return find_tenant(connection, name)


def find_tenant(connection: Connection, name: str) -> int:
    """The id of the tenant of this name. Raises NotFoundError."""
    row = connection.execute("SELECT id FROM tenant WHERE name = %s", [storable(name)]).fetchone()
    if row is None:
        raise NotFoundError(f"no tenant '{name}'; `tieryard tenants list` shows them", param="tenant")
    return int(row[0])


def find_key(connection: Connection, tenant_id: int, which: str, *, tenant: str, revoked: bool = False) -> int:
    """The id of a tenant's key, such as `key_7`, that works, or `revoked` one that may not any more. Raises
    NotFoundError."""
    row = connection.execute(
        "SELECT id FROM api_key WHERE id = %s AND tenant_id = %s AND (%s OR revoked_at IS NULL)",
        [internal("key", which), tenant_id, revoked],
    ).fetchone()
    if row is None:
        working = "" if revoked else " that works"
        raise NotFoundError(f"'{tenant}' has no key '{which}'{working}; `tieryard keys list` shows them", param="key")
    return int(row[0])


def cap_tenant(store: Store, name: str, max_enqueued_tokens: int | None) -> None:
    """Caps the tokens a tenant may have enqueued; None lifts the cap. Raises NotFoundError."""
    capped = store.fetch(
        "UPDATE tenant SET max_enqueued_tokens = %(most)s WHERE name = %(name)s RETURNING id",
        {"most": max_enqueued_tokens, "name": name},
    )
    if not capped:
        raise NotFoundError(f"no tenant '{name}'; `tieryard tenants list` shows them")
