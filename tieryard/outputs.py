"""A batch's output and errors, in OpenAI's line formats: read from its jobs in input order, never stored.

While the batch runs, reading gives the lines that are final by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import orjson
from psycopg.rows import TupleRow

from tieryard.answers import Answer
from tieryard.engines import Usage
from tieryard.ids import public
from tieryard.requests import CHAT, read_notes
from tieryard.store.connection import Store
from tieryard.store.files import chunks
from tieryard.store.schema import Batch

Kind = Literal["output", "errors"]

# By primary keys alone, up to so many rows or bytes as `chunks` says. A reused answer's figures are those of the start
# that gave it. What is not text is kept compressed, so its size is a guess.
_FINAL = """
SELECT * FROM (
SELECT job.id, job.state, coalesce(last.ended_at, job.finished_at), line.body, result.output, result.finish_reason,
       result.extra::text, result.error_kind, result.error, job.line_no, coalesce(result.reused_from, job.id),
       last.deployment, last.prompt_tokens, last.completion_tokens, last.cached_tokens, last.fingerprint,
       row_number() OVER w AS n,
       sum(octet_length(line.body) + coalesce(octet_length(result.output), 0)
           + coalesce(4 * pg_column_size(result.extra), 0)) OVER w AS bytes
FROM job
JOIN line USING (source_id, line_no)
JOIN result ON result.job_id = job.id AND result.job_id > %(after)s AND result.job_id <= %(last)s
LEFT JOIN LATERAL (
    SELECT * FROM timing WHERE timing.job_id = coalesce(result.reused_from, job.id) ORDER BY fence DESC LIMIT 1
) last ON true
WHERE job.id > %(after)s AND job.id <= %(last)s AND job.finished_at IS NOT NULL AND (job.state = 'succeeded') = %(good)s
WINDOW w AS (ORDER BY job.id)
ORDER BY job.id LIMIT %(rows)s
) next WHERE bytes <= %(bytes)s OR n = 1 ORDER BY id
"""

_UNDONE = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed, because the batch was cancelled."),
}
# What the engine or the router said of the request itself has a status, as it would have had as a call.
_STATUS = {"context_length": 400, "bad_request": 400, "no_deployment": 400}


def read_output(store: Store, batch: Batch, kind: Kind) -> Iterator[bytes]:
    """The lines that are final, in pieces of a few megabytes."""
    endpoint = batch.endpoint or CHAT
    wanted = {"last": batch.first_job_id + batch.total - 1, "good": kind == "output"}
    for rows in chunks(store, _FINAL, wanted, after=batch.first_job_id - 1, key=lambda row: int(row[0])):
        render = _answered if kind == "output" else _unanswered
        yield b"".join(_line(render, row, endpoint) for row in rows)


def _line(render: Callable[[TupleRow, Any], dict[str, Any]], row: TupleRow, endpoint: Any) -> bytes:
    """One line. An answer that cannot be written as JSON (nested deeper than that goes) is said to be so."""
    try:
        return orjson.dumps(render(row, endpoint)) + b"\n"
    except (orjson.JSONEncodeError, orjson.JSONDecodeError):
        said = {"code": "unreadable_answer", "message": "the answer cannot be written as JSON"}
        line = {"id": public("batch_req", row[0]), "custom_id": read_notes(row[3])[0], "response": None, "error": said}
        return orjson.dumps(line) + b"\n"


def _answered(row: TupleRow, endpoint: Any) -> dict[str, Any]:
    (job_id, _, answered_at, body, text, finish_reason, extra, _, _, _, source, deployment, prompt, completion, cached,
     fingerprint) = row[:16]  # fmt: skip
    answer = Answer(
        endpoint=endpoint,
        job=public("job", source),
        created=answered_at,
        model=deployment or "",
        text=text or "",
        finish_reason=finish_reason or "stop",
        usage=Usage(prompt or 0, completion or 0, cached or 0),
        extra=orjson.loads(extra) if extra else None,
        fingerprint=fingerprint,
    )
    response = {"status_code": 200, "request_id": public("job", job_id), "body": answer.body()}
    return {"id": public("batch_req", job_id), "custom_id": read_notes(body)[0], "response": response, "error": None}


def _unanswered(row: TupleRow, endpoint: Any) -> dict[str, Any]:  # noqa: ARG001  # as `_answered`
    job_id, state, _, body, _, _, _, kind, message, line_no = row[:10]
    response, error = None, None
    if state in _UNDONE:
        code, message = _UNDONE[state]
        error = {"code": code, "message": message}
    elif kind == "invalid_request":
        error = {"code": kind, "message": f"line {line_no}: {message}", "line": line_no}
    else:
        said = {"message": message, "type": "invalid_request_error" if kind in _STATUS else "server_error"}
        response = {
            "status_code": _STATUS.get(kind, 500),
            "request_id": public("job", job_id),
            "body": {"error": {**said, "param": None, "code": kind}},
        }
    return {"id": public("batch_req", job_id), "custom_id": read_notes(body)[0], "response": response, "error": error}
