"""An API that keeps one classification run in memory, answers each text by its first word, and can be away or busy at
chosen moments: what the command must live with."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

RUN = "classification_7"
COST = Decimal("0.000001")


@dataclass
class FakeRuns:
    """`faults` are taken one a request whose path ends with their key, before it is done (`before`) or after (`after`):
    a status, or "reset". `stop_at` rows the run stops by its cap; `hold` keeps results from being final."""

    spec: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    total: int | None = None
    made: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    stop_at: int | None = None
    hold: bool = False
    cancelled: bool = False
    resumed: list[dict[str, Any]] = field(default_factory=list)
    gate: dict[str, Any] | None = None

    @property
    def cap(self) -> str | None:
        """The last that was given."""
        given: str | None = (self.resumed or [self.spec or {}])[-1].get("max_cost_usd")
        return given

    @property
    def state(self) -> str:
        if self.cancelled:
            return "cancelled"
        if self.stop_at is not None and len(self.rows) >= self.stop_at:
            return "stopped"
        if self.total is None:
            return "receiving"
        return "running" if self.hold else "completed"

    def run(self) -> dict[str, Any]:
        results = self.results(0, 10**9)
        texts = {row["text"] for row in self.rows}
        counts = {
            "rows": len(self.rows), "unique": len(texts), "asked": len(texts), "answered": len(texts), "failed": 0,
            "escalated": 0, "final_rows": len(results),
        }  # fmt: skip
        cost = sum((Decimal(one["cost_usd"]) for one in results), Decimal(0))
        why = "its next part could pass max_cost_usd" if self.state == "stopped" else None
        return {
            "id": RUN, "state": self.state, "why": why, "received": len(self.rows), "total": self.total,
            "counts": counts, "cost_usd": f"{cost:f}", "max_cost_usd": self.cap,
            "rate": 10.0, "eta_s": 5.0, "gate": self.gate, "threshold": None,
            "spec": self.spec, "created_at": "2026-11-23T12:00:00Z",
        }  # fmt: skip

    def results(self, after: int, limit: int) -> list[dict[str, Any]]:
        known: dict[str, int] = {}
        found = []
        for number, row in enumerate(self.rows, start=1):
            first = known.setdefault(row["text"], number)
            if self.stop_at is not None and number > self.stop_at // 2:
                if self.state != "stopped":
                    break
                found.append(self._row(number, None, "not asked: the run is stopped", Decimal(0)))
                continue
            word = row["text"].split()[0]
            label = word if word in self.names else None
            found.append(
                self._row(
                    number, label, None if label else "the engine failed", COST if first == number else Decimal(0)
                )
            )
        return [one for one in found if after < one["row"]][:limit] if not self.hold else []

    @property
    def names(self) -> list[str]:
        return [one["name"] for one in (self.spec or {}).get("labels", [])]

    def _row(self, number: int, label: str | None, error: str | None, cost: Decimal) -> dict[str, Any]:
        several = (self.spec or {}).get("multi_label")
        return {
            "row": number, "label": None if several else label, "labels": [label] if label else None,
            "confidence": 0.75 if label else None, "model": "tiny" if label else None, "cost_usd": f"{cost:f}",
            "escalated": False, "error": error, "duplicate_of": None,
        }  # fmt: skip

    def fault(self, when: str, path: str) -> Any:
        for (moment, end), waiting in self.faults.items():
            if moment == when and path.endswith(end) and waiting:
                return waiting.pop(0)
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # headers and body in one packet
    disable_nagle_algorithm = True
    runs: FakeRuns
    lock: threading.Lock

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        status, content = 200, b""
        with self.lock:
            self.runs.requests.append((method, url.path))
            if (fault := self.runs.fault("before", url.path)) is None:
                status, content = self._do(method, url.path, parse_qs(url.query), body)
                fault = self.runs.fault("after", url.path)
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        if fault is not None:
            status, content = fault, _error("try again")
        self.send_response(status)
        if status == 429:
            self.send_header("retry-after", "1")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _do(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, bytes]:
        runs, end = self.runs, path.rpartition("/")[2]
        if end == "results":
            found = runs.results(int(query["after"][0]), int(query["limit"][0]))
            return 200, b"".join(json.dumps(one).encode() + b"\n" for one in found)
        if end == "rows":
            first = int(query["first"][0])
            if first > len(runs.rows) + 1:
                return 409, _error(f"row {len(runs.rows) + 1} comes next")
            runs.rows += [json.loads(line) for line in body.splitlines()][len(runs.rows) + 1 - first :]
            return 200, json.dumps({"received": len(runs.rows)}).encode()
        if method == "POST":
            self._change(end, json.loads(body))
        return 200, json.dumps(runs.run()).encode()

    def _change(self, end: str, given: dict[str, Any]) -> None:
        runs = self.runs
        if end == "classifications":
            runs.made += runs.spec is None
            runs.spec = given
        elif end == "complete":
            runs.total = given["rows"]
        elif end == "resume":
            runs.resumed.append(given)
            runs.stop_at = None


@contextlib.contextmanager
def serving(runs: FakeRuns) -> Iterator[str]:
    """Its URL."""
    lock = threading.Lock()

    class Handler(_Handler):
        pass

    Handler.runs, Handler.lock = runs, lock
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()
