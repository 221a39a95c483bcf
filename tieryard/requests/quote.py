"""What a quote is asked for with: an uploaded file, or a list, and by when it is to be done."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tieryard.errors import RequestError
from tieryard.requests.fields import Name, refusal, refuse_nul
from tieryard.requests.request import Endpoint
from tieryard.requests.slo import Deadline


class QuoteCreate(BaseModel):
    """What of an uploaded file is to be priced."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={"examples": [{"input_file_id": "file_7", "deadline": "6h"}]},
    )

    input_file_id: str = Field(description="An uploaded file of purpose `batch`.")
    endpoint: Endpoint | None = Field(default=None, description="What its lines call. Default: what the first does.")
    deadline: Deadline | None = Field(
        default=None, description="When all is to be done: counted from now (`6h`), or a time with its zone."
    )
    tier: Name | None = Field(default=None, description="The only tier to price. Default: all of the catalog.")


_deadline: TypeAdapter[timedelta | datetime] = TypeAdapter(Deadline)


def parse_quote(raw: bytes) -> QuoteCreate:
    """Reads what is to be quoted. Raises RequestError that names the field."""
    try:
        wanted = QuoteCreate.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error) from None
    refuse_nul(raw)
    return wanted


def due_at(deadline: timedelta | datetime | str | None, now: datetime) -> datetime | None:
    """A deadline as a time. Raises RequestError for one that is over, or none at all."""
    if deadline is None:
        return None
    try:
        found = _deadline.validate_python(deadline)
    except ValidationError as error:
        raise RequestError(refusal(error).message, param="deadline") from None
    due = now + found if isinstance(found, timedelta) else found.astimezone(UTC)
    if due <= now:
        raise RequestError(f"{due.isoformat()} is over; give a time to come, or none", param="deadline")
    return due
