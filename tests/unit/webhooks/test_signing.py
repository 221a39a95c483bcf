"""Signatures are Standard Webhooks': three libraries that know nothing of us verify them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from standardwebhooks import Webhook

from tieryard.webhooks.signing import new_secret, read_secret, signed_headers

BODY = '{"type":"job.completed","data":{"id":"job_7","note":"€ ü"}}'.encode()


def verified(headers: dict[str, str], secret: str, body: bytes = BODY) -> int:
    """By how many libraries: all raise where one does."""
    import openai
    import svix.webhooks

    Webhook(secret).verify(body.decode(), headers)
    svix.webhooks.Webhook(secret).verify(body, headers)
    with openai.OpenAI(api_key="none") as client:
        client.webhooks.verify_signature(body, headers, secret=secret)
    return 3


def test_three_libraries_verify_it() -> None:
    secret = new_secret()
    assert verified(signed_headers("msg_7", datetime.now(tz=UTC), BODY, [secret]), secret) == 3


def test_either_secret_verifies_during_a_rotation() -> None:
    new, old = new_secret(), new_secret()
    headers = signed_headers("msg_7", datetime.now(tz=UTC), BODY, [new, old])
    assert verified(headers, new) == verified(headers, old) == 3
    assert len(headers["webhook-signature"].split(" ")) == 2
    with pytest.raises(Exception, match="No matching signature"):
        verified(headers, new_secret())


def test_a_changed_body_is_not_verified() -> None:
    secret = new_secret()
    headers = signed_headers("msg_7", datetime.now(tz=UTC), BODY, [secret])
    with pytest.raises(Exception, match="No matching signature"):
        verified(headers, secret, BODY + b" ")


def test_the_timestamp_is_of_the_moment_in_whatever_zone() -> None:
    at = datetime.now(tz=timezone(timedelta(hours=5)))
    secret = new_secret()
    headers = signed_headers("msg_7", at, BODY, [secret])
    assert headers["webhook-timestamp"] == str(int(at.timestamp()))
    assert headers == signed_headers("msg_7", at.astimezone(UTC), BODY, [secret])
    assert verified(headers, secret) == 3


def test_secrets_are_random_and_long() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(read_secret(one) or b"") for one in secrets} == {32}


@pytest.mark.parametrize("text", ["", "whsec_?", "abc", "whsec", "WHSEC_" + "c2VjcmV0" * 4])
def test_what_is_no_secret(text: str) -> None:
    assert not read_secret(text)
