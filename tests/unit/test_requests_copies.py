"""A copy asks a model for the same, names its deployment, and has nothing that was its owner's wish for the job."""

from __future__ import annotations

import json

import pytest

from tieryard.requests import parse_request, pinned_copy

WISHES = {
    "tier": "batch",
    "metadata": {"a": "b"},
    "callback_url": "https://hooks.example.com/x",
    "completion_window": "1h",
    "prompt_cache_key": "k",
    "slo": {"max_latency_ms": 10},
    "max_cost_usd": "0.01",
}


def test_a_native_job_asks_the_same_of_the_deployment_on_trial() -> None:
    raw = "\ufeff" + json.dumps({"prompt": "Où? \U0001f600", "max_tokens": 9, "custom_id": "c", "seed": 7, **WISHES})
    copy, original = parse_request(pinned_copy(raw, "trial")), parse_request(raw)
    assert copy.model == "trial"
    assert copy.body == original.body
    wishes = (copy.callback_url, copy.completion_window, copy.slo, copy.max_cost_usd, copy.tier, copy.metadata)
    assert wishes == (None,) * 6
    assert (copy.custom_id, copy.prompt_cache_key) == (None, None)


@pytest.mark.parametrize("text", ['"Hi."', '"a \\ud83d\\ude00 \\n b"'])
def test_a_line_of_a_batch_file_does_too(text: str) -> None:
    body = f'{{"model": "auto", "temperature": 0.5, "messages": [{{"role": "user", "content": {text}}}]}}'
    raw = f'{{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {body}}}'
    copy, original = parse_request(pinned_copy(raw, "trial")), parse_request(raw)
    assert (copy.model, copy.endpoint, copy.body) == ("trial", original.endpoint, original.body)


@pytest.mark.parametrize("raw", ["", "5", "[]", "{", '{"url": "x", "body": 5}', '{"url": "x"}', "[" * 200_000])
def test_what_is_no_request_is_refused(raw: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        pinned_copy(raw, "trial")
