"""A stored request again, for a deployment that it did not name."""

from __future__ import annotations

import json
from typing import Any

_OWNERS = (
    "callback_url",
    "completion_window",
    "custom_id",
    "max_cost_usd",
    "metadata",
    "prompt_cache_key",
    "slo",
    "tier",
)
"""What its owner wanted of the job, or noted for itself: no part of what a model is asked."""


def pinned_copy(raw: str, model: str) -> str:
    """The same request of either kind, pinned to this deployment, without its owner's wishes for the job. Raises
    ValueError when it cannot be read."""
    try:
        stored: dict[str, Any] = json.loads(raw.removeprefix("\ufeff"))
        body: dict[str, Any] = stored["body"] if "url" in stored else stored
        for name in _OWNERS:
            body.pop(name, None)
            stored.pop(name, None)
        body["model"] = model
        return json.dumps(stored)  # as ASCII: whatever the caller escaped stays so
    except (RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a request: {error}") from None
