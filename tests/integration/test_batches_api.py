"""Batches in OpenAI's shape, from the upload to the output file; workers are stood in for statement by statement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests import factories as make
from tests.integration.test_api import error_of, serving
from tests.integration.test_files import post
from tieryard import outputs
from tieryard.errors import RequestError
from tieryard.ids import internal
from tieryard.job import State
from tieryard.settings import Settings
from tieryard.store import Store, batches, keys, rescue
from tieryard.store.finish import finish
from tieryard.store.schema import Batch
from workers.expand import close_all, expand_all
from workers.feed import Feeder
from workers.yard import Yard

CHAT = "/v1/chat/completions"


@dataclass
class House:
    """The API, and the work that the other processes would do."""

    client: TestClient
    store: Store
    yard: Yard
    tenant: int

    def upload(self, *lines: Any) -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        answer = post(self.client, text.encode())
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def create(self, *lines: Any, **fields: Any) -> dict[str, Any]:
        wanted = {"input_file_id": self.upload(*lines), "endpoint": CHAT, "completion_window": "24h", **fields}
        answer = self.client.post("/v1/batches", json=wanted)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.client.get(f"/v1/batches/{batch['id']}").json()

    def expand(self) -> None:
        expand_all(self.yard, self.yard.admission())

    def answer(self, batch: dict[str, Any], **fields: Any) -> None:
        """Every job of the batch that waits is run, and succeeds."""
        number = internal("batch", batch["id"])
        [[total]] = self.store.fetch("SELECT total FROM batch WHERE id = %(id)s", {"id": number})
        [[released]] = self.store.fetch("SELECT released_to FROM batch WHERE id = %(id)s", {"id": number})
        if released < total:
            make.release(self.store, number, total)
        ids = list(range(number + 1, number + total + 1))
        make.route(self.store, ids, "short")
        claimed = make.claim(self.store, ids, make.worker(self.store), "short")
        plain = {"deployment": "short", "revision": "test/instant@1", **fields}
        with self.store.transaction() as connection:
            finish(connection, [make.ending(job, **plain) for job in claimed])

    def close(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What feeder and expander do when all jobs are final."""
        with self.store.transaction() as connection:
            assert batches.complete(connection, [internal("batch", batch["id"])]) != []
        close_all(self.yard)
        return self.get(batch)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        content = self.client.get(f"/v1/files/{file_id}/content").content
        assert self.client.get(f"/v1/files/{file_id}").json()["bytes"] == len(content)
        return [json.loads(line) for line in content.splitlines()]

    def states(self, batch: dict[str, Any]) -> dict[str, int]:
        return {state: n for state, n in self.get(batch)["counts"].items() if n}


@pytest.fixture
def house(settings: Settings, tenant: int, store: Store) -> Iterator[House]:
    yard = Yard("expand", settings, consume=[])
    with serving(settings) as client:
        yield House(client, store, yard, tenant)
    yard.app.close()
    yard.store.close()
    yard.redis.close()


def line(custom_id: str, /, *, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"model": "auto", "messages": [{"role": "user", "content": f"Say {custom_id}."}], "max_tokens": 16}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {**asked, **body}}


def test_a_batch_from_upload_to_output(house: House) -> None:
    batch = house.create(line("a"), line("b"), metadata={"run": "1"}, completion_window="90m")
    assert batch["status"] == "validating"
    assert batch["expires_at"] - batch["created_at"] == 5400
    assert (batch["metadata"], batch["completion_window"], batch["tier"]) == ({"run": "1"}, "90m", "bulk")
    house.expand()
    assert house.get(batch)["status"] == "in_progress"
    house.answer(batch)
    assert house.get(batch)["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    done = house.close(batch)
    assert (done["status"], done["error_file_id"], done["cost_usd"]) == ("completed", None, "0.000006")
    assert done["completed_at"] == done["finished_at"] >= done["finalizing_at"] >= done["in_progress_at"]
    found = house.lines(done["output_file_id"])
    assert [found[0]["custom_id"], found[1]["custom_id"]] == ["a", "b"]
    body = found[0]["response"]["body"]
    assert (found[0]["response"]["status_code"], found[0]["error"]) == (200, None)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert (body["object"], body["model"], body["usage"]["total_tokens"]) == ("chat.completion", "short", 15)
    listed = house.client.get("/v1/files", params={"purpose": "batch_output"}).json()["data"]
    assert [f["id"] for f in listed] == [done["output_file_id"]]


def test_finished_lines_can_be_read_while_the_rest_runs(house: House) -> None:
    batch = house.create(line("a"), line("b"), line("c"))
    house.expand()
    number = internal("batch", batch["id"])
    make.release(house.store, number, 3)
    make.route(house.store, [number + 2], "short")
    [job] = make.claim(house.store, [number + 2], make.worker(house.store), "short")
    with house.store.transaction() as connection:
        finish(connection, [make.ending(job)])
    answer = house.client.get(f"/v1/batches/{batch['id']}/output")
    assert [json.loads(x)["custom_id"] for x in answer.text.splitlines()] == ["b"]
    assert house.get(batch)["output_file_id"] is None
    assert house.client.get(f"/v1/batches/{batch['id']}/errors").content == b""


BAD = {
    "not JSON": ("{bad", None, "not valid JSON"),
    "no object": ("[1]", None, "an object"),
    "no custom_id": ({**line("x"), "custom_id": None}, None, "custom_id"),
    "method": ({**line("x"), "method": "GET"}, "x", "method"),
    "other endpoint": (line("x", url="/v1/completions", prompt="x"), "x", "the batch is for"),
    "unknown endpoint": (line("x", url="/v1/responses"), "x", "url"),
    "model": (line("x", model="gpt-9"), "x", "'gpt-9' is not served"),
    "parameter": (line("x", frequency=1), "x", "body.frequency"),
    "message": (line("x", messages=[{"role": "user"}]), "x", "body.messages.0"),
    "image": (line("x", messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "x", "body.messages.0"),
    "too long": (line("x", max_tokens=100_000), "x", "exceed"),
    "n": (line("x", n=2), "x", "body.n"),
    "NUL": (json.dumps(line("x", user="a\x00")), "x", "NUL"),
    "tier": (line("x", tier="realtime"), "x", "the batch is of tier"),
    "deep": ('{"custom_id": "x", "body": ' + "[" * 5000 + "]" * 5000 + "}", None, ""),
}


@pytest.mark.parametrize(("bad", "custom_id", "says"), BAD.values(), ids=BAD)
def test_a_bad_line_fails_alone_with_its_number(house: House, bad: Any, custom_id: str | None, says: str) -> None:
    batch = house.create(line("a"), "", bad, line("b"))
    house.expand()
    house.answer(batch)
    done = house.close(batch)
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 3, "completed": 2, "failed": 1})
    [error] = house.lines(done["error_file_id"])
    assert (error["custom_id"], error["response"], error["error"]["line"]) == (custom_id, None, 3)
    assert error["error"]["message"].startswith("line 3")
    assert says in error["error"]["message"]
    assert [found["custom_id"] for found in house.lines(done["output_file_id"])] == ["a", "b"]


def test_a_custom_id_stands_once_in_a_file(house: House) -> None:
    batch = house.create(line("a"), line("b"), line("a"))
    house.expand()
    assert house.states(batch) == {"queued": 2, "failed": 1}


@pytest.mark.parametrize(
    ("lines", "code"), [([""], "empty_file"), (["a,b", "1,2"], "invalid_file")], ids=["empty", "a CSV"]
)
def test_a_file_that_is_no_list_of_requests_fails_the_batch(house: House, lines: list[str], code: str) -> None:
    batch = house.create(*lines)
    assert batch["status"] == "failed"
    assert batch["failed_at"] is not None
    assert batch["errors"]["data"][0]["code"] == code
    house.expand()
    assert make.count(house.store, "job") == 0


def test_what_an_engine_refused_is_in_the_error_file(house: House) -> None:
    batch = house.create(line("a"))
    house.expand()
    house.answer(batch, state=State.FAILED, error_kind="context_length", error="too long", output=None, cost_usd=None)
    done = house.close(batch)
    assert (done["output_file_id"], done["status"]) == (None, "completed")
    [error] = house.lines(done["error_file_id"])
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["code"] == "context_length"


def test_a_cancelled_batch(house: House) -> None:
    """What is done is kept; what waits ends; lines that were not looked at yet become cancelled jobs."""
    batch = house.create(*(line(str(i)) for i in range(5)))
    house.expand()
    number = internal("batch", batch["id"])
    make.release(house.store, number, 2)
    house.store.fetch("UPDATE batch SET total = 2 WHERE id = %(id)s RETURNING id", {"id": number})
    house.answer(batch)
    house.store.fetch("UPDATE batch SET total = 5 WHERE id = %(id)s RETURNING id", {"id": number})
    answer = house.client.post(f"/v1/batches/{batch['id']}/cancel").json()
    assert (answer["status"], answer["cancelling_at"] is not None) == ("cancelling", True)
    assert house.client.post(f"/v1/batches/{batch['id']}/cancel").json()["status"] == "cancelling"
    with house.store.transaction() as connection:
        assert rescue.stop(connection) == (3, False)
    done = house.close(batch)
    assert (done["status"], done["cancelled_at"] is not None) == ("cancelled", True)
    assert done["request_counts"] == {"total": 5, "completed": 2, "failed": 3}
    errors = house.lines(done["error_file_id"])
    assert [e["custom_id"] for e in errors] == ["2", "3", "4"]
    assert {e["error"]["code"] for e in errors} == {"batch_cancelled"}
    assert house.client.post(f"/v1/batches/{batch['id']}/cancel").json()["status"] == "cancelled"


def test_cancel_before_expansion(house: House) -> None:
    batch = house.create(line("a"), line("b"))
    house.client.post(f"/v1/batches/{batch['id']}/cancel")
    house.expand()
    assert house.states(batch) == {"cancelled": 2}
    with house.store.transaction() as connection:
        rescue.stop(connection)
    assert house.close(batch)["status"] == "cancelled"


def test_what_is_over_is_not_cancelled(house: House) -> None:
    batch = house.create(line("a"))
    house.expand()
    house.answer(batch)
    house.close(batch)
    error = error_of(house.client.post(f"/v1/batches/{batch['id']}/cancel"), 409)
    assert "completed" in error["message"]


def test_a_batch_past_its_window(house: House) -> None:
    batch = house.create(line("a"), line("b"))
    house.expand()
    make.past_window(house.store, internal("batch", batch["id"]))
    with house.store.transaction() as connection:
        assert rescue.stop(connection) == (2, False)
    done = house.close(batch)
    assert (done["status"], done["expired_at"] is not None) == ("expired", True)
    assert {e["error"]["code"] for e in house.lines(done["error_file_id"])} == {"batch_expired"}


def test_reuse_redoes_no_finished_line(house: House) -> None:
    first = house.create(line("a"), line("b"))
    house.expand()
    house.answer(first)
    done = house.close(first)
    house.store.fetch("UPDATE timing SET ended_at = ended_at - interval '1 hour' RETURNING job_id")
    answers = {x["custom_id"]: x for x in house.lines(done["output_file_id"])}
    # The same requests under other names, one asked otherwise, one new.
    again = [{**line("b"), "custom_id": "B"}, {**line("a"), "custom_id": "A"}, line("a", seed=1), line("c")]
    second = house.create(*again, reuse=True)
    house.expand()
    assert house.states(second) == {"succeeded": 2, "queued": 2}
    assert house.get(second)["cost_usd"] == "0"
    found = house.client.get(f"/v1/batches/{second['id']}/output").text.splitlines()
    assert [json.loads(x)["custom_id"] for x in found] == ["B", "A"]
    assert json.loads(found[0])["response"]["body"] == answers["b"]["response"]["body"]
    assert json.loads(found[0])["response"]["body"]["usage"]["total_tokens"] == 15
    jobs = house.client.get("/v1/jobs", params={"batch": second["id"]}).json()["data"]
    assert [job["reused_from"] is not None for job in jobs] == [True, True, False, False]
    # And what reused it can be reused itself.
    third = house.create(line("a"), reuse=True)
    house.expand()
    assert house.states(third) == {"succeeded": 1}
    assert done["status"] == "completed"


@pytest.mark.parametrize("why", ["not asked", "another revision", "another tenant", "it failed"])
def test_what_is_not_reused(house: House, why: str) -> None:
    first = house.create(line("a"))
    house.expand()
    failed = {"state": State.FAILED, "error_kind": "bad_request", "error": "no"} if why == "it failed" else {}
    house.answer(first, **({"revision": "test/instant@0"} if why == "another revision" else failed))
    if why == "another tenant":
        keys.add_key(house.store, "ty_other", tenant="others", name="test")
        house.client.headers["authorization"] = "Bearer ty_other"
    second = house.create(line("a"), reuse=why != "not asked")
    house.expand()
    assert house.states(second) == {"queued": 1}


REFUSED = {
    "no such file": ({"input_file_id": "file_999"}, 404, "input_file_id"),
    "no file's id": ({"input_file_id": "x"}, 404, "input_file_id"),
    "endpoint": ({"endpoint": "/v1/responses"}, 400, "endpoint"),
    "nobody serves": ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
    "window": ({"completion_window": "soon"}, 400, "completion_window"),
    "no window": ({"completion_window": "0s"}, 400, "completion_window"),
    "tier": ({"tier": "first class"}, 400, "tier"),
    "metadata": ({"metadata": {"a": 1}}, 400, "metadata.a"),
    "NUL": ({"metadata": {"a": "\x00"}}, 400, None),
    "unknown": ({"priority": 1}, 400, "priority"),
    "callback": ({"callback_url": "ftp://x"}, 400, "callback_url"),
}


@pytest.mark.parametrize(("fields", "status", "param"), REFUSED.values(), ids=REFUSED)
def test_a_batch_that_is_refused(house: House, fields: dict[str, Any], status: int, param: str | None) -> None:
    wanted = {"input_file_id": house.upload(line("a")), "endpoint": CHAT, "completion_window": "24h", **fields}
    assert error_of(house.client.post("/v1/batches", json=wanted), status)["param"] == param
    assert make.count(house.store, "batch") == 0


def test_an_output_is_no_input(house: House) -> None:
    batch = house.create(line("a"))
    house.expand()
    house.answer(batch)
    output = house.close(batch)["output_file_id"]
    wanted = {"input_file_id": output, "endpoint": CHAT, "completion_window": "24h"}
    assert "batch_output" in error_of(house.client.post("/v1/batches", json=wanted), 400)["message"]
    house.client.delete(f"/v1/files/{output}")
    error_of(house.client.get(f"/v1/files/{output}/content"), 404)


def test_a_file_is_not_deleted_under_a_batch(house: House) -> None:
    batch = house.create(line("a"))
    file = batch["input_file_id"]
    assert batch["id"] in error_of(house.client.delete(f"/v1/files/{file}"), 409)["message"]
    house.expand()
    house.answer(batch)
    done = house.close(batch)
    house.client.delete(f"/v1/files/{file}")
    assert [x["custom_id"] for x in house.lines(done["output_file_id"])] == ["a"]


def test_pages_of_batches(house: House) -> None:
    ids = [house.create(line("a"))["id"] for _ in range(4)][::-1]
    page = house.client.get("/v1/batches", params={"limit": 3}).json()
    assert ([b["id"] for b in page["data"]], page["has_more"], page["last_id"]) == (ids[:3], True, ids[2])
    rest = house.client.get("/v1/batches", params={"after": page["last_id"]}).json()
    assert ([b["id"] for b in rest["data"]], rest["has_more"]) == (ids[3:], False)


def test_one_key_makes_one_of_each(house: House) -> None:
    wanted = {"input_file_id": house.upload(line("a")), "endpoint": CHAT, "completion_window": "24h"}
    asked = [("/v1/batches", wanted), ("/v1/jobs", {"prompt": "a"}), ("/v1/jobs", [{"prompt": "a"}])]
    for number, (path, body) in enumerate(asked):
        headers = {"idempotency-key": str(number)}
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: house.client.post(path, json=body, headers=headers), range(200)))  # noqa: B023
        assert {a.status_code for a in answers} == {answers[0].status_code} <= {200, 201}
        assert len({a.json()["id"] for a in answers}) == 1
        other = {**body, "tier": "batch"} if isinstance(body, dict) else [{"prompt": "b"}]
        assert error_of(house.client.post(path, json=other, headers=headers), 409)["code"] == "conflict"
    assert (make.count(house.store, "batch"), make.count(house.store, "job")) == (2, 1)


def test_a_tenants_cap_on_what_waits(house: House) -> None:
    keys.cap_tenant(house.store, "tests", 60)
    house.client.app.state.tieryard._holders.clear()  # type: ignore[attr-defined]  # what it knew is a few seconds old
    house.create(line("a"))
    [[waiting]] = house.store.fetch("SELECT enqueued_tokens FROM batch")
    assert 30 < waiting < 60
    wanted = {"input_file_id": house.upload(line("b")), "endpoint": CHAT, "completion_window": "24h"}
    for path, body in (("/v1/batches", wanted), ("/v1/jobs", {"prompt": "x"}), ("/v1/jobs", [{"prompt": "x"}])):
        answer = house.client.post(path, json=body)
        assert error_of(answer, 429)["code"] == "token_limit_exceeded"
        assert int(answer.headers["retry-after"]) > 0
    assert (make.count(house.store, "batch"), make.count(house.store, "job")) == (1, 0)
    house.expand()
    [batch] = house.client.get("/v1/batches").json()["data"]
    house.answer(batch)
    house.close(batch)
    assert house.client.post("/v1/batches", json=wanted).status_code == 200


def test_lines_that_are_final_before_release_are_no_speed(house: House) -> None:
    """Thousands of reused lines in a tick must not look like an engine that fast: the window would be flooded."""
    feeder = Feeder(house.yard)
    batch = make.save_batch(
        house.store, house.tenant, lines=["{bad"] * 4000 + [make.body(f"line {i}") for i in range(9000)]
    )
    house.expand()
    for _ in range(14):
        with house.store.transaction() as connection:
            feeder.tick(connection)
    [[released]] = house.store.fetch("SELECT released_to FROM batch WHERE id = %(id)s", {"id": batch})
    assert 4000 < released <= 4000 + 512 + 64


def test_a_cancelled_batch_is_no_speed(house: House) -> None:
    feeder = Feeder(house.yard)
    first, second = (make.save_batch(house.store, house.tenant, 6000) for _ in range(2))
    house.expand()
    with house.store.transaction() as connection:
        feeder.tick(connection)
    batches.cancel(house.store, first)
    with house.store.transaction() as connection:
        rescue.stop(connection)
    for _ in range(3):
        with house.store.transaction() as connection:
            feeder.tick(connection)
    [[released]] = house.store.fetch("SELECT released_to FROM batch WHERE id = %(id)s", {"id": second})
    assert released <= 512 + 64


def test_a_batch_that_cannot_be_closed_holds_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, good = house.create(line("a")), house.create(line("b"))
    house.expand()
    for batch in (odd, good):
        house.answer(batch)
        with house.store.transaction() as connection:
            batches.complete(connection, [internal("batch", batch["id"])])
    read = outputs.read_output

    def unreadable(store: Store, batch: Batch, kind: Any) -> Any:
        if batch.id == internal("batch", odd["id"]):
            raise ZeroDivisionError
        return read(store, batch, kind)

    monkeypatch.setattr(outputs, "read_output", unreadable)
    close_all(house.yard)
    assert (house.get(odd)["status"], house.get(good)["status"]) == ("finalizing", "completed")


def test_an_answer_that_cannot_be_written_is_one_lines_trouble(house: House) -> None:
    batch = house.create(line("a"), line("b"))
    house.expand()
    house.answer(batch)
    deep = "[" * 300 + "]" * 300
    house.store.fetch(
        "UPDATE result SET extra = %(extra)s::jsonb WHERE job_id = %(id)s RETURNING 1",
        {"extra": f'{{"tool_calls": {deep}}}', "id": internal("batch", batch["id"]) + 1},
    )
    first, second = house.lines(house.close(batch)["output_file_id"])
    assert (first["custom_id"], first["error"]["code"]) == ("a", "unreadable_answer")
    assert second["response"]["status_code"] == 200


def test_who_is_told_of_a_batch_that_never_ran(house: House) -> None:
    """A file that cannot be read, and jobs of a list that were over before they were expanded."""
    house.create("", callback_url=make.HOOK)
    lines = [make.body("x", callback_url=make.HOOK)]
    late = make.save_batch(house.store, house.tenant, lines=lines, window_s=-1, callback_url=make.HOOK)
    house.expand()
    with house.store.transaction() as connection:
        rescue.stop(connection)
    with house.store.transaction() as connection:
        assert batches.complete(connection, [late]) == [(late, True)]
    events = [row[0] for row in house.store.fetch("SELECT event FROM outbox ORDER BY id")]
    assert events == ["batch.failed", "job.expired", "batch.expired"]
    assert house.client.get(f"/v1/batches/batch_{late}").json()["status"] == "expired"


def test_a_repeat_is_answered_whatever_has_become_of_the_file(house: House) -> None:
    wanted = {"input_file_id": house.upload(line("a")), "endpoint": CHAT, "completion_window": "24h"}
    headers = {"idempotency-key": "nightly"}
    batch = house.client.post("/v1/batches", json=wanted, headers=headers).json()
    house.expand()
    house.answer(batch)
    house.close(batch)
    house.client.delete(f"/v1/files/{wanted['input_file_id']}")
    again = house.client.post("/v1/batches", json=wanted, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, batch["id"])


def test_a_key_may_be_written_in_escapes(house: House) -> None:
    batch = house.create(json.dumps(line("a")).replace('"url"', '"\\u0075rl"'))
    house.expand()
    house.answer(batch)
    assert house.states(batch) == {"succeeded": 1}


def test_a_line_that_no_template_takes_does_not_hide_the_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    admission = house.yard.admission()
    prompt_tokens = admission.prompt_tokens

    def picky(requests: list[Any]) -> list[int]:
        if any("odd" in request.text() for request in requests):
            raise RequestError("roles must alternate")
        return prompt_tokens(requests)

    monkeypatch.setattr(admission, "prompt_tokens", picky)
    plain = [json.dumps(line(str(i))) for i in range(3)]
    assert admission.file_tokens([[*plain, json.dumps(line("odd"))]], CHAT) == admission.file_tokens([plain], CHAT) > 0
