"""Migrations make what the models declare, beside a fleet at work and one at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import SQLModel

from tests.conftest import eventually
from tieryard.embedded import EmbeddedPostgres
from tieryard.store import Store, schema
from tieryard.store.migrate import _config, is_current, migrate


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


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database without tables."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
        yield postgres.url_of("empty")
        connection.execute("DROP DATABASE empty WITH (FORCE)")


def test_two_that_migrate_at_once_both_come_to_an_end(empty_url: str) -> None:
    """An index made concurrently waits for every statement under way: the other's wait must not be one."""
    code = "import sys; from tieryard.store.migrate import migrate; migrate(sys.argv[1])"
    both = [subprocess.Popen([sys.executable, "-c", code, empty_url], env=dict(os.environ)) for _ in range(2)]
    try:
        assert [process.wait(60) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.wait()
    store = Store(empty_url)
    assert is_current(store)
    store.close()


def test_who_waits_for_another_migration_is_in_no_transaction(store: Store, database_url: str) -> None:
    """An index made concurrently that met one of its tries would wait for the transaction's end, and this for that."""
    trying = (
        "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' "
        "AND query LIKE 'SELECT pg_try_advisory_lock%'"
    )
    with psycopg.connect(database_url, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT pg_advisory_lock(hashtext('tieryard.migrate'))")
        waiting = pool.submit(migrate, database_url)
        time.sleep(1.0)  # of which it tries several times
        found, done = other.execute(trying).fetchall(), waiting.done()
        other.execute("SELECT pg_advisory_unlock(hashtext('tieryard.migrate'))")
        waiting.result(60)
    assert (found, done) == ([], False)


def is_valid(store: Store) -> list[tuple[bool]]:
    return store.fetch("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('timing_by_end')")


def test_starts_are_written_down_while_their_index_is_made(store: Store, database_url: str) -> None:
    started = (
        "INSERT INTO timing (job_id, fence, claimed_at, wait_ms, deployment, outcome) "
        "VALUES (%s, 1, now(), 1, 'small', 'succeeded')"
    )
    command.downgrade(_config(database_url), "0002")
    assert is_valid(store) == []
    waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as long:
            long.execute(started, [1])
            migrating = pool.submit(migrate, database_url)
            eventually(lambda: store.fetch(waiting), what="the index's wait for the long transaction")
            with store.transaction() as other:
                other.execute("SET LOCAL lock_timeout = '5s'")
                other.execute(started, [2])
        migrating.result(30)
    assert is_valid(store) == [(True,)]


def test_answers_are_scored_while_the_index_of_outcomes_is_made(store: Store, database_url: str) -> None:
    score = "INSERT INTO outcome (job_id, source, score) VALUES (%s, 'user', 1)"
    waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'"
    command.downgrade(_config(database_url), "0007")
    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as long:
            long.execute(score, [1])
            migrating = pool.submit(migrate, database_url)
            eventually(lambda: store.fetch(waiting), what="the index's wait for the long transaction")
            with store.transaction() as other:
                other.execute("SET LOCAL lock_timeout = '5s'")
                other.execute(score, [2])
        migrating.result(30)
    test_migrations_equal_models(store)


def test_indexes_by_time_are_summed_up_as_they_fill(store: Store) -> None:
    """Until they are, whoever asks for the last minutes reads all rows since the last vacuum."""
    found = store.fetch(
        "SELECT relname FROM pg_class JOIN pg_am ON pg_am.oid = relam WHERE amname = 'brin' "
        "AND NOT coalesce(reloptions @> ARRAY['autosummarize=on'], false)"
    )
    assert found == []


def test_an_index_that_was_left_half_made_is_made_again(store: Store, database_url: str) -> None:
    command.downgrade(_config(database_url), "0002")
    with store.transaction() as connection:
        connection.execute("CREATE INDEX timing_by_end ON timing (ended_at)")
    store.fetch("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'timing_by_end'::regclass RETURNING 1")
    migrate(database_url)
    assert is_valid(store) == [(True,)]
    test_migrations_equal_models(store)
