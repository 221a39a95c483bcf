"""Tenants and their API keys. A key is shown once; afterwards only its SHA-256 and a prefix exist."""

from __future__ import annotations

import hashlib
import secrets

from tieryard.errors import AuthError
from tieryard.store.connection import Store

PREFIX = "ty_"


def new_key() -> str:
    """A key of 192 random bits."""
    return PREFIX + secrets.token_urlsafe(24)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def add_key(store: Store, key: str, *, tenant: str, name: str) -> bool:
    """Gives the tenant (made if new) this key. False when the key exists already."""
    rows = store.fetch(
        """
        WITH t AS (
            INSERT INTO tenant (name) VALUES (%(tenant)s)
            ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
        )
        INSERT INTO api_key (tenant_id, name, prefix, digest)
        SELECT id, %(name)s, %(prefix)s, %(digest)s FROM t
        ON CONFLICT (digest) DO NOTHING RETURNING id
        """,
        {"tenant": tenant, "name": name, "prefix": key[:7], "digest": digest(key)},
    )
    return bool(rows)


def any_key(store: Store) -> bool:
    return bool(store.fetch("SELECT EXISTS (SELECT FROM api_key WHERE revoked_at IS NULL)")[0][0])


def tenant_of(store: Store, key: str) -> int:
    """The tenant a key belongs to. Raises AuthError."""
    rows = store.fetch(
        "SELECT tenant_id FROM api_key WHERE digest = %(digest)s AND revoked_at IS NULL",
        {"digest": digest(key)},
    )
    if not rows:
        raise AuthError("this API key is not known, or was revoked")
    return int(rows[0][0])
