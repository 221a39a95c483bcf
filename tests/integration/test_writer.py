"""The writer: everything that waits in one transaction, through outages, and past one row that spoils it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest

import tieryard.store.writer
from tests import factories as make
from tests.conftest import eventually
from tieryard.errors import StoreError
from tieryard.job import State
from tieryard.store import Connection, Store
from tieryard.store.finish import Ending, Finished, HandBack
from tieryard.store.writer import Writer


class AwayStore(Store):
    """A store whose Postgres is away for its first `outages` transactions."""

    outages = 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        if self.outages:
            self.outages -= 1
            raise StoreError("Postgres is away")
        with super().transaction() as connection:
            yield connection


class Written(list[Finished]):
    """What the writer flushed."""

    @property
    def ended(self) -> set[int]:
        return {i for done in self for i in done.ended}


def write(store: Store, *endings: Ending) -> Written:
    """Puts all before the thread starts, so that they are one flush."""
    flushed = Written()
    writer = Writer(store, flushed=flushed.append)
    for ending in endings:
        writer.put(ending)
    writer.start()
    writer.close()
    return flushed


def test_all_that_waits_is_one_transaction_and_close_writes_it_all(store: Store, tenant: int) -> None:
    claimed = make.running(store, tenant, 20)
    flushed = write(store, *[make.ending(c) for c in claimed])
    assert flushed == [Finished({c.id for c in claimed}, set(), 0)]
    assert make.count(store, "ledger") == 20
    assert len(store.fetch("SELECT DISTINCT xmin::text FROM result")) == 1


def test_endings_put_while_it_runs_are_all_written(store: Store, tenant: int) -> None:
    claimed = make.running(store, tenant, 50)
    flushed = Written()
    writer = Writer(store, flushed=flushed.append, capacity=4)
    writer.start()
    for job in claimed:
        writer.put(make.ending(job))
    writer.close()
    assert flushed.ended == {c.id for c in claimed}


@pytest.mark.parametrize("spoilt", [{"output": "a\x00b"}, {"output": "\ud800"}, {"fingerprint": "\x00"}])
def test_a_row_that_cannot_be_stored_fails_alone_and_is_billed(store: Store, tenant: int, spoilt: dict) -> None:
    claimed = make.running(store, tenant, 9)
    bad = claimed[4]
    flushed = write(store, *[make.ending(c, **(spoilt if c is bad else {})) for c in claimed])
    assert flushed.ended == {c.id for c in claimed}
    assert make.count(store, "job", "state = 'succeeded'") == 8
    assert make.column(store, "state", [bad.id]) == ["failed"]
    assert store.fetch("SELECT job_id, error_kind FROM result WHERE error IS NOT NULL") == [
        (bad.id, "unstorable_answer")
    ]
    assert make.count(store, "ledger") == 9


@pytest.mark.parametrize("figures", [{"prompt_tokens": 2**40}, {"cost_usd": Decimal(-1)}, {"ttft_ms": 1e300}])
def test_figures_that_cannot_be_stored_do_not_stop_the_writer(store: Store, tenant: int, figures: dict) -> None:
    """They come from the engine. A writer that dies of them takes its worker along, three times over."""
    bad, good = make.running(store, tenant, 2)
    flushed = write(store, make.ending(bad, **figures), make.ending(good))
    assert flushed.ended == {bad.id, good.id}
    assert make.column(store, "state", [bad.id, good.id]) == ["failed", "succeeded"]
    assert make.count(store, "ledger") == 1
    assert make.count(store, "timing", "prompt_tokens = 0") == 1


def test_a_hand_back_that_cannot_be_stored_fails_its_job(store: Store, tenant: int) -> None:
    [bad] = make.running(store, tenant)
    write(store, make.hand_back(bad, HandBack.FAULT, error="\x00"))
    assert make.column(store, "state", [bad.id]) == [str(State.FAILED)]


# An answer past a limit of Postgres itself: a jsonb of 256 MB would do, and this takes no memory.
TOO_LARGE = """
CREATE FUNCTION too_large() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF length(NEW.output) > 100 THEN PERFORM repeat('x', 1 << 30); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER too_large BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION too_large();
"""


def test_an_answer_past_postgres_limits_fails_alone(store: Store, tenant: int) -> None:
    with store.transaction() as connection:
        connection.execute(TOO_LARGE)
    claimed = make.running(store, tenant, 5)
    bad = claimed[2]
    flushed = write(store, *[make.ending(c, **({"output": "x" * 101} if c is bad else {})) for c in claimed])
    assert flushed.ended == {c.id for c in claimed}
    assert store.fetch("SELECT job_id, error_kind FROM result WHERE error IS NOT NULL") == [
        (bad.id, "unstorable_answer")
    ]
    assert make.count(store, "ledger") == 5


def test_a_statement_that_asks_too_much_is_no_outage(store: Store) -> None:
    """psycopg calls it an OperationalError. Who takes it for an outage tries it for ever."""
    with pytest.raises(psycopg.errors.ProgramLimitExceeded), store.transaction() as connection:
        connection.execute("SELECT repeat('x', 1 << 30)")
    assert store.fetch("SELECT 1") == [(1,)]


@pytest.mark.parametrize("answer", [{"output": "x" * 400}, {"extra": {"embeddings": [[0.25] * 10, [0.5] * 10]}}])
def test_long_answers_are_several_flushes(
    store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch, answer: dict
) -> None:
    monkeypatch.setattr(tieryard.store.writer, "_MOST_BYTES", 800)
    claimed = make.running(store, tenant, 6)
    flushed = write(store, *[make.ending(c, **answer) for c in claimed])
    assert [len(done.ended) for done in flushed] == [2, 2, 2]


def test_an_outage_is_waited_out(database_url: str, tenant: int) -> None:
    store = AwayStore(database_url)
    claimed = make.running(store, tenant, 3)
    store.outages = 3
    assert write(store, *[make.ending(c) for c in claimed]).ended == {c.id for c in claimed}
    assert store.outages == 0
    assert make.count(store, "ledger") == 3
    store.close()


def test_it_asks_for_a_pause_before_it_is_full(store: Store, tenant: int) -> None:
    [job] = make.running(store, tenant)
    writer = Writer(store, flushed=lambda _: None, capacity=8)
    for _ in range(6):
        writer.put(make.ending(job))
    assert not writer.full
    writer.put(make.ending(job))
    assert writer.full
    writer.start()
    writer.close()


def test_a_fault_of_ours_is_reported_and_blocks_nobody(store: Store, tenant: int) -> None:
    """Its worker must learn of it: a `put` that waits for ever would keep the loop from seeing the failure."""

    def broken(_: Finished) -> None:
        raise LookupError("ours")

    first, second = make.running(store, tenant, 2)
    writer = Writer(store, flushed=broken, capacity=1)
    writer.start()
    writer.put(make.ending(first))
    eventually(lambda: writer.failure is not None, what="the failure")
    for _ in range(3):
        with pytest.raises(LookupError, match="ours"):
            writer.put(make.ending(second))
    with pytest.raises(LookupError, match="ours"):
        writer.close()
