"""The queues, declared with kombu, and the messages on them: Redis moves, it does not remember.

Every message is a parcel: runs of job ids with their tier and due time. Losing one loses a nudge, not a job.
A model queue is shared by a deployment's replicas; each has one of its own beside it, for jobs whose prefix it is
home to.
Celery's stock workers consume them; nothing here is acknowledged late, stored as a result, or given an ETA.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import LimitExceeded, OperationalError
from redis.exceptions import RedisError

from tieryard.catalog import REALTIME
from tieryard.errors import TieryardError
from tieryard.ids import KeyedRun, Run, pieces, to_keyed_runs, to_runs, write_keyed

EXPAND = "expand"
"""Nudges for the expander: a batch waits. No ids are needed, it looks."""

CALLBACKS = "callbacks"
"""Nudges for the callback worker: something is owed."""

BENCHMARK = "benchmark"
"""Nudges for the benchmark worker: a run waits, or a schedule may be due."""

CLASSIFYING = "classifying"
"""Nudges for the worker of classification runs: rows have come, or there are no more."""

BEHIND_S = 365 * 86_400.0
"""Added to the due time of jobs of the system's own: all that anybody waits for is due sooner."""

_AWAY_S = 2.0  # after a failure nobody tries for so long: each would wait for the same time-out
_DEFAULT_EXCHANGE = Exchange("")  # routes by queue name, so a flushed Redis has no bindings to lose


class BrokerError(TieryardError):
    """Redis is away. What was to be published is saved, and rescue publishes it later."""


def tier_queue(tier: str) -> str:
    return f"tier.{tier}"


def model_queue(deployment: str) -> str:
    return f"model.{deployment}"


def replica_queue(deployment: str, worker_id: int) -> str:
    """Of one replica. No deployment's name has an `@`, so this is no other's model queue."""
    return f"{model_queue(deployment)}@{worker_id}"


def replica_of(queue: str) -> tuple[str, int] | None:
    """(deployment, worker id) where this is the queue of one replica."""
    deployment, _, worker_id = queue.removeprefix(model_queue("")).rpartition("@")
    return (deployment, int(worker_id)) if deployment and worker_id.isdecimal() else None


def is_behind(due: float) -> bool:
    """Whether this is the due time (epoch seconds) of jobs for which nobody is to wait."""
    return due > time.time() + BEHIND_S / 2


def parcel_size(tier: str) -> int:
    """Jobs a message: one where waiting for others would cost more than it saves."""
    return 1 if tier == REALTIME else 64


@dataclass(frozen=True, slots=True)
class Parcel:
    """Jobs of one tier on their way to one queue. `due` (epoch seconds) orders them among other parcels."""

    queue: str
    task: str
    tier: str
    due: float
    runs: list[Run] | list[KeyedRun]

    def arguments(self) -> list[Any]:
        return [self.tier, self.due, write_keyed(self.runs)]


def parcels_to_classify(tier: str, due: float, ids: Iterable[int]) -> list[Parcel]:
    """Parcels of these ids, in order but inside a parcel."""
    queue = tier_queue(tier)
    return [Parcel(queue, "classify", tier, due, to_runs(piece)) for piece in pieces(ids, parcel_size(tier))]


def parcels_to_infer(
    deployment: str, tier: str, due: float, keyed: Iterable[tuple[int, int]], *, home: int | None = None
) -> list[Parcel]:
    """Parcels of these (id, prefix key), in order but inside a parcel, where jobs that begin alike stand together: to
    their `home` (a replica's worker id), or whichever is free."""
    queue = model_queue(deployment) if home is None else replica_queue(deployment, home)
    return [Parcel(queue, "infer", tier, due, to_keyed_runs(piece)) for piece in pieces(keyed, parcel_size(tier))]


def declare(name: str) -> Queue:
    return Queue(name, _DEFAULT_EXCHANGE, routing_key=name)


def make_celery(redis_url: str, *, consume: Iterable[str] = ()) -> Celery:
    """A Celery application with the house's settings, consuming these queues in order of urgency."""
    app = Celery("tieryard", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_queues=[declare(name) for name in consume],
        task_default_exchange="",  # Celery puts this in place of a queue's own nameless exchange
        task_create_missing_queues=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=4,
        beat_scheduler="celery.beat:Scheduler",
        broker_transport_options={
            "queue_order_strategy": "priority",
            "socket_timeout": 15,
            "socket_connect_timeout": 1,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "retry_on_timeout": True,
            "polling_interval": 1,
            # Publishing: one more try, then the jobs are rescue's to publish. Kombu's own patience is 6 s a message.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
        },
    )
    return app


class Publisher:
    """Puts parcels and nudges on queues. Safe to share between threads: connections come from Celery's pool."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._away_until = 0.0

    def publish(self, parcels: Iterable[Parcel]) -> int:
        """Sends parcels, many a round trip: how many. Raises BrokerError."""
        return self._send((p.queue, p.task, p.arguments()) for p in parcels)

    def nudge(self, queue: str) -> None:
        """Tells a worker that looks for itself that there is something to find. Raises BrokerError."""
        self._send([(queue, queue, [])])

    def _send(self, messages: Iterable[tuple[str, str, list[Any]]]) -> int:
        waiting = iter(messages)
        first = next(waiting, None)
        if first is None:
            return 0
        if time.monotonic() < self._away_until:
            raise BrokerError("Redis was away a moment ago")
        sent = 0
        try:
            with self._app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch(200):
                for queue, task, arguments in itertools.chain([first], waiting):
                    message = self._app.amqp.as_task_v2(
                        str(uuid.uuid4()), task, arguments, {}, argsrepr="…", kwargsrepr="", ignore_result=True
                    )
                    producer.publish(
                        message.body,
                        exchange="",
                        routing_key=queue,
                        serializer="json",
                        headers=message.headers,
                        **message.properties,
                    )
                    sent += 1
        except (OperationalError, LimitExceeded, RedisError, OSError) as error:
            self._away_until = time.monotonic() + _AWAY_S
            raise BrokerError(f"Redis is away: {error}") from error
        return sent
