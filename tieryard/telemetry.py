"""Logging: one line an event, constant event names, and never a prompt, a result or a key."""

from __future__ import annotations

import logging
import sys
import traceback
from enum import StrEnum
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger


class Event(StrEnum):
    """The names under which events are logged; docs/reference/logging.md explains each."""

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    PROCESS_FAILED = "process.failed"
    TASK_FAILED = "task.failed"
    REQUEST_FAILED = "request.failed"
    CALL_REROUTED = "call.rerouted"
    BATCH_EXPANDED = "batch.expanded"
    BATCH_FINISHED = "batch.finished"
    CLASSIFICATION_ASKED = "classification.asked"
    CLASSIFICATION_DECIDED = "classification.decided"
    CLASSIFICATION_WAITS = "classification.waits"
    CLASSIFICATION_FINISHED = "classification.finished"
    QUOTE_SETTLED = "quote.settled"
    PARCEL_ROUTED = "parcel.routed"
    QUALITY_MODEL_UNREAD = "quality_model.unread"
    SHADOWS_DROPPED = "shadows.dropped"
    JOB_RETRIED = "job.retried"
    FLUSH_BISECTED = "flush.bisected"
    WRITER_FAILED = "writer.failed"
    STORE_AWAY = "store.away"
    BROKER_AWAY = "broker.away"
    LIMITS_AWAY = "limits.away"
    ENGINE_SAID = "engine.said"
    ENGINE_READY = "engine.ready"
    ENGINE_DOWN = "engine.down"
    ENGINE_UNFIT = "engine.unfit"
    LIMIT_CUT = "limit.cut"
    BREAKER_OPENED = "breaker.opened"
    BREAKER_CLOSED = "breaker.closed"
    OVERFLOWED = "jobs.overflowed"
    CONSUMER_PAUSED = "consumer.paused"
    CONSUMER_RESUMED = "consumer.resumed"
    WORKER_DRAINED = "worker.drained"
    WORKER_DIED = "worker.died"
    LEASE_LOST = "lease.lost"
    CATALOG_TAKEN = "catalog.taken"
    CATALOG_AWAITED = "catalog.awaited"
    CATALOG_DIFFERS = "catalog.differs"
    CATALOG_UNUSABLE = "catalog.unusable"
    RESCUED = "jobs.rescued"
    RENT_CHANGED = "rent.changed"
    PLACE_TAKEN = "rent.place_taken"
    WINDOWS_CLOSED = "rent.windows_closed"
    BROKER_FLUSHED = "broker.flushed"
    STEPPED_BACK = "router.stepped_back"
    CAME_BACK = "router.came_back"
    BENCHMARKS_ASKED = "benchmarks.asked"
    BENCHMARK_STARTED = "benchmark.started"
    BENCHMARK_PUT_OFF = "benchmark.put_off"
    BENCHMARK_FINISHED = "benchmark.finished"
    BENCHMARK_REGRESSED = "benchmark.regressed"
    ANSWERS_JUDGED = "answers.judged"
    SCHEDULE_UNMET = "schedule.unmet"
    CANARY_ENDED = "canary.ended"
    DEMOTED = "candidate.demoted"
    BUDGET_PASSED = "budget.passed"
    BUDGET_OVERRUN = "budget.overrun"
    CALLBACK_SENT = "callback.sent"
    CALLBACK_FAILED = "callback.failed"
    WEBHOOK_DISABLED = "webhook.disabled"


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
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=max(threshold, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )


def fault(error: BaseException) -> dict[str, str]:
    """Fields that name a fault without quoting it: messages of drivers and parsers repeat what callers wrote."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " > ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)
    sqlstate = getattr(error, "sqlstate", None)
    return {"error": f"{type(error).__name__} {sqlstate}" if sqlstate else type(error).__name__, "where": where}


def logger(**context: object) -> FilteringBoundLogger:
    bound: FilteringBoundLogger = structlog.get_logger(**context)
    return bound
