"""How the texts of a classification run are asked: in parts, each a batch of their owner's, a few of them ahead.

So budgets, limits, prices and fairness are those of any batch; and a cap, or a gate, has only a few parts to wait for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar

from tieryard.admission import Admission
from tieryard.classification import questions
from tieryard.errors import LimitError, RequestError
from tieryard.queues import EXPAND, BrokerError
from tieryard.requests import Request
from tieryard.requests.classification import TRUTH, ClassificationSpec
from tieryard.store import classification_parts as parts
from tieryard.store import classification_progress as progress
from tieryard.store import classification_texts as texts
from tieryard.store.batches import NewBatch, in_parts
from tieryard.store.budgeted import Budgeted
from tieryard.store.classification_parts import SLICE, NewPart, Part, in_slices
from tieryard.store.classification_progress import Policy
from tieryard.store.classifications import ClassificationRun, RunState, Stage
from tieryard.telemetry import Event
from workers.yard import Yard

_AHEAD = 4  # parts under way
_MOST = 5000  # texts of a part
_LEAST = 500  # while more rows come, and something is under way already
_LOOK_AGAIN_S = 15.0  # at a run that waits for room that others have
_MOST_BYTES = 32 * 2**20  # of a part's questions
_MOST_TEXT_BYTES = 8 * 2**20  # of its texts, which JSON may write longer

Numbered = Sequence[tuple[int, str]]
Known = TypeVar("Known")


def model_at(spec: ClassificationSpec, stage: Stage) -> str:
    """Whom texts are asked of at a stage."""
    if stage is Stage.JUDGE and spec.gate is not None and spec.gate.judge != TRUTH:
        return spec.gate.judge
    larger = spec.larger_model
    return larger if stage is Stage.ESCALATE and larger is not None else spec.model


@dataclass(frozen=True, slots=True)
class _Questions:
    """Texts as they are asked: a line each, with what each can cost at worst, and the tokens of its prompt; these are
    None where nothing depends on them."""

    numbers: list[int]
    lines: list[str]
    worst: list[Decimal] | None
    tokens: list[int] | None

    def first(self, n: int) -> _Questions:
        worst = self.worst[:n] if self.worst is not None else None
        tokens = self.tokens[:n] if self.tokens is not None else None
        return _Questions(self.numbers[:n], self.lines[:n], worst, tokens)


def _readable(line: str) -> Request | None:
    """None for what no job can be made of, such as a blank text that is the whole question: it fails alone."""
    try:
        return questions.parse(line)
    except RequestError:
        return None


def _beside(requests: Sequence[Request | None], known: Sequence[Known], nothing: Known) -> list[Known]:
    """What is known of those that can be read, in the places of all."""
    each = iter(known)
    return [next(each) if request is not None else nothing for request in requests]


@dataclass(frozen=True, slots=True)
class _Wait:
    """A run that was refused: what was under way then, and when to look again in any case."""

    left: tuple[tuple[int, int], ...]
    until: float


def _left(open_parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    """What is under way, as coarsely as caps and budgets are freed of it."""
    return tuple((part.part_no, part.collected // SLICE) for part in open_parts)


class Asking:
    """Makes parts, by the catalog that it has taken over last."""

    def __init__(self, yard: Yard, admission: Admission) -> None:
        self._yard = yard
        self._admission = admission
        self._budgeted = Budgeted(yard.store)
        self._waiting: dict[int, _Wait] = {}

    def forget(self, run_id: int) -> None:
        """A run that is over."""
        self._waiting.pop(run_id, None)

    def take_over(self, admission: Admission) -> None:
        self._admission = admission

    def ask_sample(self, run: ClassificationRun, to_ask: dict[Stage, list[int]]) -> bool:
        """Asks the texts by which the run decides, as far as there is room: whether it has. Raises UserError where
        their model is not served any more."""
        open_parts = [part for part in parts.parts(self._yard.store, run.id) if part.open]
        stage, numbers = next(iter(to_ask.items()))
        if len(open_parts) >= _AHEAD or self._waits(run, open_parts):
            return False
        asked = numbers[: self._most(run.spec, stage)]
        found = texts.texts_of(self._yard.store, run, asked, most_bytes=_MOST_TEXT_BYTES)
        return self._put(run, open_parts, stage, found)

    def ask(self, run: ClassificationRun, policy: Policy) -> bool:
        """Makes the next part, of a run that has decided all it had to: whether it has. What is to be escalated goes
        before what was not asked at all. Raises UserError as `ask_sample` does."""
        found = parts.parts(self._yard.store, run.id)
        open_parts = [part for part in found if part.open]
        if len(open_parts) >= _AHEAD or self._waits(run, open_parts):
            return False
        for part in found:
            if not part.open and not part.followed:
                return self._follow(run, open_parts, part, policy)
        stage = Stage.ESCALATE if policy.all_larger else Stage.FIRST
        most = self._most(run.spec, stage)
        next_texts = texts.next_texts(
            self._yard.store, run, stage, after=run.asked_to, most=most, most_bytes=_MOST_TEXT_BYTES
        )
        if not next_texts or (len(next_texts) < min(_LEAST, most) and open_parts and not run.is_whole):
            return False
        return self._put(run, open_parts, stage, next_texts, in_order=True)

    def _follow(self, run: ClassificationRun, open_parts: list[Part], part: Part, policy: Policy) -> bool:
        """What of a first part is not sure enough goes to the larger model, by several parts where one has no room."""
        if policy.below is not None:
            asked = texts.under_way(self._yard.store, run, Stage.ESCALATE)
            found = texts.unsure_texts(self._yard.store, run, part, policy.below)
            if unsure := [one for one in found if one[0] not in asked]:
                return self._put(run, open_parts, Stage.ESCALATE, unsure, follows=part.part_no)
        parts.follow(self._yard.store, run.id, part.part_no)
        return True

    def _most(self, spec: ClassificationSpec, stage: Stage) -> int:
        """Texts of a part: fewer where a question is long before its text."""
        bare = questions.line(spec, 0, "", model=model_at(spec, stage), logprobs=True)
        return max(1, min(_MOST, _MOST_BYTES // len(bare.encode())))

    def _put(
        self,
        run: ClassificationRun,
        open_parts: list[Part],
        stage: Stage,
        found: Numbered,
        *,
        in_order: bool = False,
        follows: int | None = None,
    ) -> bool:
        """Makes a part of as many of these texts as cap, budgets and limits allow. Where that is none, the run waits
        for what is under way, and stops where nothing is."""
        asked = self._questions(run, stage, found[: self._most(run.spec, stage)])
        asked = asked.first(self._affordable(run, open_parts, asked))
        while asked.numbers:
            whole = len(asked.numbers) == len(found)
            new = NewPart(
                stage,
                asked.numbers,
                asked.lines,
                worst_usd=in_slices(asked.worst) if asked.worst is not None else None,
                follows=follows if whole else None,
                asked_to=asked.numbers[-1] if in_order else None,
            )
            try:
                part_no = parts.put_part(self._yard.store, run, new, self._batch(run, asked))
            except LimitError as error:
                if open_parts or error.retry_after_s != math.inf:
                    return self._wait(run, open_parts, str(error))
                if len(asked.numbers) == 1:
                    return self._stop(run, f"{error}; then resume it")
                asked = asked.first(len(asked.numbers) // 2)
            else:
                return part_no is not None and self._tell(run, new, part_no)
        return False

    def _questions(self, run: ClassificationRun, stage: Stage, found: Numbered) -> _Questions:
        spec, admission, model = run.spec, self._admission, model_at(run.spec, stage)
        admission.check_tier(spec.tier)
        questions.check_model(spec, model, admission, tenant=run.tenant, field=f"'{model}'")
        logprobs = questions.says_how_sure(admission, model, tenant=run.tenant)
        lines = [questions.line(spec, number, text, model=model, logprobs=logprobs) for number, text in found]
        bound = run.max_cost_usd is not None or self._budgeted.binds(run.tenant_id, run.api_key_id)
        limited = run.max_enqueued_tokens is not None
        requests = [_readable(line) for line in lines] if bound or limited else []
        fine = [request for request in requests if request is not None]
        worst = admission.worst_usd(fine, self._budgeted.prices(admission.catalog), tenant=run.tenant) if bound else []
        tokens = admission.prompt_tokens(fine) if limited else []
        return _Questions(
            [number for number, _ in found],
            lines,
            _beside(requests, worst, Decimal(0)) if bound else None,
            _beside(requests, tokens, 0) if limited else None,
        )

    def _affordable(self, run: ClassificationRun, open_parts: list[Part], asked: _Questions) -> int:
        """How many of these cannot take the run past its cap, whatever is answered to them and to what is under way."""
        cap, worst = run.max_cost_usd, asked.worst
        if cap is None or worst is None:
            return len(asked.numbers)
        if any(part.worst_usd is None for part in open_parts):
            self._wait(run, open_parts, "what is under way was asked before there was a cap: it waits for that")
            return 0
        left = cap - run.cost_usd - sum((part.worst_left_usd for part in open_parts), Decimal(0))
        most, at = Decimal(0), 0
        for usd in worst:
            most += usd
            if most > left:
                break
            at += 1
        if at == 0 and open_parts:
            self._wait(run, open_parts, f"the rest of its cap of {cap:f} USD is kept for what is under way")
        elif at == 0:
            self._stop(
                run,
                f"it has cost {run.cost_usd:f} USD, and the next question could cost {worst[0]:f}, which its cap of "
                f"{cap:f} does not cover: resume it with a higher max_cost_usd",
            )
        return at

    def _batch(self, run: ClassificationRun, asked: _Questions) -> NewBatch:
        tier = self._admission.catalog.tiers[run.spec.tier]
        return NewBatch(
            run.tenant_id,
            run.spec.tier,
            datetime.now(tz=UTC) + tier.window,
            tokens=sum(asked.tokens) if asked.tokens is not None else None,
            api_key_id=run.api_key_id,
            worst=in_parts(asked.worst) if asked.worst is not None else None,
        )

    def _tell(self, run: ClassificationRun, new: NewPart, part_no: int) -> bool:
        about = {"run": run.public_id, "part": part_no, "stage": str(new.stage), "texts": len(new.lines)}
        self._yard.log.info(Event.CLASSIFICATION_ASKED, **about)
        try:
            self._yard.publisher.nudge(EXPAND)
        except BrokerError as error:  # beat sees to it too
            self._yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
        return True

    def _wait(self, run: ClassificationRun, open_parts: list[Part], why: str) -> bool:
        self._waiting[run.id] = _Wait(_left(open_parts), time.monotonic() + _LOOK_AGAIN_S)
        if run.why != why:
            self._yard.log.info(Event.CLASSIFICATION_WAITS, run=run.public_id, why=why)
            progress.say(self._yard.store, run.id, why)
        return False

    def _waits(self, run: ClassificationRun, open_parts: list[Part]) -> bool:
        """Whether there is no more room than when it was refused: to write a part's questions and take them back takes
        seconds, and megabytes of Postgres."""
        known = self._waiting.get(run.id)
        if known is not None and known.left == _left(open_parts) and time.monotonic() < known.until:
            return True
        self._waiting.pop(run.id, None)
        return False

    def _stop(self, run: ClassificationRun, why: str) -> bool:
        progress.end(self._yard.store, run.id, RunState.STOPPED, why)
        return True
