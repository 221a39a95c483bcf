"""One start of one job: its request to the engine, and what becomes of it: an answer, the job's own fault, a refusal
for good, or an engine that could not."""

from __future__ import annotations

import asyncio
import contextlib

from tieryard.admission import count_prompts
from tieryard.endings import Endings
from tieryard.engines import Engine, Recording, Usage, record
from tieryard.errors import (
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineTimeoutError,
    PermanentError,
    RequestError,
    RetryableError,
    StoreError,
)
from tieryard.job import MAX_WORKER_DEATHS, State
from tieryard.requests import Request, parse_request
from tieryard.store import Store, jobs
from tieryard.store.finish import Ending, HandBack
from tieryard.store.jobs import Claimed
from workers.pacing import Pacing
from workers.upkeep import Upkeep

_TOLD_S = 1.0  # after which the router knows that an API is held
_LONGEST_WAIT_S = 60.0  # whatever an engine asks for
_FORBIDDEN = 403  # what hosted APIs answer to a prompt that they will not have


class Attempts:
    """Starts on one engine. `host` is the deployment whose engine it is: others in it are its LoRA adapters."""

    def __init__(
        self, store: Store, host: str, engine: Engine, upkeep: Upkeep, pacing: Pacing, endings: Endings
    ) -> None:
        self._store, self._host = store, host
        self._engine, self._upkeep, self._pacing, self._endings = engine, upkeep, pacing, endings

    async def make(self, job: Claimed, recording: Recording, *, alone: bool) -> Ending:
        """Runs the request into `recording`. `alone`: nothing else is in the engine."""
        try:
            if alone:  # written down first: a worker death from here on is its last
                await asyncio.to_thread(jobs.mark_alone, self._store, job)
            request = parse_request(job.body)
            adapter = {"model": job.deployment} if job.deployment != self._host else {}
            try:
                await record(self._engine, request.salted(job.tenant_id) | adapter, recording)
            finally:
                self._estimate(request, recording)
        except RequestError as error:
            return self._endings.final(job, State.FAILED, recording, error_kind="invalid_request", error=str(error))
        except PermanentError as error:
            return self._endings.final(job, State.FAILED, recording, error_kind=error.kind, error=error.message)
        except EngineBusyError as error:
            self._pacing.refused(error, recording)
            # A hosted API is left alone by all, until when it says; meanwhile others may take this one.
            wait_s = min(error.retry_after_s or _TOLD_S, _LONGEST_WAIT_S) if self._pacing.free else _TOLD_S
            return self._endings.hand_back(job, HandBack.OUTAGE, error, wait_s=wait_s, recording=recording)
        except StoreError:
            return self._endings.hand_back(job, HandBack.OUTAGE, EngineError("the store was away"), wait_s=1.0)
        except (EngineDownError, EngineTimeoutError) as error:
            return await self._engine_failed(job, recording, error)
        except EngineError as error:
            return self._endings.failed(job, recording, error)
        return self._endings.final(job, State.SUCCEEDED, recording)

    def _estimate(self, request: Request, recording: Recording) -> None:
        """An engine that says only in the end what it used says nothing of a start that ends before: its prompt was
        read all the same, and is billed as it is counted here."""
        if recording.generated and recording.done is None and recording.running is None:
            with contextlib.suppress(EngineError, RequestError):
                [prompt] = count_prompts(self._upkeep.counter(), [request])
                recording.running = Usage(prompt, recording.generated)

    async def _engine_failed(self, job: Claimed, recording: Recording, error: RetryableError) -> Ending:
        """No answer. An engine that is well failed this job; one that is not has died, or was never reached."""
        well = await self._engine.healthy() and not self._upkeep.stalled
        if not well:
            self._upkeep.doubt()
        if well and (error.sent or error.status == _FORBIDDEN):
            return self._endings.failed(job, recording, error)
        if not error.sent:
            return self._endings.hand_back(job, HandBack.OUTAGE, error, wait_s=1.0, recording=recording)
        if job.worker_deaths + 1 >= MAX_WORKER_DEATHS:
            reason = f"in flight at {job.worker_deaths + 1} engine or worker deaths: {error.message}"
            return self._endings.final(job, State.FAILED, recording, error_kind="engine_died", error=reason)
        return self._endings.hand_back(job, HandBack.CRASH, error, wait_s=1.0, recording=recording)
