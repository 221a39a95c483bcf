"""What a start's end is written down as: final with its bill, or handed back for a reason."""

from __future__ import annotations

import random
from typing import Any

from structlog.typing import FilteringBoundLogger

from tieryard.breakers import StartKind
from tieryard.catalog import OWN_SERVERS, AttachedEngine, Catalog, Deployment, served_model
from tieryard.costs import token_cost
from tieryard.engines import Done, Recording
from tieryard.errors import EngineBusyError, EngineError
from tieryard.job import State
from tieryard.lease import Lease
from tieryard.store.connection import storable, storable_json
from tieryard.store.finish import Ending, HandBack, attempts_left
from tieryard.store.jobs import Claimed
from tieryard.telemetry import Event

# What callers are told of an engine's trouble. Its own words hold addresses and the inside of servers, and are logged.
_SAID = {
    "engine_busy": "{} is full; try again",
    "engine_died": "{} died too often with this in flight",
    "engine_down": "{} stopped answering; try again",
    "engine_error": "{} failed; try again",
    "engine_timeout": "{} did not answer in time; try again",
}

_NOT_THE_ENGINES = frozenset(
    {
        *("bad_request", "context_length", "invalid_request", "permanent"),  # its caller's
        *("internal_error", "store_away", "unstorable", "unstorable_answer", "worker_stopped"),  # ours
    }
)
_UNREACHED = ("engine_down", "engine_timeout")

DRAINED = "drained"
"""The reason of a stop that the worker asked for itself."""


def said(kind: str, message: str, deployment: str) -> str:
    """What a caller is told of a failure: a fixed sentence where an engine is in trouble. Where it refused the request,
    its words are the caller's to read."""
    return _SAID[kind].format(deployment) if kind in _SAID else message


def start_kind(ending: Ending) -> StartKind | None:
    """What a start's end says of its engine, for its circuit breaker; None where it says nothing: the request was at
    fault, somebody stopped it, or the fleet could not."""
    if ending.state is State.SUCCEEDED:
        return "ok"
    if ending.error_kind == EngineBusyError.kind:
        return "refused"
    if ending.hand_back in (HandBack.FAULT, HandBack.CRASH):
        return "failed"
    if ending.hand_back is HandBack.OUTAGE:
        return "failed" if ending.error_kind in _UNREACHED else None
    failed = ending.state is State.FAILED and ending.error_kind not in _NOT_THE_ENGINES
    return "failed" if failed else None


class Endings:
    """Makes the endings of one process's starts."""

    def __init__(self, lease: Lease, catalog: Catalog, log: FilteringBoundLogger) -> None:
        self._lease = lease
        self._log = log
        self._known: dict[str, tuple[Deployment, str]] = {}
        self.take_over(catalog)

    def take_over(self, catalog: Catalog) -> None:
        """Bills by this catalog from now on, all at once. What it has lost is billed by the last one that had it, for
        what still runs there."""
        name = catalog.hash()
        self._known = self._known | {each: (spec, name) for each, spec in catalog.deployments.items()}

    def spec_of(self, deployment: str) -> Deployment:
        """As it is billed, or was last."""
        return self._known[deployment][0]

    def failed(self, job: Claimed, recording: Recording, error: EngineError) -> Ending:
        """The job's own fault: again with backoff, or for good after the last attempt."""
        if not attempts_left(job.attempts):
            return self.final(job, State.FAILED, recording, error_kind=error.kind, error=error.message)
        return self.hand_back(job, HandBack.FAULT, error, wait_s=2.0 ** (job.attempts + 1))

    def stopped(self, job: Claimed, recording: Recording, reason: str) -> Ending:
        """A start that was aborted: `cancelled`, `expired`, or DRAINED."""
        if reason == DRAINED:
            return self.hand_back(job, HandBack.DRAIN, EngineError("its worker was stopped"), wait_s=0)
        return self.final(job, State(reason), recording, error_kind=reason, error=f"{reason} while it ran")

    def final(
        self,
        job: Claimed,
        state: State,
        recording: Recording,
        *,
        error_kind: str | None = None,
        error: str | None = None,
    ) -> Ending:
        """A final ending, with the bill for what the engine says it did."""
        recording.stop()
        if error_kind is not None and error is not None:
            if error_kind in _SAID and error_kind != "engine_busy":  # that one says no more than its kind
                found = {"job": job.id, "deployment": job.deployment, "kind": error_kind}
                self._log.error(Event.ENGINE_DOWN, **found, error=error[:300])
            error = said(error_kind, error, job.deployment)
        done, usage = recording.done, recording.usage
        used = usage.prompt_tokens + usage.completion_tokens
        spec, catalog = self._known[job.deployment]
        cost = token_cost(spec.price, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
        return Ending(
            job_id=job.id,
            fence=job.fence,
            state=state,
            worker_id=self._lease.worker_id,
            deployment=job.deployment,
            catalog=catalog,
            claimed_at=job.claimed_at,
            wait_ms=job.waited_ms,
            ttft_ms=recording.ttft_ms,
            latency_ms=recording.latency_ms,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=cost if used else None,
            output=storable(recording.text) if recording.pieces else None,
            finish_reason=done.finish_reason if done else None,
            error_kind=error_kind,
            error=storable(error) if error else None,
            fingerprint=done.fingerprint if done else None,
            extra=_storable_extra(recording.extra),
            revision=_revision(spec, done),
        )

    def hand_back(self, job: Claimed, why: HandBack, error: EngineError, *, wait_s: float) -> Ending:
        """Back to the queue, to start again no sooner than `wait_s` from now."""
        self._log.info(Event.JOB_RETRIED, job=job.id, why=str(why), error=error.kind)
        return Ending(
            job_id=job.id,
            fence=job.fence,
            state=State.QUEUED,
            worker_id=self._lease.worker_id,
            deployment=job.deployment,
            catalog=self._known[job.deployment][1],
            claimed_at=job.claimed_at,
            wait_ms=job.waited_ms,
            error_kind=error.kind,
            error=storable(error.message[:500]),
            hand_back=why,
            retry_in_s=wait_s * random.uniform(1.0, 1.5),  # noqa: S311  # jitter
        )


def _revision(spec: Deployment, done: Done | None) -> str:
    """Just what ran. Behind a hosted API that may be another model than was asked for, and then it is the one that the
    provider names."""
    engine = spec.engine
    if done is None or not done.model or not isinstance(engine, AttachedEngine) or engine.server in OWN_SERVERS:
        return spec.pinned
    return spec.pinned if done.model == served_model(spec) else f"{done.model[:200]}@{spec.revision}"


def _storable_extra(extra: dict[str, Any] | None) -> dict[str, Any] | None:
    """Vectors are numbers, millions of them: looking at each for text that cannot be stored would stop the loop."""
    if extra is None or "embeddings" not in extra:
        found: dict[str, Any] | None = storable_json(extra)
        return found
    rest = {name: value for name, value in extra.items() if name != "embeddings"}
    return {"embeddings": extra["embeddings"], **storable_json(rest)}
