"""Runs of more rows than a small integer counts: what psycopg sends as one must not be added up as one."""

from __future__ import annotations

import pytest

from tieryard.requests.classification import ClassificationSpec, Label
from tieryard.store import Store, classification_progress, classification_reads, classifications
from tieryard.store.classification_progress import Policy
from tieryard.store.classifications import ClassificationRun, NewRun

TEXTS = 40_000


@pytest.fixture
def run(store: Store, tenant: int) -> ClassificationRun:
    """All of whose texts are answered, and 28,000 of them settled."""
    spec = ClassificationSpec(labels=[Label(name="bug"), Label(name="billing")])
    run_id = classifications.create(store, NewRun(tenant, None, spec), None)
    told = {"id": run_id, "texts": TEXTS}
    with store.transaction() as connection:
        for statement in (
            "INSERT INTO classification_text (classification_id, text_no, first_row, digest, body) "
            "SELECT %(id)s, n, n, sha256(n::text::bytea), n FROM generate_series(1, %(texts)s) AS n",
            "INSERT INTO classification_row (classification_id, row_no, text_no) "
            "SELECT %(id)s, n, n FROM generate_series(1, %(texts)s) AS n",
            "INSERT INTO classification_answer (classification_id, text_no, stage, job_id, labels, cost_usd) "
            "SELECT %(id)s, n, 'first', n, '{bug}', 0 FROM generate_series(1, %(texts)s) AS n",
            "UPDATE classification SET received = %(texts)s, texts = %(texts)s, total = %(texts)s, state = 'running', "
            "asked_to = %(texts)s, settled_to = 28000, final_rows = 28000 WHERE id = %(id)s",
        ):
            connection.execute(statement, told)
    return classifications.get(store, run_id)


@pytest.mark.parametrize("most", [5000, 32_000])
def test_rows_beyond_32_767_are_settled_and_read(store: Store, run: ClassificationRun, most: int) -> None:
    assert classification_progress.settle(store, run, Policy(), most=most) == TEXTS - 28_000
    now = classifications.get(store, run.id)
    assert (now.settled_to, now.final_rows) == (TEXTS, TEXTS)
    found = classification_reads.results(store, now, after=32_760, limit=10_000)
    assert [one.row for one in found] == list(range(32_761, TEXTS + 1))


def test_a_run_that_statistics_know_nothing_of_is_read_by_its_keys(store: Store, run: ClassificationRun) -> None:
    """A plan that reads all answers for each text takes minutes here, and days for a million."""
    with store.transaction() as connection:
        connection.execute(f"SET LOCAL statement_timeout = '{_MOST_S}s'")
        plain = {"all_larger": False, "below": 0.5}
        connection.execute(classification_progress._SETTLED, {"id": run.id, "after": 0, "most": 20_000, **plain})
        page = {"id": run.id, "after": 0, "last": TEXTS, "limit": 20_000}
        assert len(connection.execute(classification_reads._RESULTS, page).fetchall()) == 20_000


def test_known_texts_are_looked_up_one_by_one(store: Store, run: ClassificationRun) -> None:
    """Whoever sends 10,000 rows must not read the texts of all runs there are."""
    with store.transaction() as connection:
        digests = [row[0] for row in connection.execute("SELECT digest FROM classification_text LIMIT 10000")]
        known = {"digests": digests, "id": run.id}
        assert len(connection.execute(classifications._KNOWN, known).fetchall()) == 10_000
        for fresh in (False, True):
            if fresh:
                connection.execute("ANALYZE classification_text")
            plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {classifications._KNOWN}", known))
            assert "classification_text_by_digest" in plan, plan
            assert "Seq Scan" not in plan, plan
            assert "classification_text_pkey" not in plan, plan


_MOST_S = 10
