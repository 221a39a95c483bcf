"""Catalogs as versions: each that was applied, as its file was. The newest is in force."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from tieryard.catalog import Catalog
from tieryard.errors import ConflictError, NotFoundError
from tieryard.store import prices
from tieryard.store.connection import Connection, Store

_COLUMNS = "id, hash, body, applied_at, note, rolled_back_to"
_NEWEST = f"SELECT {_COLUMNS} FROM catalog_version ORDER BY id DESC LIMIT 1"  # noqa: S608  # a constant

# Two at once come one after the other, so that each is compared with what is really in force, and numbers rise in the
# order of commits: a process that knows number n has missed nothing below it.
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('tieryard.catalog'))"

_APPLY = f"""
INSERT INTO catalog_version (hash, body, note, rolled_back_to)
VALUES (%(hash)s, %(body)s, %(note)s, %(rolled_back_to)s) RETURNING {_COLUMNS}
"""  # noqa: S608  # a constant

# Jobs of a batch are of its tier; single ones are at hand in the index of what is not final.
_UNFINISHED = """
SELECT tier FROM job WHERE batch_id IS NULL AND finished_at IS NULL AND NOT tier = ANY(%(tiers)s)
UNION SELECT tier FROM batch WHERE finished_at IS NULL AND NOT tier = ANY(%(tiers)s) ORDER BY tier
"""


@dataclass(frozen=True, slots=True)
class Version:
    """`body` is the catalog's text. `rolled_back_to` is the version that this one repeats."""

    number: int
    hash: str
    body: str
    applied_at: datetime
    note: str | None
    rolled_back_to: int | None


@dataclass(frozen=True, slots=True)
class Applied:
    """The version in force, and whether it is new."""

    version: Version
    new: bool


def is_newest(connection: Connection, number: int) -> bool:
    """Whether no later version than this was put in force."""
    [(found,)] = connection.execute("SELECT coalesce(max(id), 0) <= %s FROM catalog_version", [number]).fetchall()
    return bool(found)


def newest(store: Store) -> Version | None:
    """The version in force; None before the first."""
    rows = store.fetch(_NEWEST)
    return Version(*rows[0]) if rows else None


def version(store: Store, number: int) -> Version:
    """Raises NotFoundError."""
    rows = store.fetch(f"SELECT {_COLUMNS} FROM catalog_version WHERE id = %(id)s", {"id": number})  # noqa: S608
    if not rows:
        raise NotFoundError(f"there is no version {number}; `tieryard config versions` shows them")
    return Version(*rows[0])


def of_hash(store: Store, name: str) -> Version | None:
    """The newest version of this hash."""
    wanted = f"SELECT {_COLUMNS} FROM catalog_version WHERE hash = %(hash)s ORDER BY id DESC LIMIT 1"  # noqa: S608
    rows = store.fetch(wanted, {"hash": name})
    return Version(*rows[0]) if rows else None


def versions(store: Store, *, limit: int) -> list[Version]:
    """Newest first."""
    found = store.fetch(f"SELECT {_COLUMNS} FROM catalog_version ORDER BY id DESC LIMIT %(limit)s", {"limit": limit})  # noqa: S608
    return [Version(*row) for row in found]


def without_tenant(store: Store, names: Collection[str]) -> list[str]:
    """Those of these names that no tenant has."""
    asked = "SELECT name FROM unnest(%(names)s::text[]) AS asked (name) WHERE name NOT IN (SELECT name FROM tenant)"
    return [row[0] for row in store.fetch(f"{asked} ORDER BY name", {"names": list(names)})]


def was_applied(store: Store, body: str) -> bool:
    """Whether some version is this very text."""
    found = store.fetch("SELECT EXISTS (SELECT FROM catalog_version WHERE body = %(body)s)", {"body": body})
    return bool(found[0][0])


def apply(
    store: Store,
    body: str,
    *,
    name: str,
    tiers: Collection[str],
    note: str | None = None,
    rolled_back_to: int | None = None,
    catalog: Catalog | None = None,
) -> Applied:
    """Puts a checked catalog in force: its text, its hash (`name`) and the tiers it has. The very text that is in force
    already stays what it is. With `catalog`, what the text says, its price book is recorded too. Raises ConflictError
    where unfinished jobs are of a tier that it lacks, or a price differs from what is recorded and paid."""
    with store.transaction() as connection:
        connection.execute(_ONE_AT_A_TIME)
        found = connection.execute(_NEWEST).fetchone()
        if found is not None and found[2] == body:
            return Applied(Version(*found), new=False)
        _refuse_stranding(connection, tiers)
        if catalog is not None:
            prices.record(connection, catalog)
        wanted = {"hash": name, "body": body, "note": note, "rolled_back_to": rolled_back_to}
        [row] = connection.execute(_APPLY, wanted).fetchall()
    return Applied(Version(*row), new=True)


def apply_first(store: Store, body: str, *, name: str, catalog: Catalog | None = None) -> Version:
    """The version in force; this catalog, where there has been none. With `catalog` as `apply` has it."""
    with store.transaction() as connection:
        connection.execute(_ONE_AT_A_TIME)
        found = connection.execute(_NEWEST).fetchone()
        if found is None and catalog is not None:
            prices.record(connection, catalog)
        wanted = {"hash": name, "body": body, "note": "the first", "rolled_back_to": None}
        return Version(*(found or connection.execute(_APPLY, wanted).fetchall()[0]))


def unfinished_tiers(connection: Connection, tiers: Collection[str]) -> list[str]:
    """Those of unfinished jobs that are not among these."""
    return [row[0] for row in connection.execute(_UNFINISHED, {"tiers": list(tiers)})]


def _refuse_stranding(connection: Connection, tiers: Collection[str]) -> None:
    """They would be done without the SLO that they were promised. A process that has not heard yet may still take a few
    in."""
    if left := unfinished_tiers(connection, tiers):
        raise ConflictError(f"jobs of tier {', '.join(left)} are not final: keep it until they are, or cancel them")
