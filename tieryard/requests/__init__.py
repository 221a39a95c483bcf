"""What a caller may ask for, checked field by field, and the one shape that everything behind the API works with.

A stored line is the caller's own JSON: a native job, or `{"method", "url", "body"}` as in OpenAI's batch files
(a call that waits is stored so too). `parse_request` reads either.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from tieryard.errors import RequestError
from tieryard.requests.copies import pinned_copy
from tieryard.requests.fields import Duration, Metadata, Usd, parse_duration, refusal, refuse_nul
from tieryard.requests.native import JobCreate, Message
from tieryard.requests.openai import BODIES, BatchCreate, BatchLine, ChatCreate, CompletionCreate, EmbeddingCreate
from tieryard.requests.request import (
    CHAT,
    COMPLETIONS,
    DEFAULT_MAX_TOKENS,
    EMBEDDINGS,
    ENDPOINTS,
    Endpoint,
    Request,
)
from tieryard.requests.slo import Relative, Slo, TierSlo

__all__ = [
    "BODIES",
    "CHAT",
    "COMPLETIONS",
    "DEFAULT_MAX_TOKENS",
    "EMBEDDINGS",
    "ENDPOINTS",
    "BatchCreate",
    "ChatCreate",
    "CompletionCreate",
    "Duration",
    "EmbeddingCreate",
    "Endpoint",
    "JobCreate",
    "Message",
    "Metadata",
    "Relative",
    "Request",
    "Slo",
    "TierSlo",
    "Usd",
    "parse_batch",
    "parse_batch_line",
    "parse_body",
    "parse_duration",
    "parse_job",
    "parse_request",
    "pinned_copy",
    "read_notes",
    "refusal",
]

_BOM = "\ufeff"


def parse_job(raw: str | bytes, *, line: int | None = None) -> Request:
    """Reads a native job. Raises RequestError that names the field (and the line)."""
    try:
        job = JobCreate.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error, line=line) from None
    refuse_nul(raw, line=line)
    return job.request()


def parse_body(endpoint: Endpoint, raw: str | bytes) -> ChatCreate | CompletionCreate | EmbeddingCreate:
    """Reads the body of a call to an OpenAI endpoint. Raises RequestError that names the field."""
    try:
        body = BODIES[endpoint].model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error) from None
    refuse_nul(raw)
    return body


def parse_batch(raw: bytes) -> BatchCreate:
    """Reads what a batch is to be made of. Raises RequestError that names the field."""
    try:
        wanted = BatchCreate.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error) from None
    refuse_nul(raw)
    return wanted


def parse_batch_line(raw: str, *, endpoint: str | None = None) -> Request:
    """Reads a line of a batch file, for this endpoint. Raises RequestError that names the field."""
    raw = raw.removeprefix(_BOM)
    try:
        line = BatchLine.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error) from None
    refuse_nul(raw)
    if endpoint is not None and line.url != endpoint:
        raise RequestError(f"the batch is for '{endpoint}', not '{line.url}'", param="url")
    return _read_body(line.url, line.body, line.custom_id)


def parse_request(raw: str) -> Request:
    """Reads a stored line, of either kind. Raises RequestError when today's rules refuse it."""
    raw = raw.removeprefix(_BOM)
    # A native job has no such member, a prompt that quotes it has backslashes; and a key may be written in escapes.
    if '"url"' not in raw and "\\u" not in raw:
        return parse_job(raw)
    try:
        stored = from_json(raw)
    except ValueError:
        return parse_job(raw)  # which says what is wrong with it
    if not isinstance(stored, dict) or "url" not in stored:
        return parse_job(raw)
    return _read_body(stored["url"], stored["body"], stored.get("custom_id"))


def read_notes(line: str) -> tuple[str | None, dict[str, str] | None]:
    """(custom_id, metadata) of a stored line, as far as they can be read: a line that was refused may be anything, and
    one that was accepted under older rules is still its owner's to see."""
    try:
        found = from_json(line.removeprefix(_BOM))
    except ValueError:
        return None, None
    if not isinstance(found, dict):
        return None, None
    custom_id = found.get("custom_id")
    body = found.get("body") if "url" in found else found
    metadata = body.get("metadata") if isinstance(body, dict) else None
    if not (isinstance(metadata, dict) and all(isinstance(note, str) for note in metadata.values())):
        metadata = None
    return custom_id if isinstance(custom_id, str) else None, metadata


def _read_body(endpoint: Endpoint, body: dict[str, Any], custom_id: str | None) -> Request:
    try:
        return BODIES[endpoint].model_validate(body).request(custom_id)
    except ValidationError as error:
        raise refusal(error, under="body") from None
