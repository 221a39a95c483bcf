"""Calls while something else is stuck: locks that are held, threads that are taken, a store that answers late."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import api.state
import api.switchboard
from tests import factories as make
from tests.conftest import eventually
from tests.gateway import REPLICAS, Engines, Gateway, catalog_of, gateway
from tieryard.errors import StoreError
from tieryard.job import State
from tieryard.metrics import Metrics
from tieryard.settings import Settings
from tieryard.store import Store, calls, rescue
from tieryard.store.calls import NewCall

MANY = 30
"""More than an API process has threads for calls, or connections."""
LOCK_TIMEOUT_S = 4.0


@pytest.fixture
def gate(
    settings: Settings, fakes: Engines, store: Store, tenant: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    monkeypatch.setattr(api.state, "_LOCK_TIMEOUT_S", LOCK_TIMEOUT_S)
    monkeypatch.setattr(api.switchboard, "_STRAYS_S", 0.3)
    quick = settings.model_copy(update={"catalog": catalog_of(fakes, tmp_path), "keepalive_s": 0.1, "drain_s": 2.0})
    with gateway(quick, fakes, store) as found:
        yield found


@contextlib.contextmanager
def keys_locked(store: Store) -> Iterator[None]:
    """Whoever brings an idempotency key waits."""
    with store.transaction() as connection:
        connection.execute("LOCK TABLE idempotency IN ACCESS EXCLUSIVE MODE")
        yield


def blocked(store: Store) -> int:
    """How many statements wait for a lock."""
    return make.count(store, "pg_stat_activity", "wait_event_type = 'Lock' AND datname = current_database()")


def test_an_api_process_whose_connections_are_all_taken_stays_alive_and_refuses_in_time(gate: Gateway) -> None:
    """Its heartbeat has a connection of its own: declared dead, it would fail every call that it runs."""
    with ThreadPoolExecutor(MANY) as pool, keys_locked(gate.store):

        def post(n: int) -> httpx.Response:
            headers = {"idempotency-key": f"k{n}"}
            return gate.client.post("/v1/jobs", json={"prompt": "hi", "tier": "interactive"}, headers=headers)

        answers = [pool.submit(post, n) for n in range(MANY)]
        eventually(lambda: blocked(gate.store) == 20, what="a pool that is taken")
        time.sleep(3)  # longer than a lease
        assert gate.store.fetch("SELECT lease_until > now(), stopped_at FROM worker") == [(True, None)]
        with gate.store.transaction() as connection:
            assert rescue.bury(connection) == []
        errors = [answer.result(30).json()["error"]["code"] for answer in answers]
        assert set(errors) == {"store_away"}, "no lock is waited for without end"


def test_calls_that_wait_for_the_store_hold_up_no_other(gate: Gateway) -> None:
    api_ = gate.app.state.tieryard.calls
    metrics = Metrics(gate.engines.gauges)
    with ThreadPoolExecutor(MANY + 1) as pool:
        streamed = pool.submit(gate.stream, "[[fault:stall]]")
        gate.until("running")
        waiting: list[Future[httpx.Response]] = []
        with keys_locked(gate.store):
            waiting += [pool.submit(gate.chat, headers={"idempotency-key": f"k{n}"}) for n in range(MANY)]
            eventually(lambda: blocked(gate.store) == api.switchboard._CALL_THREADS, what="calls that wait")
            for _ in range(4):
                time.sleep(0.5)
                assert time.monotonic() - api_.snapshots._read_at < 1
            assert metrics.calls_at("cheap", REPLICAS["cheap"], gate.engines.cheap.url) == 1
            gate.store.fetch("UPDATE job SET stop_requested = 'cancelled' RETURNING id")
            assert streamed.result(3).data[-1]["error"]["code"] == "cancelled"
            gate.until("cancelled")
        assert {call.result(30).status_code for call in waiting} == {200}


def test_a_start_that_is_committed_after_its_ending_was_written_is_ended(
    gate: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = calls.start
    late: list[threading.Timer] = []

    def unanswered(store: Store, new: NewCall) -> None:
        late.append(threading.Timer(0.7, start, [store, new]))
        late[0].start()
        raise StoreError("Postgres went away")

    with monkeypatch.context() as patch:
        patch.setattr(calls, "start", unanswered)
        assert gate.chat().status_code == 503
    eventually(lambda: not gate.app.state.tieryard.calls._writer.pending, what="the ending to be written")
    assert make.count(gate.store, "job") == 0
    late[0].join()
    gate.until("failed")
    assert gate.rows("result", "error_kind", "job_id") == [("store_away",)]
    assert gate.rows("timing", "outcome, deployment") == [("failed", "cheap")]
    assert make.count(gate.store, "ledger") == 0


def test_running_calls_are_no_strays(gate: Gateway) -> None:
    assert gate.chat("[[fault:stall:2]]").status_code == 200
    gate.until(State.SUCCEEDED)


def test_no_more_calls_run_than_can_be_ended_without_waiting(gate: Gateway) -> None:
    """Their endings are put on the loop, which stands still while the writer's queue is full."""
    board = gate.app.state.tieryard.calls
    board._writer._queue.maxsize = 8  # of which three quarters are for use, and two for each call
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(gate.chat, "[[fault:stall:3]]") for _ in range(4)]
        eventually(lambda: len(board.running) == 4, what="as many calls as may run")
        refused = gate.chat()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "all the calls it can end" in refused.json()["error"]["message"]
        assert {call.result(20).status_code for call in running} == {200}
    assert gate.chat().status_code == 200
