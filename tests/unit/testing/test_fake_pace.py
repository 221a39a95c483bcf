"""The fake's timing: its records, its freeze, and events that come in pieces."""

import httpx
import pytest

from tieryard.testing.fake_vllm import FakeVllm
from tieryard.testing.fault_plan import FakePlan, Freeze

CHAT = {"messages": [{"role": "user", "content": "two words"}], "stream": True}


def asked(plan, **fields):
    """(the answer as it came, the fake)"""
    with FakeVllm.in_thread(plan) as fake:
        return httpx.post(f"{fake.url}/v1/chat/completions", json={**CHAT, **fields}, timeout=30).text, fake


def test_records_say_what_left_when():
    _, fake = asked(FakePlan(length=7, packing=3, ttft_ms=20, tokens_per_s=500, records=True))
    [sent] = fake.pace.sent
    assert sent.prompt == "two words"
    assert [tokens for _, tokens in sent.sends] == [3, 6, 7]
    times = [at for at, _ in sent.sends]
    assert sent.arrived + 0.02 <= times[0] < times[1] < times[2] <= sent.ended
    assert asked(FakePlan())[1].pace.sent == []


@pytest.mark.parametrize("split", [1, 2, 5, 1000])
def test_split_events_are_the_same_bytes(split):
    whole, _ = asked(FakePlan(length=3))
    parts, _ = asked(FakePlan(length=3, split=split))
    assert [line[:20] for line in parts.splitlines()] == [line[:20] for line in whole.splitlines()]
    assert len(parts) == len(whole)


def test_pings_come_before_every_event():
    text, _ = asked(FakePlan(length=3, pings=True))
    events = [event for event in text.split("\n\n") if event]
    kinds = "".join("p" if event.startswith(": ping") else "d" for event in events)
    assert kinds == "dp" + 3 * "pd" + "dd"  # the role; three tokens; the finish reason and the end mark
    assert '"role":"assistant"' in events[0]


def test_a_freeze_holds_everything_back():
    plan = FakePlan(length=3, ttft_ms=10, tokens_per_s=100, records=True, freeze=Freeze(0.015, 0.3))
    _, fake = asked(plan)
    [sent] = fake.pace.sent
    first, second, third = [at - sent.arrived for at, _ in sent.sends]
    assert first < 0.3
    assert second >= 0.31
    assert third >= second


def test_slow_is_so_many_times_slower():
    plan = FakePlan(length=2, ttft_ms=5, tokens_per_s=200, records=True)
    _, fake = asked(plan, messages=[{"role": "user", "content": "[[fault:slow:20]]"}])
    [sent] = fake.pace.sent
    assert sent.sends[0][0] - sent.arrived >= 0.1
    assert sent.ended - sent.arrived >= 0.2
