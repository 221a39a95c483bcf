"""Brings a database's schema to the version this code is written for."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from tieryard.errors import StoreError
from tieryard.store.connection import Store

# Two fleets' `migrate` at once would race to create the same tables. Tried, and tried again: an index that is made
# concurrently waits for every statement under way, so also for one that would wait here for the lock, without end; and
# for the end of its transaction, so each try is one of its own.
_LOCK = "SELECT pg_try_advisory_lock(hashtext('tieryard.migrate'))"
_TRY_EVERY_S = 0.2


def _config(database_url: str | None = None) -> Config:
    found = importlib.util.find_spec("migrations")
    if found is None or found.origin is None:
        raise StoreError("the migrations package is not installed beside tieryard")
    config = Config()
    config.set_main_option("script_location", str(Path(found.origin).parent))
    config.attributes["database_url"] = database_url
    return config


def migrate(database_url: str) -> None:
    """Runs every migration that the database has not seen."""
    store = Store(database_url)
    try:
        with store.transaction() as connection:
            while connection.execute(_LOCK).fetchone() != (True,):
                connection.rollback()
                time.sleep(_TRY_EVERY_S)
            connection.commit()  # the lock is the session's
            try:
                command.upgrade(_config(database_url), "head")
            finally:
                connection.execute("SELECT pg_advisory_unlock(hashtext('tieryard.migrate'))")
    finally:
        store.close()


def is_current(store: Store) -> bool:
    """Whether the database is at this code's version."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    exists = store.fetch("SELECT to_regclass('alembic_version') IS NOT NULL")[0][0]
    return bool(exists) and [row[0] for row in store.fetch("SELECT version_num FROM alembic_version")] == [head]
