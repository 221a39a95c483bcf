"""Quotes as they go out."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from api.shapes import Usd
from tieryard.costs.quotes import Meets
from tieryard.ids import public
from tieryard.store.schema import Quote


class UsdRange(BaseModel):
    low: Usd = Field(description="Answers of half the usual length.")
    expected: Usd
    worst: Usd = Field(description="Every answer as long as it may be.")


class TokensRange(BaseModel):
    low: int
    expected: int
    worst: int


class FinishRange(BaseModel):
    """Had the batch been sent when the quote was made. Seconds count from a batch's acceptance."""

    low: datetime
    expected: datetime
    worst: datetime
    low_s: float
    expected_s: float
    worst_s: float


class SharePublic(BaseModel):
    """What one deployment would get; `finish` is absent where it serves nothing now."""

    deployment: str
    requests: int
    cost_usd: Usd
    finish: FinishRange | None = None


class OfferPublic(BaseModel):
    """The batch under one tier."""

    tier: str
    cost_usd: UsdRange
    cost_error_usd: Usd = Field(description="Standard error of the sample, in the expected cost; 0 where all was read.")
    prompt_tokens: int = Field(description="By the tokenizers of the deployments that were chosen.")
    output_tokens: TokensRange
    finish: FinishRange | None = Field(description="Absent where a chosen deployment serves nothing now.")
    meets: Meets = Field(description="The deadline, or the end of the tier's window if that is earlier.")
    missed: int = Field(description="Requests that nothing would take.")
    waits: int = Field(description="Requests that would wait first; priced as if they did not.")
    fallbacks: int = Field(description="Requests for which no deployment meets SLO and quality floor.")
    deployments: list[SharePublic]
    notes: list[str] = Field(description="What the figures rest on, and what is not measured.")


class FaultPublic(BaseModel):
    line: int
    param: str | None
    message: str


class LinesPublic(BaseModel):
    """`read` is how many requests were read: all, or a sample, of which the other counts are then estimates."""

    good: int
    bad: int
    read: int
    faults: list[FaultPublic] = Field(description="The first bad lines.")


class BudgetQuoted(BaseModel):
    left_usd: Usd = Field(description="The least that any of the caller's budgets leaves now.")
    reserves_usd: Usd = Field(
        description="What it would reserve: the worst case, at the dearest deployment of each job."
    )
    covers: bool


class Held(BaseModel):
    ratio: float | None = Field(description="Actual ÷ expected; absent where nothing was expected.")
    inside: bool | None = Field(description="Whether it came out within the quoted range.")


class ActualPublic(BaseModel):
    """What came of it, by the ledger."""

    outcome: str
    cost_usd: Usd
    prompt_tokens: int
    completion_tokens: int
    finish_s: float
    finished_at: datetime
    cost: Held
    finish: Held


class QuotePublic(BaseModel):
    """What a batch was said to cost and take; `actual` once it is over."""

    id: str
    object: Literal["quote"] = "quote"
    created_at: datetime
    input_file_id: str | None
    requests: int
    lines: LinesPublic
    prompt_tokens: int = Field(description="By the tokenizer that makes the most of it.")
    prompt_tokens_error: int = Field(description="Standard error of the sample; 0 where all was read.")
    deadline: datetime | None
    offers: list[OfferPublic]
    cheapest: str | None = Field(description="The cheapest tier that is in time; absent where none is.")
    budget: BudgetQuoted | None = None
    batch_id: str | None
    tier: str | None = Field(description="Where the batch ran.")
    actual: ActualPublic | None
    settled_at: datetime | None

    @classmethod
    def of(cls, row: Quote) -> Self:
        said = row.offers
        return cls(
            id=public("quote", row.id),
            created_at=row.created_at,
            input_file_id=public("file", row.file_id) if row.file_id is not None else None,
            requests=row.requests,
            lines=LinesPublic(**said["lines"]),
            prompt_tokens=row.prompt_tokens,
            prompt_tokens_error=said["prompt_tokens_error"],
            deadline=said["deadline"],
            offers=[_offer(tier, one, row.created_at) for tier, one in _in_order(said)],
            cheapest=said["cheapest"],
            budget=BudgetQuoted(**said["budget"]) if said.get("budget") else None,
            batch_id=public("batch", row.batch_id) if row.batch_id is not None else None,
            tier=row.tier,
            actual=ActualPublic(**row.actual) if row.actual is not None else None,
            settled_at=row.settled_at,
        )


class QuotePage(BaseModel):
    data: list[QuotePublic]
    next: str | None = None


def _in_order(said: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The cheapest expected first; JSONB keeps no order."""
    return sorted(said["tiers"].items(), key=lambda item: (Decimal(item[1]["cost_usd"]["expected"]), item[0]))


def _offer(tier: str, one: dict[str, Any], since: datetime) -> OfferPublic:
    shares = [
        SharePublic(**{k: v for k, v in s.items() if k != "finish_s"}, finish=_finish(s["finish_s"], since))
        for s in one["deployments"]
    ]
    kept = {k: v for k, v in one.items() if k not in ("finish_s", "deployments")}
    return OfferPublic(tier=tier, finish=_finish(one["finish_s"], since), deployments=shares, **kept)


def _finish(found: dict[str, float] | None, since: datetime) -> FinishRange | None:
    if found is None:
        return None
    times = {end: since + timedelta(seconds=s) for end, s in found.items()}
    return FinishRange(**times, **{f"{end}_s": s for end, s in found.items()})
