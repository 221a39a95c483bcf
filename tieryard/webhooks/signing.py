"""How a receiver knows that a delivery is ours: Standard Webhooks signatures."""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """One for an endpoint: 32 random bytes."""
    return _PREFIX + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def read_secret(text: str) -> bytes | None:
    """The bytes of a `whsec_…`; None where it is none."""
    if not text.startswith(_PREFIX):
        return None
    try:
        return b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        return None


def signed_headers(message_id: str, at: datetime, body: bytes, secrets_: Sequence[str]) -> dict[str, str]:
    """The three headers, with a signature by each secret, the newest first: during a rotation either one verifies."""
    at = at.astimezone(UTC)  # the library takes any other zone's clock for UTC's
    signatures = [Webhook(secret).sign(message_id, at, body.decode()) for secret in secrets_]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
