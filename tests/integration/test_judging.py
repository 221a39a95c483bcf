"""Live answers: whose are judged, that each is asked about once, and that a verdict moves what a score would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import factories as make
from tests.integration.judged import Judged, judging, parts, verdict
from tieryard.ids import draw
from tieryard.settings import Settings
from tieryard.store import Store, keys, live_verdicts
from workers.judging import look

SALT = 6053


@pytest.fixture
def judged(settings: Settings, store: Store, tenant: int, tmp_path: Path) -> Iterator[Judged]:
    with judging(settings, store, tenant, tmp_path) as found:
        yield found


def holder(store: Store, name: str) -> int:
    keys.add_key(store, f"ty_{name}", tenant=name, name=name)
    return keys.holder_of(store, f"ty_{name}").tenant_id


def settled(judged: Judged) -> None:
    """What was asked is answered, and read."""
    [batch] = judged.asked()
    judged.answer(batch)
    look(judged.yard)


def with_judge(judged: Judged, monkeypatch: pytest.MonkeyPatch, **judge: Any) -> None:
    whole = judged.yard.catalog
    assert whole.benchmarks.judge is not None
    named = whole.benchmarks.judge.model_copy(update=judge)
    catalog = whole.model_copy(update={"benchmarks": whole.benchmarks.model_copy(update={"judge": named})})
    monkeypatch.setattr(type(judged.yard), "catalog", property(lambda _: catalog))


def test_a_live_answer_is_judged_and_moves_the_live_quality(judged: Judged, redis_url: str) -> None:
    [job] = judged.finished("one", ["It scatters."], text=make.body("Why is the sky blue?"))
    judged.says(lambda _: verdict(score=8))
    look(judged.yard)
    settled(judged)
    assert judged.store.fetch("SELECT job_id, source, score, deployment, category FROM outcome") == [
        (job, "judge:judge", pytest.approx(0.8), "one", "chat")
    ]
    with redis.Redis.from_url(redis_url) as connected:
        assert connected.hmget("metrics:one:chat", "quality_score", "quality_samples") == [b"0.8", b"1"]
    [shown] = judged.prompts
    assert (parts(shown)["question-user"], parts(shown)["answer"]) == ("Why is the sky blue?", "It scatters.")
    assert "correctly and completely" in parts(shown)["criteria"]
    assert judged.store.fetch("SELECT job_id, why, settled_at IS NOT NULL FROM live_verdict") == [(job, None, True)]


def test_each_answer_is_asked_about_once(judged: Judged) -> None:
    judged.finished("one", ["a", "b"])
    look(judged.yard)
    look(judged.yard)
    assert make.count(judged.store, "batch") == 1
    judged.says(lambda _: verdict(score=5))
    settled(judged)
    look(judged.yard)
    assert make.count(judged.store, "batch") == 1
    assert make.count(judged.store, "outcome") == 2


def test_nobody_elses_answers_are_read(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who have not agreed, and those whose policy keeps them from the judge's deployment."""
    judged.finished("one", ["not agreed"], tenant=holder(judged.store, "others"))
    judged.finished("one", ["of the EU"], tenant=holder(judged.store, "guarded"))
    read: list[str] = []
    choose = live_verdicts.choose

    def spied(*arguments: Any, **wanted: Any) -> list[live_verdicts.LiveAnswer]:
        found = choose(*arguments, **wanted)
        read.extend(answer.output for answer in found)
        return found

    monkeypatch.setattr(live_verdicts, "choose", spied)
    look(judged.yard)
    assert read == []
    judged.finished("one", ["agreed"])
    look(judged.yard)
    assert read == ["agreed"]
    assert make.count(judged.store, "live_verdict") == 1


def test_a_judge_does_not_judge_its_own(judged: Judged) -> None:
    """Nor those of its model at its revision under another name."""
    judged.finished("judge", ["mine"])
    judged.finished("twin", ["my twin's"])
    look(judged.yard)
    assert make.count(judged.store, "live_verdict") == 0


def test_failures_cut_answers_and_calls_of_tools_are_no_answers_to_judge(judged: Judged) -> None:
    judged.finished("one", [None])
    [cut] = judged.finished("one", ["It was a dark and"])
    judged.store.fetch("UPDATE result SET finish_reason = 'length' WHERE job_id = %(id)s RETURNING job_id", {"id": cut})
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"model": "auto", "messages": [{"role": "user", "content": "Call."}], "tools": tools}
    line = json.dumps({"method": "POST", "url": "/v1/chat/completions", "body": body})
    judged.finished("one", ["in words instead"], text=line)
    look(judged.yard)
    assert make.count(judged.store, "live_verdict") == 0


def test_requests_of_openais_kinds_are_judged_too(judged: Judged) -> None:
    chat = {"model": "auto", "messages": [{"role": "user", "content": [{"type": "text", "text": "In parts?"}]}]}
    plain = {"model": "auto", "prompt": "The sky is"}
    for url, body in (("/v1/chat/completions", chat), ("/v1/completions", plain)):
        judged.finished("one", ["blue"], text=json.dumps({"method": "POST", "url": url, "body": body}))
    judged.says(lambda _: verdict(score=5))
    look(judged.yard)
    settled(judged)
    assert sorted(parts(prompt)["question-user"] for prompt in judged.prompts) == ["In parts?", "The sky is"]


def test_what_a_tenant_wants_out_is_taken_out(judged: Judged) -> None:
    judged.finished("one", ["It is secret-42."], text=make.body("What is secret-41?"))
    judged.says(lambda _: verdict(score=5))
    look(judged.yard)
    settled(judged)
    [shown] = judged.prompts
    assert (parts(shown)["question-user"], parts(shown)["answer"]) == ("What is [cut]?", "It is [cut].")
    assert "secret" not in shown


def test_an_answer_that_had_to_be_json_is_judged_as_such(judged: Judged) -> None:
    text = make.body("As JSON.", response_format={"type": "json_object"})
    judged.finished("one", ["{}"], text=text)
    judged.says(lambda _: verdict(score=5))
    look(judged.yard)
    settled(judged)
    assert "It had to be JSON" in parts(judged.prompts[0])["criteria"]


def test_a_reply_that_is_no_verdict_is_no_score(judged: Judged) -> None:
    judged.finished("one", ["a"])
    judged.says(lambda _: "a fine answer: 10/10")
    look(judged.yard)
    settled(judged)
    assert make.count(judged.store, "outcome") == 0
    [[why]] = judged.store.fetch("SELECT why FROM live_verdict WHERE settled_at IS NOT NULL")
    assert "no JSON" in why


def test_the_share_goes_by_each_jobs_own_chance(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `tieryard.ids.draw` has it."""
    jobs = judged.finished("one", ["x"] * 60)
    with_judge(judged, monkeypatch, live_share=0.25)
    look(judged.yard)
    asked = [row[0] for row in judged.store.fetch("SELECT job_id FROM live_verdict ORDER BY job_id")]
    assert asked == [job for job in jobs if draw(job * SALT) < 0.25]
    assert 0 < len(asked) < 32


def test_questions_are_bounded(judged: Judged) -> None:
    judged.finished("one", ["x"] * 40)
    look(judged.yard)
    assert make.count(judged.store, "live_verdict") == 32
    look(judged.yard)
    assert make.count(judged.store, "live_verdict") == 32


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_a_share_nothing_is_judged(judged: Judged, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    judged.finished("one", ["x"])
    with_judge(judged, monkeypatch, live_share=share)
    look(judged.yard)
    assert make.count(judged.store, "live_verdict") == (1 if share else 0)


def test_a_redactor_that_cannot_be_loaded_shows_nothing_to_anybody(judged: Judged) -> None:
    judged.yard.settings = judged.yard.settings.model_copy(update={"redactor": "no.such:thing"})
    judged.finished("one", ["x"])
    look(judged.yard)
    assert make.count(judged.store, "live_verdict") == 0
