"""Logging: one line an event, constant event names, and never a prompt, a result or a key."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

import structlog
from structlog.typing import FilteringBoundLogger


class Event(StrEnum):
    """The names under which events are logged; docs/reference/logging.md explains each."""

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    PROCESS_FAILED = "process.failed"
    BATCH_EXPANDED = "batch.expanded"
    BATCH_FINISHED = "batch.finished"
    PARCEL_ROUTED = "parcel.routed"
    JOB_RETRIED = "job.retried"
    FLUSH_BISECTED = "flush.bisected"
    WRITER_FAILED = "writer.failed"
    STORE_AWAY = "store.away"
    BROKER_AWAY = "broker.away"
    ENGINE_READY = "engine.ready"
    ENGINE_DOWN = "engine.down"
    CONSUMER_PAUSED = "consumer.paused"
    CONSUMER_RESUMED = "consumer.resumed"
    WORKER_DRAINED = "worker.drained"
    WORKER_DIED = "worker.died"
    LEASE_LOST = "lease.lost"
    RESCUED = "jobs.rescued"
    BROKER_FLUSHED = "broker.flushed"
    CALLBACK_SENT = "callback.sent"
    CALLBACK_FAILED = "callback.failed"


def configure(*, json: bool = True, level: str = "info") -> None:
    """Sets up structlog and the standard library's logging to the same stream, stderr."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=max(threshold, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )


def logger(**context: object) -> FilteringBoundLogger:
    bound: FilteringBoundLogger = structlog.get_logger(**context)
    return bound
