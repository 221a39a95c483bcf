"""Pages: where one begins."""

from __future__ import annotations

from tieryard.errors import NotFoundError, RequestError
from tieryard.ids import internal


def cursor(kind: str, after: str | None) -> int | None:
    """The id that a page begins after. Raises RequestError."""
    try:
        return internal(kind, after) if after else None
    except NotFoundError:
        raise RequestError(
            f"'{after}' is no cursor; pass what the page before names as its last", param="after"
        ) from None
