"""The CLI's way to the fleet's own parts: by the settings, or those of the embedded fleet on a data directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import orjson
import redis
import sqlalchemy.exc
import typer

from tieryard.catalog import Catalog, load_catalog
from tieryard.errors import StoreError, UserError
from tieryard.in_force import parse
from tieryard.metrics import Metrics
from tieryard.store import Store, catalogs
from tieryard.store.migrate import is_current
from tieryard.supervisor import RUNNING

DataDirOption = Annotated[
    Path | None, typer.Option(help="The embedded fleet's, while it runs. Default: the settings in the environment.")
]


@contextlib.contextmanager
def database(data_dir: Path | None) -> Iterator[Store]:
    """The fleet's database, at this version's schema. Raises UserError, and StoreError when it does not answer."""
    url = _embedded(data_dir)["database_url"] if data_dir is not None else os.environ.get("TIERYARD_DATABASE_URL")
    if not url:
        raise UserError("set TIERYARD_DATABASE_URL to the fleet's database, or name an embedded fleet's --data-dir")
    try:
        store = Store(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        url = ""
    if not url.startswith("postgres"):
        raise UserError("TIERYARD_DATABASE_URL is no postgresql://… URL")  # not quoted: it may have a password
    try:
        if not is_current(store):
            raise UserError("the database is not at this version's schema; run `tieryard migrate`")
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def live_metrics(data_dir: Path | None) -> Iterator[tuple[Metrics, Catalog]]:
    """The fleet's live metrics and the catalog in force; the file's, where no database tells. Raises UserError."""
    given = {"redis_url": os.environ.get("TIERYARD_REDIS_URL"), "catalog": os.environ.get("TIERYARD_CATALOG")}
    found = given if data_dir is None else _embedded(data_dir)
    url, catalog = found["redis_url"], found["catalog"]
    if not url or not catalog:
        raise UserError("set TIERYARD_REDIS_URL and TIERYARD_CATALOG, or name an embedded fleet's --data-dir")
    try:
        client = redis.Redis.from_url(url, socket_timeout=5)
    except ValueError:
        raise UserError("TIERYARD_REDIS_URL is no redis://… URL") from None  # not quoted: it may have a password
    with client:
        yield Metrics(client), _in_force(data_dir) or load_catalog(Path(catalog))


def _in_force(data_dir: Path | None) -> Catalog | None:
    try:
        with database(data_dir) as store:
            version = catalogs.newest(store)
    except (UserError, StoreError):
        return None
    return parse(version) if version is not None else None


def _embedded(data_dir: Path) -> dict[str, str | None]:
    """Where the parts of a running fleet are, as it has written down."""
    try:
        found: dict[str, str | None] = orjson.loads((data_dir / RUNNING).read_bytes())
    except (OSError, ValueError):
        raise UserError(f"no embedded fleet runs on {data_dir}; start it: tieryard up --data-dir {data_dir}") from None
    return found
