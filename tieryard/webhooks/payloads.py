"""What a delivery says: what happened to what, and where to read the rest."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

from tieryard.events import LINKS
from tieryard.ids import public

MOST_BYTES = 20_000
"""A payload is shorter than this."""
RESULT_OMITTED = "too long; read it at url"


def payload(
    event: str,
    subject_id: int,
    *,
    at: datetime,
    data: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    too_long: bool = False,
    public_url: str | None = None,
) -> bytes:
    """The body of a delivery, the same at each attempt but for the result.

    `data` is told beside the id. A `result` is told where it fits; one that does not, or was found `too_long` before,
    is left out, and that is said.
    """
    kind = event.partition(".")[0]
    name = public(kind, subject_id)
    told: dict[str, Any] = {"id": name}
    if (link := LINKS.get(kind)) is not None:
        told["url"] = (public_url or "").rstrip("/") + link.format(id=name)
    told |= data or {}
    if result is not None and not too_long and len(whole := _body(event, at, {**told, "result": result})) < MOST_BYTES:
        return whole
    if result is not None or too_long:
        told["result_omitted"] = RESULT_OMITTED
    if len(body := _body(event, at, told)) < MOST_BYTES:
        return body
    return _body(event, at, {"id": name, "url": told.get("url"), "data_omitted": "too long"})


def _body(event: str, at: datetime, data: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": event, "timestamp": at.astimezone(UTC).isoformat(), "data": data})
