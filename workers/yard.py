"""What every worker process stands on: settings, catalog, store, broker, and its lease."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis
from celery import Celery, signals

from tieryard import telemetry
from tieryard.admission import Admission
from tieryard.catalog import Catalog
from tieryard.engines import Engine
from tieryard.engines.opening import open_engine
from tieryard.in_force import InForce, Prepare
from tieryard.lease import Lease
from tieryard.metrics import Metrics
from tieryard.queues import (
    BEHIND_S,
    CALLBACKS,
    BrokerError,
    Publisher,
    declare,
    make_celery,
    model_queue,
    replica_queue,
    tier_queue,
)
from tieryard.quotas import Quotas
from tieryard.settings import Settings
from tieryard.store import Store, catalogs
from tieryard.telemetry import Event


class Yard:
    """One process of the fleet. Everything it holds is made here, on purpose, at start. `consume` names its queues, all
    of them or those of the catalog in force."""

    def __init__(
        self,
        kind: str,
        settings: Settings,
        *,
        consume: Iterable[str] | Callable[[Catalog], Iterable[str]],
        deployment: str | None = None,
        replica: int = 1,
    ) -> None:
        self.kind = kind
        self.deployment = deployment
        self.settings = settings
        telemetry.configure(json=settings.log_json, level=settings.log_level)
        self.log = telemetry.logger(process=kind, pid=os.getpid(), **({"deployment": deployment} if deployment else {}))
        self.store = Store(settings.database_url.get_secret_value())
        self.in_force = InForce(settings, self.store, self.log)
        queues = consume(self.catalog) if callable(consume) else consume
        self.outdated = False
        """Whether this process stops because only a new one can work by the catalog in force."""
        self.redis = redis.Redis.from_url(
            settings.redis_url.get_secret_value(), socket_timeout=5, socket_keepalive=True, health_check_interval=10
        )
        self.metrics = Metrics(self.redis)
        self.quotas = Quotas(settings.redis_url.get_secret_value())
        self.app: Celery = make_celery(settings.redis_url.get_secret_value(), consume=queues)
        self.publisher = Publisher(self.app)
        self.lease = Lease(kind, settings, self.log, self.in_force, deployment=deployment, replica=replica)

    @property
    def catalog(self) -> Catalog:
        """The one in force here. It may be another at the next look: who needs one catalog twice keeps it."""
        return self.in_force.catalog

    @property
    def catalog_hash(self) -> str:
        return self.catalog.hash()

    def start_again(self) -> None:
        """Stops this process as SIGTERM does, what it holds finished or handed back; its exit code then asks for
        another in its place."""
        if self.outdated:
            return
        self.outdated = True
        os.kill(os.getpid(), signal.SIGTERM)

    @staticmethod
    def on_stop_signals(stop: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop())

    @property
    def patience_s(self) -> float:
        """How long a nudge may be on its way before rescue takes it for lost: two windows."""
        return 2 * self.settings.window_s

    def due(self, tier: str, *, behind: bool = False) -> float:
        """When jobs that are given out now are due (epoch seconds), to whoever orders them next: all of a tier alike,
        so in the order given. By their own deadlines, a long batch would pass every later one of another tenant.
        `behind`: those of the system's own, for which nobody is to wait."""
        due = time.time() + self.catalog.tiers[self.standing_in(tier)].window.total_seconds()
        return due + BEHIND_S if behind else due

    def standing_in(self, tier: str) -> str:
        """The tier itself; where the catalog does not have it, the least urgent. A process that had not heard took jobs
        of one that had just gone: they are routed without its SLO, and wait behind everybody."""
        return tier if tier in self.catalog.tiers else [*self.catalog.tiers][-1]

    def admission(self, catalog: Catalog | None = None) -> Admission:
        """By the catalog in force, or by another. Raises UserError."""
        return Admission(catalog or self.catalog, cache_dir=self.settings.cache_dir)

    def engine(self, name: str, *, url: str | None = None) -> Engine:
        """This deployment's, not yet started; where the catalog names an attached server, the one at `url` if given, of
        which this process is the replica. Raises UserError."""
        key = self.settings.engine_key
        secret = key.get_secret_value() if key is not None else None
        catalog = self.catalog if url is None else self.catalog.with_server(name, url)
        return open_engine(catalog, name, key=secret, cache_dir=self.settings.cache_dir)

    def empty_own(self, deployment: str, worker_id: int) -> None:
        """A replica's own queue onto the one that all share; where the catalog has lost the deployment nobody consumes
        that, and its jobs are routed again. Raises redis.RedisError."""
        own = replica_queue(deployment, worker_id)
        if deployment not in self.catalog.deployments:
            self.redis.delete(own)
        while self.redis.lmove(own, model_queue(deployment), "RIGHT", "LEFT"):
            pass

    def nudge_callbacks(self) -> None:
        """Tells the callback worker that something is owed. Beat tells it too, so a lost nudge only delays."""
        try:
            self.publisher.nudge(CALLBACKS)
        except BrokerError as error:
            self.log.warning(Event.BROKER_AWAY, error=str(error)[:200])

    @property
    def worker_id(self) -> int:
        return self.lease.worker_id

    def join(self) -> None:
        """Registers this process and keeps its lease alive."""
        self.lease.join()

    def leave(self) -> None:
        """Gives the lease back and lets go of everything."""
        self.lease.leave()
        self.in_force.close()
        self.app.close()
        self.store.close()
        self.redis.close()
        self.quotas.close()

    def die(self, error: BaseException) -> None:
        """Ends this process at once after a fault of ours."""
        self.lease.die(error)

    def task(self, name: str, run: Callable[..., object]) -> None:
        """Makes `run` the task of this name. A fault is logged here, by its place: Celery would log its message too."""

        def guarded(*arguments: Any) -> None:
            try:
                run(*arguments)
            except Exception as error:
                self.log.error(Event.TASK_FAILED, task=name, **telemetry.fault(error))

        self.app.task(name=name, shared=False)(guarded)  # of this application, and of no other in the process

    def consume(
        self,
        *,
        concurrency: int = 1,
        own: Callable[[int], Iterable[str]] = lambda _: (),
        started: Callable[[Any], None] = lambda _: None,
        stopping: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs a stock Celery worker until SIGTERM or SIGINT. `own` gets its worker id, and names more queues, such as
        it alone consumes; `started` gets its consumer."""

        def on_ready(sender: Any, **_: Any) -> None:
            started(sender)

        signals.worker_ready.connect(on_ready, weak=False)
        self.join()
        for name in own(self.worker_id):  # read after the others, where realtime jobs are
            self.app.amqp.queues.select_add(declare(name))
        try:
            self.app.worker_main(
                [
                    "worker",
                    "--pool=threads",
                    f"--concurrency={concurrency}",
                    f"--hostname={self.kind}-{os.getpid()}@%h",
                    "--without-gossip",
                    "--without-mingle",
                    "--without-heartbeat",
                    "--loglevel=WARNING",
                ]
            )
        finally:
            try:
                stopping()
            finally:
                self.leave()


def gate_of(consumer: Any, *queues: str) -> Callable[[bool], None]:
    """`gate(False)` makes a consumer stop taking from these queues, `gate(True)` start again; from any thread. Only
    what was said last is done: a pause and a resume that Celery 5.7 finds pending together left a queue unread."""
    wanted = [True]

    def apply() -> None:
        for queue in queues:
            (consumer.add_task_queue if wanted[0] else consumer.cancel_task_queue)(queue)

    def gate(open_: bool) -> None:
        wanted[0] = open_
        consumer.call_soon(apply)

    return gate


def left_queues(yard: Yard) -> list[str]:
    """Of tiers that the catalog does not have and unfinished jobs are of. Raises StoreError."""
    with yard.store.transaction() as connection:
        return [tier_queue(tier) for tier in catalogs.unfinished_tiers(connection, yard.catalog.tiers)]


def taking_tiers(yard: Yard, consumer: Any, prepare: Prepare) -> Prepare:
    """The same, and then a consumer takes from the queues of tiers that are new. That of one that has gone is read on:
    a process that had not heard may have put something there."""

    def prepared(old: Catalog, new: Catalog) -> Callable[[], None]:
        put = prepare(old, new)

        def put_with_tiers() -> None:
            put()
            for tier in (tier for tier in new.tiers if tier not in old.tiers):
                yard.app.amqp.queues.select_add(declare(tier_queue(tier)))
                consumer.call_soon(consumer.add_task_queue, tier_queue(tier))

        return put_with_tiers

    return prepared
