"""The texts of classification runs: those to ask next, and what is known of the first ones, by which runs decide."""

from __future__ import annotations

from collections.abc import Sequence

from tieryard.store.classification_parts import Part
from tieryard.store.classifications import ClassificationRun, Stage
from tieryard.store.connection import Store

# Texts that nobody has been asked about at this stage, after those that were asked in order: what was asked before, of
# the sample, has its answers by now. As many as are so many bytes together, one at least. OFFSET 0 keeps that to one
# index look each, here and below: without it all answers of the run were read for a part (at 1,000,000 texts 139 and
# 190 ms, with it 12 and 27).
_NEXT = """
SELECT text_no, body FROM (
    SELECT t.text_no, t.body, row_number() OVER w AS n, sum(octet_length(t.body)) OVER w AS bytes
    FROM classification_text t
    WHERE t.classification_id = %(id)s AND t.text_no > %(after)s AND NOT EXISTS (
        SELECT FROM classification_answer a
        WHERE a.classification_id = %(id)s AND a.text_no = t.text_no AND a.stage = %(stage)s OFFSET 0)
    WINDOW w AS (ORDER BY t.text_no) ORDER BY t.text_no LIMIT %(most)s
) next WHERE bytes <= %(bytes)s OR n = 1 ORDER BY text_no
"""

_OF = """
SELECT text_no, body FROM (
    SELECT text_no, body, row_number() OVER w AS n, sum(octet_length(body)) OVER w AS bytes
    FROM classification_text WHERE classification_id = %(id)s AND text_no = ANY(%(nos)s) WINDOW w AS (ORDER BY text_no)
) these WHERE bytes <= %(bytes)s OR n = 1 ORDER BY text_no
"""

_UNSURE = """
SELECT t.text_no, t.body FROM classification_part p
CROSS JOIN LATERAL unnest(p.text_nos) AS of (text_no)
CROSS JOIN LATERAL (
    SELECT labels, confidence FROM classification_answer f
    WHERE f.classification_id = %(id)s AND f.text_no = of.text_no AND f.stage = 'first' OFFSET 0
) f
CROSS JOIN LATERAL (
    SELECT text_no, body FROM classification_text t
    WHERE t.classification_id = %(id)s AND t.text_no = of.text_no OFFSET 0
) t
WHERE p.classification_id = %(id)s AND p.part_no = %(part)s
  AND (f.labels IS NULL OR f.confidence IS NULL OR f.confidence < %(below)s)
  AND NOT EXISTS (SELECT FROM classification_answer a
                  WHERE a.classification_id = %(id)s AND a.text_no = of.text_no AND a.stage = 'escalate' OFFSET 0)
ORDER BY t.text_no
"""

_SAMPLE = {
    True: "SELECT text_no FROM classification_text WHERE classification_id = %(id)s AND truth IS NOT NULL "
    "ORDER BY text_no LIMIT %(n)s",
    False: "SELECT text_no FROM classification_text WHERE classification_id = %(id)s ORDER BY text_no LIMIT %(n)s",
}


def next_texts(
    store: Store, run: ClassificationRun, stage: Stage, *, after: int, most: int, most_bytes: int
) -> list[tuple[int, str]]:
    """(number, text) of those that are to be asked next, in order."""
    return [
        (row[0], row[1])
        for row in store.fetch(_NEXT, {"id": run.id, "after": after, "stage": stage, "most": most, "bytes": most_bytes})
    ]


def unsure_texts(store: Store, run: ClassificationRun, part: Part, below: float) -> list[tuple[int, str]]:
    """(number, text) of those in a first part whose answer is not sure enough, and that were not escalated."""
    rows = store.fetch(_UNSURE, {"id": run.id, "part": part.part_no, "below": below})
    return [(row[0], row[1]) for row in rows]


def texts_of(store: Store, run: ClassificationRun, numbers: Sequence[int], *, most_bytes: int) -> list[tuple[int, str]]:
    """(number, text) of the first of these: as many as are so many bytes together, one at least."""
    about = {"id": run.id, "nos": list(numbers), "bytes": most_bytes}
    return [(row[0], row[1]) for row in store.fetch(_OF, about)]


def sample(store: Store, run: ClassificationRun, n: int, *, with_truth: bool) -> list[int]:
    """The first `n` texts, of those that have a truth: the same ones whenever it is asked, once there are so many."""
    return [row[0] for row in store.fetch(_SAMPLE[with_truth], {"id": run.id, "n": n})]


def asked_at(store: Store, run: ClassificationRun, stage: Stage) -> set[int]:
    """Texts in parts of this stage. For the sample, before all others are asked."""
    statement = (
        "SELECT unnest(text_nos) FROM classification_part WHERE classification_id = %(id)s AND stage = %(stage)s"
    )
    return {row[0] for row in store.fetch(statement, {"id": run.id, "stage": stage})}


def under_way(store: Store, run: ClassificationRun, stage: Stage) -> set[int]:
    """Texts in parts of this stage that have yet to be collected."""
    statement = (
        "SELECT unnest(text_nos) FROM classification_part "
        "WHERE classification_id = %(id)s AND stage = %(stage)s AND collected < texts"
    )
    return {row[0] for row in store.fetch(statement, {"id": run.id, "stage": stage})}


def answers_at(
    store: Store, run: ClassificationRun, stage: Stage, numbers: Sequence[int]
) -> dict[int, tuple[frozenset[str], float | None]]:
    """(labels, confidence) by text; one without labels is left out."""
    statement = (
        "SELECT text_no, labels, confidence FROM classification_answer "
        "WHERE classification_id = %(id)s AND stage = %(stage)s AND text_no = ANY(%(nos)s) AND labels IS NOT NULL"
    )
    rows = store.fetch(statement, {"id": run.id, "stage": stage, "nos": list(numbers)})
    return {row[0]: (frozenset(row[1]), row[2]) for row in rows}


def truths_of(store: Store, run: ClassificationRun, numbers: Sequence[int]) -> dict[int, frozenset[str]]:
    statement = (
        "SELECT text_no, truth FROM classification_text "
        "WHERE classification_id = %(id)s AND text_no = ANY(%(nos)s) AND truth IS NOT NULL"
    )
    return {row[0]: frozenset(row[1]) for row in store.fetch(statement, {"id": run.id, "nos": list(numbers)})}
