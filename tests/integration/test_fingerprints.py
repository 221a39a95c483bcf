"""What answers under a deployment's name is asked and kept; a change of it, or of its quality, is told and marked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.integration.trials import CATALOG, Scores, golden_set, passing, quality_run
from tieryard.ids import internal
from tieryard.metrics import EngineState, Gauge
from tieryard.routing.trials import Promotion
from tieryard.settings import Settings
from tieryard.store import benchmarks, trials
from tieryard.store.benchmarks import KIND, BenchmarkRun, RunEnd, RunState
from tieryard.store.golden import SetRow
from workers.fingerprints import changes, demote, fingerprint, mark
from workers.yard import Yard

N = 200
GOOD: Scores = {"extraction": passing(180, N), "reasoning": passing(170, N)}
WORSE: Scores = {"extraction": passing(180, N), "reasoning": passing(120, N)}

VLLM = {
    "/v1/models": {"data": [{"id": "acme/served", "root": "/weights/a", "max_model_len": 4096}, {"id": "an-adapter"}]},
    "/version": {"version": "0.11.0"},
    "/tokenize": {"tokens": [1, 2, 3]},
    "/detokenize": {"prompt": "<|im_start|>system\nToday is 22 Nov 2026<|im_end|>"},
}
LLAMA_CPP = {
    "/v1/models": {"data": [{"id": "smol.gguf"}]},
    "/props": {"build_info": "b6000-abc", "chat_template": "{{ messages }}"},
}


class Server:
    """Answers each path with what it is told; refuses what it is not."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                self.rfile.read(int(self.headers.get("content-length", 0)))
                body = json.dumps(outer.told.get(self.path, {"error": "no"})).encode()
                self.send_response(200 if self.path in outer.told else 404)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815  # the name that http.server looks for

            def log_message(self, *_: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextlib.contextmanager
    def serving(self) -> Iterator[Server]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(dict(VLLM)).serving() as found:
        yield found


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    """`big` is an attached vLLM, `awq` an attached llama.cpp."""
    path = tmp_path / "tieryard.yaml"
    attached = "engine: {{kind: openai_http, url: 'http://127.0.0.1:9', server: {}, served_model: acme/served}}"
    text = CATALOG.replace("engine: {kind: instant}", attached.format("vllm"), 1)
    path.write_text(text.replace("engine: {kind: instant}", attached.format("llama_cpp"), 1))
    return path


@pytest.fixture
def yard(settings: Settings) -> Iterator[Yard]:
    yard = Yard("test", settings, consume=[])
    yield yard
    yard.store.close()
    yard.redis.close()
    yard.app.close()


def replica(yard: Yard, deployment: str, worker_id: int, url: str, *, capacity: int = 8) -> None:
    state = EngineState.SERVING if capacity else EngineState.DOWN
    yard.metrics.publish_gauge(deployment, worker_id, Gauge(capacity, 0, 0, url=url, state=state))


# --- what answers -----------------------------------------------------------------------------------------


def test_a_vllm_tells_its_model_version_and_template(yard: Yard, server: Server) -> None:
    replica(yard, "big", 1, server.url)
    seen = fingerprint(yard, "big")
    assert seen is not None
    assert {name: seen[name] for name in ("model", "root", "max_model_len", "version")} == {
        "model": "acme/served",
        "root": "/weights/a",
        "max_model_len": "4096",
        "version": "0.11.0",
    }
    assert len(seen["chat_template"]) == 12
    assert (seen["revision"], seen["replicas"], seen["differing"]) == ("acme/big@1", 1, [])
    assert seen["catalog_template"] is None, "bytes have no template"
    server.told["/detokenize"] = {"prompt": "<|im_start|>system\nToday is 23 Dec 2027<|im_end|>"}
    assert fingerprint(yard, "big") == seen, "a date is no change"


def test_a_llama_cpp_tells_its_build_and_template(yard: Yard, server: Server) -> None:
    server.told = dict(LLAMA_CPP)
    replica(yard, "awq", 1, server.url)
    seen = fingerprint(yard, "awq")
    assert seen is not None
    assert (seen["model"], seen["version"], len(seen["chat_template"])) == ("smol.gguf", "b6000-abc", 12)
    assert "/tokenize" not in server.asked


def test_replicas_that_differ_say_so_and_one_that_is_down_is_not_asked(yard: Yard, server: Server) -> None:
    with Server({**VLLM, "/version": {"version": "0.12.0"}}).serving() as other, Server({}).serving() as down:
        replica(yard, "big", 1, server.url)
        replica(yard, "big", 2, other.url)
        replica(yard, "big", 3, down.url, capacity=0)
        seen = fingerprint(yard, "big")
        assert down.asked == []
    assert seen is not None
    assert (seen["version"], seen["differing"], seen["replicas"]) == (["0.11.0", "0.12.0"], ["version"], 2)


def test_what_is_silent_or_away_leaves_nothing(yard: Yard, server: Server) -> None:
    server.told = {}
    replica(yard, "big", 1, server.url)
    replica(yard, "big", 2, "http://127.0.0.1:9")
    seen = fingerprint(yard, "big")
    assert seen is not None
    held = ("model", "root", "max_model_len", "version", "chat_template", "system_fingerprint")
    assert {name: seen[name] for name in held} == dict.fromkeys(held)
    assert fingerprint(yard, "none") is None
    assert (fingerprint(yard, "awq") or {})["replicas"] == 0


def test_what_servers_said_with_their_answers_is_part_of_it(yard: Yard, tenant: int) -> None:
    for said in ("fp_1", "fp_2", None):
        yard.store.fetch(
            "INSERT INTO timing (job_id, fence, claimed_at, wait_ms, deployment, outcome, fingerprint) "
            "VALUES (%(id)s, 1, now(), 1, 'big', 'succeeded', %(said)s) RETURNING job_id",
            {"id": yard.store.next_id(), "said": said},
        )
    assert (fingerprint(yard, "big") or {})["system_fingerprint"] == ["fp_1", "fp_2"]
    assert (fingerprint(yard, "awq") or {})["system_fingerprint"] is None


# --- what has changed -------------------------------------------------------------------------------------


@pytest.fixture
def asked(yard: Yard) -> SetRow:
    return golden_set(yard.store, {"extraction": N, "reasoning": N})


def finished(yard: Yard, asked: SetRow, scores: Scores, *, seen: dict[str, Any] | None = None) -> str | None:
    """A quality run of `awq`, ended as the benchmark worker does: what has regressed."""
    run_id = internal(KIND, quality_run(yard.store, yard.catalog, "awq", asked, scores))
    run: BenchmarkRun = benchmarks.get(yard.store, run_id)
    profiles: dict[str, dict[str, Any]] = {category: {} for category in scores}
    end = RunEnd(RunState.SUCCEEDED, pinned=yard.catalog.deployments["awq"].build, fingerprint=seen, profiles=profiles)
    found = changes(yard, run, end)
    end = replace(end, regressed=found.regressed)
    yard.store.fetch(
        "UPDATE benchmark SET fingerprint = %(seen)s::jsonb, regressed = %(why)s WHERE id = %(id)s RETURNING id",
        {"id": run_id, "seen": json.dumps(seen), "why": end.regressed},
    )
    with yard.store.transaction() as connection:
        demote(connection, run, found)
    mark(yard, run, end, found)
    return end.regressed


def marks(yard: Yard) -> dict[str, tuple[str, str]]:
    found = yard.metrics.read(yard.catalog).profiles["awq"]
    return {category: (profile.regressed, profile.drifted) for category, profile in found.items()}


def test_the_first_run_and_one_that_is_as_good_say_nothing(yard: Yard, asked: SetRow) -> None:
    assert finished(yard, asked, GOOD, seen={"version": "1"}) is None
    assert finished(yard, asked, GOOD, seen={"version": "1"}) is None
    assert set(marks(yard).values()) <= {("", "")}


def test_a_server_that_has_changed_is_told_once(yard: Yard, asked: SetRow) -> None:
    finished(yard, asked, GOOD, seen={"version": "1", "model": "m", "root": None})
    why = finished(yard, asked, GOOD, seen={"version": ["1", "2"], "model": "m", "root": "r"})
    assert why == "version was 1 and is 1 or 2"
    assert set(marks(yard).values()) == {("", why)}
    assert finished(yard, asked, GOOD, seen={"version": "2", "model": "m"}) is None
    assert set(marks(yard).values()) <= {("", "")}


def test_worse_quality_is_told_marked_and_takes_the_promotion_there(yard: Yard, asked: SetRow) -> None:
    with yard.store.transaction() as connection:
        build = yard.catalog.deployments["awq"].build
        trials.promote(connection, Promotion("awq", "big", build, frozenset(GOOD)), verdict={})
    finished(yard, asked, GOOD)
    why = finished(yard, asked, WORSE)
    assert why is not None
    assert why.startswith("worse than at its last run: reasoning: worse: 60.0% pass against 85.0% of 200 items")
    assert {category: bool(said) for category, (said, _) in marks(yard).items()} == {"reasoning": True}
    with yard.store.transaction() as connection:
        [held] = trials.promotions(connection)
    assert held.categories == ["extraction"]
    assert "worse" in yard.store.fetch("SELECT ended_why FROM promotion WHERE ended_at IS NOT NULL")[0][0]
    assert finished(yard, asked, WORSE) is not None, "held against the last run that was sound"
    assert finished(yard, asked, GOOD) is None
    assert set(marks(yard).values()) <= {("", "")}
    assert make.count(yard.store, "promotion", "ended_at IS NULL") == 1


def test_a_run_of_another_set_or_build_says_nothing_of_quality(yard: Yard, asked: SetRow) -> None:
    finished(yard, asked, GOOD)
    other = golden_set(yard.store, {"extraction": N}, name="other")
    assert finished(yard, other, {"extraction": passing(20, N)}) is None
    yard.store.fetch("UPDATE benchmark SET pinned = 'another' RETURNING id")
    assert finished(yard, asked, WORSE) is None
