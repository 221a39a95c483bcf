"""What a start's end is written down as: final with its bill, or handed back for a reason."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from structlog.typing import FilteringBoundLogger

from tieryard.breakers import StartKind
from tieryard.catalog import OWN_SERVERS, AttachedEngine, Catalog, Deployment, Price, served_model
from tieryard.costs import token_cost
from tieryard.costs.alternatives import Alternatives
from tieryard.costs.windows import WindowPrice, charge_usd
from tieryard.engines import Done, Recording, Usage
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


@dataclass(frozen=True, slots=True)
class _Bill:
    """What a start's tokens cost, in the window that they are posted to, and what they would have elsewhere."""

    cost_usd: Decimal | None = None
    window_id: int | None = None
    large_usd: Decimal | None = None
    hosted_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """A deployment, the catalog that has it, or was the last to, and that one's hash."""

    spec: Deployment
    catalog: Catalog
    hash: str


@dataclass(frozen=True, slots=True)
class _Today:
    """Prices are of days: what each known deployment's tokens cost on this one, and what they would cost elsewhere.
    `of` is what was known when it was made."""

    day: date
    of: dict[str, _Known]
    prices: dict[str, Price]
    elsewhere: Alternatives


class Endings:
    """Makes the endings of one process's starts. What ran on a rented replica is charged at the price of the window
    that stands there now: an infer process's own, which its lease knows, or the one that the ending is given."""

    def __init__(self, lease: Lease, catalog: Catalog, log: FilteringBoundLogger) -> None:
        self._lease = lease
        self._log = log
        self._known: dict[str, _Known] = {}
        self._catalog = catalog
        self._today: _Today | None = None
        self.take_over(catalog)

    def take_over(self, catalog: Catalog) -> None:
        """Bills by this catalog from now on, all at once. What it has lost is billed by the last one that had it, for
        what still runs there."""
        name = catalog.hash()
        self._catalog = catalog
        self._known = self._known | {each: _Known(spec, catalog, name) for each, spec in catalog.deployments.items()}

    def spec_of(self, deployment: str) -> Deployment:
        """As it is billed, or was last."""
        return self._known[deployment].spec

    def failed(self, job: Claimed, recording: Recording, error: EngineError) -> Ending:
        """The job's own fault: again with backoff, or for good after the last attempt."""
        if not attempts_left(job.attempts):
            return self.final(job, State.FAILED, recording, error_kind=error.kind, error=error.message)
        return self.hand_back(job, HandBack.FAULT, error, wait_s=2.0 ** (job.attempts + 1), recording=recording)

    def stopped(self, job: Claimed, recording: Recording, reason: str) -> Ending:
        """A start that was aborted: `cancelled`, `expired`, or DRAINED."""
        if reason == DRAINED:
            why = EngineError("its worker was stopped")
            return self.hand_back(job, HandBack.DRAIN, why, wait_s=0, recording=recording)
        return self.final(job, State(reason), recording, error_kind=reason, error=f"{reason} while it ran")

    def final(
        self,
        job: Claimed,
        state: State,
        recording: Recording,
        *,
        error_kind: str | None = None,
        error: str | None = None,
        window: WindowPrice | None = None,
    ) -> Ending:
        """A final ending, with the bill for what the engine says it did. `window` is that of the replica, where it is
        another process's."""
        recording.stop()
        if error_kind is not None and error is not None:
            if error_kind in _SAID and error_kind != "engine_busy":  # that one says no more than its kind
                found = {"job": job.id, "deployment": job.deployment, "kind": error_kind}
                self._log.error(Event.ENGINE_DOWN, **found, error=error[:300])
            error = said(error_kind, error, job.deployment)
        done, usage = recording.done, recording.usage
        known = self._known[job.deployment]
        bill = self._bill(job.deployment, known.spec, usage, window)
        return Ending(
            job_id=job.id,
            fence=job.fence,
            state=state,
            worker_id=self._lease.worker_id,
            deployment=job.deployment,
            catalog=known.hash,
            claimed_at=job.claimed_at,
            wait_ms=job.waited_ms,
            ttft_ms=recording.ttft_ms,
            latency_ms=recording.latency_ms,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=bill.cost_usd,
            window_id=bill.window_id,
            large_usd=bill.large_usd,
            hosted_usd=bill.hosted_usd,
            output=storable(recording.text) if recording.pieces else None,
            finish_reason=done.finish_reason if done else None,
            error_kind=error_kind,
            error=storable(error) if error else None,
            fingerprint=done.fingerprint if done else None,
            extra=_storable_extra(recording.extra),
            revision=_revision(known.spec, done),
        )

    def hand_back(
        self, job: Claimed, why: HandBack, error: EngineError, *, wait_s: float, recording: Recording | None = None
    ) -> Ending:
        """Back to the queue, to start again no sooner than `wait_s` from now, with what the start has used."""
        self._log.info(Event.JOB_RETRIED, job=job.id, why=str(why), error=error.kind)
        usage = recording.usage if recording is not None else Usage(0, 0)
        known = self._known[job.deployment]
        bill = self._bill(job.deployment, known.spec, usage)
        return Ending(
            job_id=job.id,
            fence=job.fence,
            state=State.QUEUED,
            worker_id=self._lease.worker_id,
            deployment=job.deployment,
            catalog=known.hash,
            claimed_at=job.claimed_at,
            wait_ms=job.waited_ms,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=bill.cost_usd,
            window_id=bill.window_id,
            large_usd=bill.large_usd,
            hosted_usd=bill.hosted_usd,
            error_kind=error.kind,
            error=storable(error.message[:500]),
            hand_back=why,
            retry_in_s=wait_s * random.uniform(1.0, 1.5),  # noqa: S311  # jitter
        )

    def _bill(self, name: str, spec: Deployment, usage: Usage, window: WindowPrice | None = None) -> _Bill:
        if not usage.prompt_tokens + usage.completion_tokens:
            return _Bill()
        window = window or self._lease.window
        tokens = {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        today = self._of_today()
        cost = token_cost(today.prices[name], **tokens) if window is None else charge_usd(window.price, **tokens)
        window_id = window.window_id if window is not None else None
        if spec.serves != "text":  # nothing that writes could take its place
            return _Bill(cost, window_id)
        hosted_usd = today.elsewhere.hosted_usd(**tokens, size_class=spec.size_class)
        return _Bill(cost, window_id, today.elsewhere.large_usd(**tokens), hosted_usd)

    def _of_today(self) -> _Today:
        day, known, today = datetime.now(tz=UTC).date(), self._known, self._today
        if today is None or today.day != day or today.of is not known:
            prices = {name: one.catalog.price_of(name, day) for name, one in known.items()}
            today = self._today = _Today(day, known, prices, Alternatives.of(self._catalog, day))
        return today


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
