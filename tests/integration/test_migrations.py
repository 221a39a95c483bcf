"""Migrations make what the models declare."""

import psycopg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import SQLModel

from tieryard.store import Store, schema
from tieryard.store.migrate import is_current, migrate


def test_migrations_equal_models(store: Store) -> None:
    assert schema.Job.__tablename__ == "job"
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True, "compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    assert is_current(store)


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    migrate(database_url)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
