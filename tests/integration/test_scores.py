"""Scores of answers: whose they are, what they move, and what they are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from tests import factories as make
from tests.integration.test_api import error_of, serving
from tests.integration.test_cli import Run, run, url  # noqa: F401  # fixtures
from tieryard.catalog import Catalog
from tieryard.ids import public
from tieryard.job import State
from tieryard.metrics import Metrics
from tieryard.profiles import Observed
from tieryard.routing import Profile, Rules
from tieryard.settings import Settings
from tieryard.store import Store, jobs, keys, outcomes
from tieryard.store.finish import finish
from tieryard.store.jobs import Routed

RATED = make.candidate("one", profiles={"chat": Profile(samples=9, timestamp=1.0, quality_score=0.5)})


def answered(store: Store, tenant: int, *, hardness: float | None = None, state: State = State.SUCCEEDED) -> int:
    """A final job, that was decided with this word of the learned model."""
    [job] = make.save_jobs(store, tenant)
    with store.transaction() as connection:
        body = replace(make.snapshot(RATED, rules=Rules(classifier="learned")), quality_model="a1b2").to_json()
        decision = Routed(job, 0, "one", "chat", "plain", make.features(hardness=hardness))
        jobs.save_decisions(connection, [decision], snapshot_id=jobs.save_snapshot(connection, body), patience_s=8)
    [claimed] = make.claim(store, [job], make.worker(store))
    fields: dict[str, Any] = {} if state is State.SUCCEEDED else {"output": None, "error_kind": "x", "error": "x"}
    with store.transaction() as connection:
        finish(connection, [make.ending(claimed, state=state, **fields)])
    return job


@pytest.fixture
def client(settings: Settings, tenant: int) -> Iterator[TestClient]:
    with serving(settings) as client:
        yield client


@pytest.fixture
def metrics(redis_url: str) -> Iterator[Metrics]:
    with redis.Redis.from_url(redis_url) as connected:
        yield Metrics(connected)


Send = Callable[..., Any]


@pytest.fixture
def send(client: TestClient) -> Send:
    return lambda job, **body: client.post(f"/v1/jobs/{public('job', job)}/outcome", json=body)


def test_a_score_is_kept_with_what_was_expected_and_moves_the_live_quality(
    store: Store, tenant: int, send: Send, redis_url: str
) -> None:
    job = answered(store, tenant, hardness=1.0)
    kept = send(job, score=0.8).json()
    assert (kept["job"], kept["score"], kept["source"]) == (public("job", job), 0.8, "caller")
    assert (kept["deployment"], kept["category"]) == ("one", "chat")
    assert kept["predicted"] == pytest.approx(0.2689, abs=1e-4)
    assert store.fetch("SELECT score, predicted, rules_predicted, quality_model FROM outcome") == [
        (pytest.approx(0.8), pytest.approx(0.2689, abs=1e-4), 0.5, "a1b2")
    ]
    with redis.Redis.from_url(redis_url) as connected:
        profile = {k.decode(): v.decode() for k, v in connected.hgetall("metrics:one:chat").items()}
    assert (profile.pop("quality_score"), profile.pop("quality_samples")) == ("0.8", "1")
    assert profile.keys() == {"quality_timestamp"}, "nothing that would make other measurements look fresh"


def test_a_later_score_of_the_same_source_replaces_and_a_job_counts_once(
    store: Store, tenant: int, send: Send, redis_url: str
) -> None:
    job = answered(store, tenant)
    for body in ({"score": 1}, {"score": 1}, {"score": 0.25}, {"score": 0, "source": "unit-tests"}):
        assert send(job, **body).status_code == 200
    assert store.fetch("SELECT source, score, predicted, quality_model FROM outcome ORDER BY source") == [
        ("caller", 0.25, None, None),
        ("unit-tests", 0.0, None, None),
    ]
    with redis.Redis.from_url(redis_url) as connected:
        assert connected.hmget("metrics:one:chat", "quality_score", "quality_samples") == [b"1", b"1"]


def test_scores_are_read_back_with_who_gave_them_and_what_was_predicted(
    store: Store,
    tenant: int,
    send: Send,
    client: TestClient,
    run: Run,  # noqa: F811
    url: str,  # noqa: F811
) -> None:
    job = answered(store, tenant, hardness=1.0)
    path = f"/v1/jobs/{public('job', job)}/story"
    assert client.get(path).json()["outcomes"] == []
    assert "scores" not in run("jobs", "show", public("job", job), "--url", url).out
    kept = [send(job, score=0.8).json(), send(job, score=0, source="unit-tests").json()]
    found = client.get(path).json()["outcomes"]
    assert [outcome.pop("predicted") for outcome in found] == [pytest.approx(o.pop("predicted")) for o in kept]
    assert found == kept
    shown = run("jobs", "show", public("job", job), "--url", url).out.partition("scores ─")[2].splitlines()
    at = [outcome["scored_at"][:19].replace("T", " ") for outcome in found]
    rows = [line.split() for line in shown[-2:]]
    assert rows[0] == ["caller", "0.80", "0.27", "one", *at[0].split(), "UTC"]
    assert rows[1] == ["unit-tests", "0.00", "0.27", "one", *at[1].split(), "UTC"]


def test_only_its_owner_scores_a_job_and_only_one_that_has_an_answer(
    store: Store, tenant: int, send: Send, client: TestClient
) -> None:
    keys.add_key(store, "ty_b", tenant="b", name="b")
    job = answered(store, tenant)
    theirs = client.post(
        f"/v1/jobs/{public('job', job)}/outcome", json={"score": 1}, headers={"authorization": "Bearer ty_b"}
    )
    assert error_of(theirs, 404)["code"] == "not_found"
    assert error_of(send(10**9, score=1), 404)["code"] == "not_found"
    [waiting] = make.save_jobs(store, tenant)
    assert "score it when it is final" in error_of(send(waiting, score=1), 409)["message"]
    failed = answered(store, tenant, state=State.FAILED)
    assert "no answer to score" in error_of(send(failed, score=1), 409)["message"]
    assert make.count(store, "outcome") == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"score": 1.01}, "score"),
        ({"score": -0.01}, "score"),
        ({"score": "1"}, "score"),
        ({"score": True}, "score"),
        ({}, "score"),
        ({"score": 1, "source": "Me!"}, "source"),
        ({"score": 1, "source": ""}, "source"),
        ({"score": 1, "note": "x"}, "note"),
    ],
)
def test_what_is_no_score_is_refused_with_its_field(
    store: Store, tenant: int, send: Send, body: dict[str, Any], param: str
) -> None:
    assert error_of(send(answered(store, tenant), **body), 400)["param"] == param


def test_what_is_all_but_zero_is_zero(store: Store, tenant: int, send: Send) -> None:
    assert send(answered(store, tenant, hardness=500.0), score=1e-310).status_code == 200
    assert store.fetch("SELECT score, predicted FROM outcome") == [(0.0, 0.0)]


def test_nan_is_no_score(store: Store, tenant: int, client: TestClient) -> None:
    job = public("job", answered(store, tenant))
    for number in ("NaN", "Infinity", "1e999"):
        raw = f'{{"score": {number}}}'
        answer = client.post(f"/v1/jobs/{job}/outcome", content=raw, headers={"content-type": "application/json"})
        assert answer.status_code == 400, number


def test_without_redis_a_score_is_kept_all_the_same(
    store: Store, tenant: int, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(Metrics, "observe", away)
    assert send(answered(store, tenant), score=1).status_code == 200
    assert make.count(store, "outcome") == 1


def test_the_command(
    store: Store,
    tenant: int,
    run: Run,  # noqa: F811
    url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIERYARD_URL", url)
    job = public("job", answered(store, tenant, hardness=1.0))
    ran = run("jobs", "score", job, "0.8", "--source", "me")
    assert (ran.code, ran.out) == (0, f"{job}: 0.8 for one; 0.27 was expected\n")
    assert store.fetch("SELECT source, score FROM outcome") == [("me", pytest.approx(0.8))]
    assert run("jobs", "score", job, "1.5").code == 2
    assert run("jobs", "score", "batch_1", "0.5").code == 2


def test_an_answer_that_was_used_again_is_nobodys_to_judge(store: Store, tenant: int, send: Send) -> None:
    job = answered(store, tenant)
    store.fetch("DELETE FROM decision RETURNING job_id")
    kept = send(job, score=1).json()
    assert kept["predicted"] is None
    assert store.fetch("SELECT predicted, rules_predicted FROM outcome") == [(None, None)]


def test_a_score_of_what_another_software_decided_is_kept(store: Store, tenant: int, send: Send) -> None:
    job = answered(store, tenant, hardness=1.0)
    store.fetch("UPDATE decision SET features = features || '{\"odd\": 1}' RETURNING job_id")
    kept = send(job, score=1)
    assert (kept.status_code, kept.json()["predicted"]) == (200, None)


def test_quality_and_times_have_ages_of_their_own(metrics: Metrics, catalog: Catalog, redis_url: str) -> None:
    def a_day_passes() -> None:
        with redis.Redis.from_url(redis_url) as client:
            for name in ("timestamp", "quality_timestamp"):
                client.hincrbyfloat("metrics:short:chat", name, -90_000)

    metrics.observe("short", "chat", Observed(n=30, error_rate=0.0, ttft_ms=10.0))
    a_day_passes()
    metrics.observe("short", "chat", Observed(n=1, quality_score=1.0))
    profile = metrics.read(catalog).profiles["short"]["chat"]
    assert (profile.stale, profile.quality_stale) == (True, False)
    assert (profile.samples, profile.quality_samples) == (30, 1)
    a_day_passes()
    metrics.observe("short", "chat", Observed(n=1, error_rate=0.0, ttft_ms=10.0))
    profile = metrics.read(catalog).profiles["short"]["chat"]
    assert (profile.stale, profile.quality_stale) == (False, True)


def test_the_first_scores_weigh_alike_and_later_ones_decay(metrics: Metrics, catalog: Catalog) -> None:
    for score in (0.0, 1.0, 1.0, 1.0):
        metrics.observe("short", "chat", Observed(n=1, quality_score=score))
    read = metrics.read(catalog).profiles["short"]["chat"]
    assert read.quality_score == pytest.approx(0.75)
    for _ in range(500):
        metrics.observe("short", "chat", Observed(n=1, quality_score=0.2))
    read = metrics.read(catalog).profiles["short"]["chat"]
    assert read.quality_score == pytest.approx(0.2, abs=0.01)


MANY = """
INSERT INTO outcome (job_id, source, score, predicted, rules_predicted, quality_model, scored_at, deployment, category)
SELECT n, 'caller', 1, CASE WHEN n % 2 = 0 THEN 0.5 END, 0.5, CASE WHEN n < 40000 THEN 'new' ELSE 'old' END,
       now() - n * interval '1 s', 'one', 'chat'
FROM generate_series(1, 50000) n;
INSERT INTO job (id, tenant_id, source_id, line_no, tier, state, deployment, category, deadline, finished_at)
SELECT n, 1, n, 1, 'bulk', 'succeeded', 'one', 'chat', now(), now() FROM generate_series(1, 20000) n;
INSERT INTO decision (job_id, fence, snapshot_id, reason, features)
SELECT n, 0, n, 'x', '{}' FROM generate_series(1, 20000) n;
INSERT INTO routing_snapshot (body) SELECT '{}' FROM generate_series(1, 20000) n;
INSERT INTO step_back (quality_model, why, until) SELECT 'old', 'x', now() FROM generate_series(1, 1000) n;
ANALYZE outcome, job, decision, routing_snapshot, step_back;
"""


def test_the_statements_read_by_key_and_by_time(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute(MANY.encode())
    year = store.fetch("SELECT now() - interval '1 year'")[0][0]
    wanted: dict[str, Any] = {"after": year, "most": 2000, "id": 7, "tenant": 1}

    def plan(statement: str, quality_model: str = "old") -> str:
        known = wanted | {"quality_model": quality_model}
        return "\n".join(row[0] for row in store.fetch("EXPLAIN " + statement, known))

    for model in ("new", "old", "never seen"):
        latest = plan(outcomes._LATEST, model)
        assert "outcome_by_model" in latest, latest
        assert "Index Cond: ((quality_model = " in latest, latest
    for statement in (outcomes._ANSWERED, outcomes._IN_FORCE, outcomes._LAST):
        assert "Seq Scan" not in plan(statement), plan(statement)
