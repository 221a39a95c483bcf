"""No route gives a tenant anything of another's, or touches it: each is attacked with every id that another one has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from sqlmodel import SQLModel

import api.state
import tieryard.metrics
from api.app import create_app
from tests import factories as make
from tests.conftest import eventually
from tests.integration.test_api import serving
from tests.integration.test_batches_api import CHAT, House, line
from tests.integration.webhook_log import owe_deliveries
from tieryard.catalog import Catalog
from tieryard.ids import internal, public
from tieryard.job import State
from tieryard.metrics import Gauge, Metrics
from tieryard.settings import Settings
from tieryard.store import Store, keys, quotes
from tieryard.store.budgets import Wanted, set_budget
from tieryard.store.finish import finish
from tieryard.store.keys import Scope
from tieryard.store.shadows import Copy, save_copies
from workers import judging
from workers.classifying import Classifying
from workers.yard import Yard

A_NAME = "tests"
SECRET = "TOPSECRET"
"""In all that tenant A writes, and in all that it is answered. No request of B's has it, but for one header."""
A, B = {"authorization": "Bearer ty_test"}, {"authorization": "Bearer ty_b"}
B_MEASURES = {"authorization": "Bearer ty_b_measures"}
"""A key of B's with every scope but `operate`: it measures the fleet, too, and reads what was measured."""
B_OPERATES = {"authorization": "Bearer ty_b_operates"}
"""One with that, too: it sees and sets all tenants' money, and nothing else of theirs."""
NEVER = 999_999_999
"""A number that nothing has."""
KINDS = ("job", "batch", "file", "quote", "classification")
TABLES = {**{kind: kind for kind in KINDS}, "webhook": "webhook_endpoint", "delivery": "delivery"}
"""Where a tenant's own things are, by the kind of their ids."""

CATALOG = """
version: 1
tiers:
  interactive: {slo: {max_latency_ms: 5000}, window: 5m}
  batch: {slo: {max_latency_ms: 60000}, slo_from: claimed, window: 24h}
  bulk: {window: 24h}
categories: [extraction, classification, summarization, reasoning, code, chat]
benchmarks:
  judge: {deployment: judge, live_share: 1.0}
  sample: {tenants: [tests]}
deployments:
  short: &short
    model: test/instant
    revision: "1"
    size_class: small
    engine: {kind: instant}
    context_limit: 100000
    max_in_flight: 64
    tokenizer: utf8
    capabilities: [json_schema, tools, logprobs]
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
  vectors:
    <<: *short
    model: test/vectors
    serves: embeddings
  judge:
    <<: *short
    model: test/judge
    price: {input_usd_per_1m: 10, output_usd_per_1m: 40}
"""


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "tieryard.yaml"
    path.write_text(CATALOG)
    return path


@pytest.fixture
def engines(redis_url: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_engines(redis_url, catalog, monkeypatch)


def publish_engines(redis_url: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """One instant engine a deployment, with the gauge that an infer worker would publish; it stays live."""
    monkeypatch.setattr(tieryard.metrics, "_FRESH_S", 3600.0)
    client = redis.Redis.from_url(redis_url)
    for number, name in enumerate(catalog.deployments, start=9001):
        Metrics(client).publish_gauge(name, number, Gauge(capacity=64, in_flight=0, backlog=0))
    client.close()


# How each route is attacked

Body = Callable[[str], dict[str, Any]]
"""A request that is right, for the id of a file of one's own: what httpx takes."""


def _json(**fields: Any) -> Body:
    return lambda _: {"json": fields}


def _list(_: str) -> dict[str, Any]:
    return {"json": [{"prompt": "mine"}]}


def _batch(file: str) -> dict[str, Any]:
    return {"json": {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}}


def _golden(_: str) -> dict[str, Any]:
    return {"params": {"name": "mine"}, "content": b'{"id": "1", "category": "chat", "prompt": "?", "criteria": "x"}'}


def _two_rows(_: str) -> dict[str, Any]:
    return {"content": b'{"text": "mine"}\n{"text": "mine, too"}\n'}


def _upload(_: str) -> dict[str, Any]:
    return {"files": {"file": ("mine.jsonl", b'{"custom_id": "mine"}\n')}, "data": {"purpose": "batch"}}


@dataclass(frozen=True)
class Attack:
    """`scope` is what a key must have (ANY: nothing, but be a key); `kind` is what the path's id is of. `path` are
    the statuses that a foreign one may get there; `query` and `fields` are the query's and the body's members that take
    an id, with theirs; a dot leads into a member that the document does not describe. `params` are what a right query
    has. `others` are bodies for the members that `body` must not have."""

    scope: Scope | Literal["any"] | None
    kind: str | None = None
    path: set[int] = field(default_factory=lambda: {404})
    query: dict[str, set[int]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    body: Body | None = None
    fields: dict[str, set[int]] = field(default_factory=dict)
    others: dict[str, Body] = field(default_factory=dict)


ANY: Literal["any"] = "any"
_LABELS = [{"name": "mine"}, {"name": "other"}]
_PAGE = {"after": {200, 400}}  # a page of one's own, from that number on; what is no cursor is refused
_MESSAGES = [{"role": "user", "content": "mine"}]
_PAIR = _json(kind="pairwise", a=public("benchmark", NEVER), b=public("benchmark", NEVER))
ROUTES = {
    "POST /v1/chat/completions": Attack(Scope.INFER, body=_json(model="auto", messages=_MESSAGES, max_tokens=4)),
    "POST /v1/completions": Attack(Scope.INFER, body=_json(model="auto", prompt="mine")),
    "POST /v1/embeddings": Attack(Scope.INFER, body=_json(model="auto", input="mine")),
    "POST /v1/jobs": Attack(
        Scope.INFER, query={"quote_id": {404}}, body=_json(prompt="mine"), others={"quote_id": _list}
    ),
    "GET /v1/jobs": Attack(Scope.READ, query={"batch": {404}, **_PAGE}),
    "GET /v1/jobs/{job_id}": Attack(Scope.READ, kind="job"),
    "GET /v1/jobs/{job_id}/story": Attack(Scope.READ, kind="job"),
    "POST /v1/jobs/{job_id}/cancel": Attack(Scope.INFER, kind="job"),
    "POST /v1/jobs/{job_id}/outcome": Attack(Scope.INFER, kind="job", body=_json(score=1)),
    "POST /v1/files": Attack(Scope.BATCH, body=_upload),
    "GET /v1/files": Attack(Scope.READ, query=_PAGE),
    "GET /v1/files/{file_id}": Attack(Scope.READ, kind="file"),
    "DELETE /v1/files/{file_id}": Attack(Scope.BATCH, kind="file"),
    "GET /v1/files/{file_id}/content": Attack(Scope.READ, kind="file"),
    "POST /v1/batches": Attack(
        Scope.BATCH, body=_batch, fields={"input_file_id": {404}, f"metadata.{quotes.IN_METADATA}": {404}}
    ),
    "GET /v1/batches": Attack(Scope.READ, query=_PAGE),
    "GET /v1/batches/{batch_id}": Attack(Scope.READ, kind="batch"),
    "POST /v1/batches/{batch_id}/cancel": Attack(Scope.BATCH, kind="batch"),
    "GET /v1/batches/{batch_id}/output": Attack(Scope.READ, kind="batch"),
    "GET /v1/batches/{batch_id}/errors": Attack(Scope.READ, kind="batch"),
    "POST /v1/quotes": Attack(
        Scope.BATCH, body=_list, fields={"input_file_id": {404}}, others={"input_file_id": _json()}
    ),
    "GET /v1/quotes": Attack(Scope.READ, query=_PAGE),
    "GET /v1/quotes/{quote_id}": Attack(Scope.READ, kind="quote"),
    "POST /v1/classifications": Attack(Scope.BATCH, body=_json(labels=_LABELS, rows=[{"text": "mine"}])),
    "GET /v1/classifications": Attack(Scope.READ, query=_PAGE),
    "GET /v1/classifications/{classification_id}": Attack(Scope.READ, kind="classification"),
    "POST /v1/classifications/{classification_id}/rows": Attack(
        Scope.BATCH, kind="classification", params={"first": "1"}, body=_two_rows
    ),
    "POST /v1/classifications/{classification_id}/complete": Attack(
        Scope.BATCH, kind="classification", body=_json(rows=0)
    ),
    "GET /v1/classifications/{classification_id}/results": Attack(
        Scope.READ,
        kind="classification",
        query={"after": {400, 404}},  # a row's number
    ),
    "POST /v1/classifications/{classification_id}/cancel": Attack(Scope.BATCH, kind="classification"),
    "POST /v1/classifications/{classification_id}/resume": Attack(Scope.BATCH, kind="classification", body=_json()),
    "GET /v1/costs": Attack(Scope.READ, query={"tenant": {403}}, params={"group_by": "tenant,key,batch,deployment"}),
    "GET /v1/invoices/{month}": Attack(Scope.READ, kind="month", path={400}, query={"tenant": {403}}),
    "GET /v1/budgets": Attack(ANY, query={"tenant": {403}}),
    "PUT /v1/budgets": Attack(
        Scope.OPERATE,
        body=_json(tenant="b", period="month", limit_usd="1000"),
        fields={"tenant": {403}, "key": {403}},
    ),
    "DELETE /v1/budgets/{budget_id}": Attack(Scope.OPERATE, kind="budget", path={403}),
    "POST /v1/benchmarks": Attack(
        Scope.BENCHMARK,
        body=_json(kind="speed", deployment="short"),
        fields={"a": {404}, "b": {404}},
        others={"a": _PAIR, "b": _PAIR, "golden": _json(kind="quality")},
    ),
    "GET /v1/benchmarks": Attack(Scope.BENCHMARK, query=_PAGE),
    "GET /v1/benchmarks/{benchmark_id}": Attack(Scope.BENCHMARK, kind="benchmark"),
    "POST /v1/benchmarks/{benchmark_id}/cancel": Attack(Scope.BENCHMARK, kind="benchmark"),
    "POST /v1/golden_sets": Attack(Scope.BENCHMARK, body=_golden),
    "GET /v1/golden_sets": Attack(Scope.BENCHMARK),
    "GET /v1/golden_sets/{name}": Attack(Scope.BENCHMARK, kind="golden_set", path={200, 404}),  # B may call its own so
    "POST /v1/route": Attack(Scope.INFER, body=_json(prompt="mine")),
    "POST /v1/webhooks": Attack(Scope.WEBHOOKS, body=_json(url="https://hooks.example.com/mine")),
    "GET /v1/webhooks": Attack(Scope.READ),
    "GET /v1/webhooks/{webhook_id}": Attack(Scope.READ, kind="webhook"),
    "PATCH /v1/webhooks/{webhook_id}": Attack(Scope.WEBHOOKS, kind="webhook", body=_json(events=["job.expired"])),
    "DELETE /v1/webhooks/{webhook_id}": Attack(Scope.WEBHOOKS, kind="webhook"),
    "POST /v1/webhooks/{webhook_id}/rotate": Attack(Scope.WEBHOOKS, kind="webhook"),
    "POST /v1/webhooks/{webhook_id}/enable": Attack(Scope.WEBHOOKS, kind="webhook"),
    "POST /v1/webhooks/{webhook_id}/disable": Attack(Scope.WEBHOOKS, kind="webhook"),
    "POST /v1/webhooks/{webhook_id}/test": Attack(Scope.WEBHOOKS, kind="webhook"),
    "GET /v1/deliveries": Attack(Scope.READ, query={"webhook": {404}, **_PAGE}),
    "GET /v1/deliveries/{delivery_id}": Attack(Scope.READ, kind="delivery"),
    "POST /v1/redeliveries": Attack(
        Scope.WEBHOOKS,
        body=_json(since="30d", state="all"),
        fields={"webhook": {404}, "delivery": {404}, **_PAGE},
        others={"delivery": _json()},
    ),
    "GET /v1/models": Attack(ANY),
    "GET /v1/models/{model}": Attack(ANY, kind="model"),
    "GET /metrics": Attack(Scope.BENCHMARK),
    "GET /healthz": Attack(None),
    "GET /readyz": Attack(None),
}
V1 = {route: attack for route, attack in ROUTES.items() if attack.scope is not None}
MAKES_NOTHING = {
    "POST /v1/route", "POST /v1/jobs/{job_id}/outcome", "PATCH /v1/webhooks/{webhook_id}", "POST /v1/redeliveries",
    *(f"POST /v1/classifications/{{classification_id}}/{what}" for what in ("rows", "complete", "resume")),
}  # fmt: skip
"""That is, nothing that could be made twice."""
UNDOCUMENTED = {
    f"{method} {path}" for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect") for method in ("GET", "HEAD")
}
"""Routes that are not in the document: pages about it."""
NO_IDS_OF_OURS = {"custom_id", "tool_call_id"}
"""Body members whose names end as ids' do: the caller's own names."""

_TAKES_ID = re.compile(r"(.*_)?ids?|after|before|batch|a|b|key|tenant|webhook|delivery")
_ANY_ID = re.compile(r"(?<![a-z])(?:job|batch|file|batch_req|worker|tenant|benchmark|quote|classification)_(\d+)")

# What a tenant has, in every table: nothing of it may change.
_OF_JOBS = "job_id IN (SELECT id FROM job WHERE tenant_id = %(tenant)s)"
_OF_RUNS = "classification_id IN (SELECT id FROM classification WHERE tenant_id = %(tenant)s)"
_OF_BUDGETS = "budget_id IN (SELECT id FROM budget WHERE tenant_id = %(tenant)s)"
_OF_DELIVERIES = "delivery_id IN (SELECT id FROM delivery WHERE tenant_id = %(tenant)s)"
_TENANTS = (
    "api_key", "file", "batch", "job", "idempotency", "ledger", "outbox", "budget", "quote", "classification",
    "webhook_endpoint", "delivery_lane", "delivery",
)  # fmt: skip
OWNED = {
    "tenant": "id = %(tenant)s",
    **dict.fromkeys(_TENANTS, "tenant_id = %(tenant)s"),
    **dict.fromkeys(("budget_period", "reservation"), _OF_BUDGETS),
    **dict.fromkeys(("decision", "live_verdict", "outcome", "result", "timing"), _OF_JOBS),
    "delivery_attempt": _OF_DELIVERIES,
    **{f"classification_{what}": _OF_RUNS for what in ("text", "row", "part", "answer")},
    "shadow": f"of_{_OF_JOBS}",
    "line": "source_id IN (SELECT source_id FROM job WHERE tenant_id = %(tenant)s UNION SELECT source_id FROM batch "
    "WHERE tenant_id = %(tenant)s UNION SELECT id FROM file WHERE tenant_id = %(tenant)s)",
    "routing_snapshot": f"id IN (SELECT snapshot_id FROM decision WHERE {_OF_JOBS})",
}
_MEASURED = {"benchmark", "canary", "golden_item", "golden_score", "golden_set", "human_label", "preference", "profile"}
"""What the fleet finds of itself. Its questions are jobs of a tenant of its own; see `test_leaks_of_benchmarks.py`."""
NOBODYS = {"catalog_version", "id_counter", "price", "promotion", "rent_window", "step_back", "worker"} | _MEASURED


@dataclass
class Fleet:
    """Two tenants, of which A has one of everything, and a count of what B has tried. `secrets` are the numbers of A's
    ids; those `planted` are by now in jobs of B's own, which wrote them there. `names` are A's own, and its ids whose
    numbers others may have, too."""

    house: House
    tenant: int
    b_file: str = ""
    tried: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    secrets: frozenset[int] = frozenset()
    planted: set[int] = field(default_factory=set)
    names: frozenset[str] = frozenset()

    @property
    def client(self) -> TestClient:
        return self.house.client

    @property
    def store(self) -> Store:
        return self.house.store

    def fingerprint(self) -> dict[str, tuple[int, str]]:
        """Rows and a digest of what A has in each table."""
        found = {}
        for table, where in OWNED.items():
            ordered = ", ".join(column.name for column in SQLModel.metadata.tables[table].primary_key)
            rows = self.store.fetch(
                f"SELECT count(*), md5(string_agg(row_to_json(t)::text, ' ' ORDER BY {ordered})) "
                f"FROM {table} t WHERE {where}",
                {"tenant": self.tenant},
            )
            found[table] = (rows[0][0], rows[0][1])
        return found

    def ids(self, kind: str) -> list[int]:
        statement = f"SELECT id FROM {TABLES.get(kind, kind)} WHERE tenant_id = %(tenant)s ORDER BY id"
        return [row[0] for row in self.store.fetch(statement, {"tenant": self.tenant})]

    def attack(self, route: str, allowed: set[int] | None, *, sent: str = "", part: str, **kwargs: Any) -> None:
        """One request of B's, that sends one of A's ids; of what is measured, with a key that may, and one that may
        not; of what is for operators, who may touch all, with keys that may not."""
        if ROUTES[route].scope in (Scope.BENCHMARK, Scope.OPERATE):
            self._attack(route, {403}, who=B, sent=sent, part=part, **kwargs)
            may = ROUTES[route].scope is Scope.BENCHMARK
            self._attack(route, allowed if may else {403}, who=B_MEASURES, sent=sent, part=part, **kwargs)
        else:
            self._attack(route, allowed, who=B, sent=sent, part=part, **kwargs)

    def _attack(
        self, route: str, allowed: set[int] | None, *, who: dict[str, str], sent: str, part: str, **kwargs: Any
    ) -> None:
        answer = self.call(route, who, sent, part, **kwargs)
        self.tried[route] += 1
        said = f"{answer.headers}\n{answer.text}"
        if answer.status_code < 400 and (part.startswith("body.") or not route.startswith("GET")):
            self.planted |= {int(number) for number in re.findall(r"\d+", sent)}
        seen = {int(number) for number in _ANY_ID.findall(said)} & self.secrets - self.planted
        named = {name for name in self.names - {sent} if re.search(rf"(?<!\w){name}(?!\w)", said)}
        why = [
            *([SECRET] if SECRET in said else []),
            *(f"the number {number}" for number in seen - {int(n) for n in re.findall(r"\d+", sent)}),
            *(f"the name {name}" for name in named),
            *([f"status {answer.status_code}"] if allowed is not None and answer.status_code not in allowed else []),
            *([f"status {answer.status_code}"] if answer.status_code >= 500 else []),
        ]
        if why:
            self.leaks.append(f"{route} with {part}={sent}: {', '.join(why)}: {said[:400]}")

    def call(self, route: str, who: dict[str, str], sent: str = "", part: str = "path", **kwargs: Any) -> Any:
        """A request with `sent` in the path, or as one member of the query or of an otherwise right body."""
        method, _, path = route.partition(" ")
        where, _, name = part.partition(".")
        if (body := ROUTES[route].others.get(name, ROUTES[route].body)) is not None:
            kwargs = {**body(self.b_file), **kwargs}
        kwargs["params"] = {**ROUTES[route].params, **kwargs.get("params", {})}
        if where == "query":
            kwargs["params"][name] = sent
        if where == "body":
            content = "json" if "json" in kwargs else "data"
            first, _, inner = name.partition(".")
            member = {first: {inner: sent} if inner else sent}
            right = kwargs[content]
            kwargs[content] = [{**one, **member} for one in right] if isinstance(right, list) else {**right, **member}
        right_id = f"{datetime.now(UTC):%Y-%m}" if ROUTES[route].kind == "month" else public("job", NEVER)
        path = re.sub(r"{\w+}", sent if where == "path" else right_id, path)
        return self.client.request(method, path, headers={**who, **kwargs.pop("headers", {})}, **kwargs)

    def until_final(self) -> None:
        """Endings of calls are written a moment after their answers."""
        waiting = "SELECT id FROM job WHERE attended AND finished_at IS NULL"
        eventually(lambda: not self.store.fetch(waiting), what="the calls' endings")


@pytest.fixture
def fleet(settings: Settings, store: Store, tenant: int, engines: None) -> Iterator[Fleet]:
    with serving(settings) as client, furnished(settings, store, tenant, client) as found:
        yield found


@contextmanager
def furnished(settings: Settings, store: Store, tenant: int, client: Any) -> Iterator[Fleet]:
    keys.add_key(store, "ty_b", tenant="b", name="b")
    keys.add_key(store, "ty_b_measures", tenant="b", name="measures", scopes=set(Scope) - {Scope.OPERATE})
    keys.add_key(store, "ty_b_operates", tenant="b", name="operates", scopes=Scope)
    for kind in ("expand", "classify", "callback", "beat"):  # else /readyz is right to say 503
        make.worker(store, kind=kind, lease_s=3600)
    yard = Yard("expand", settings, consume=[])
    found = Fleet(House(client, store, yard, tenant), tenant)
    furnish(found)
    yield found
    yard.app.close()
    yard.store.close()
    yard.redis.close()


def furnish(fleet: Fleet) -> None:
    """Gives A one of everything, and B a little of its own."""
    house, client, store = fleet.house, fleet.client, fleet.store
    hook = f"https://hooks.example.com/{SECRET}"
    one = {"prompt": SECRET, "custom_id": SECRET, "metadata": {SECRET: SECRET}}

    def made(path: str, key: str, **kwargs: Any) -> str:
        answer = client.post(path, headers={"idempotency-key": f"{SECRET} {key}"}, **kwargs)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["id"])

    def file_batch(key: str, *lines: dict[str, Any]) -> dict[str, Any]:
        content = b"".join(httpx.Request("POST", "http://x", json=x).content + b"\n" for x in lines)
        sent = {"files": {"file": (f"{SECRET}.jsonl", content)}, "data": {"purpose": "batch"}}
        file = made("/v1/files", f"{key} file", **sent)
        made("/v1/quotes", f"{key} quote", json={"input_file_id": file})
        wanted = {**_batch(file)["json"], "metadata": {SECRET: SECRET}, "callback_url": hook}
        return {"id": made("/v1/batches", key, json=wanted)}

    # Budgets of all and of one key, from which all that follows is reserved.
    for key, of, url in (
        ("ty_test", None, hook),
        ("ty_test", "key", hook),
        ("ty_b", None, None),
        ("ty_b", "key", None),
    ):
        holder = keys.holder_of(store, key)
        whose = public("key", holder.key_id) if of is not None else None
        set_budget(store, Wanted(holder.tenant, Decimal(1000), "day", key=whose, alert_url=url))

    # Single jobs: one that waits, one that runs, one that succeeded and one that failed.
    posted = [made("/v1/jobs", f"job {i}", json={**one, "callback_url": hook}) for i in range(4)]
    begun = [internal("job", job) for job in posted[1:]]
    make.route(store, begun, "short", reason=SECRET)
    _, good, bad = sorted(make.claim(store, begun, make.worker(store), "short"), key=lambda job: job.id)
    failed = {"state": State.FAILED, "error_kind": "bad_request", "error": SECRET, "output": None}
    with store.transaction() as connection:
        finish(connection, [make.ending(good, output=SECRET), make.ending(bad, **failed)])
        shadow = Copy(store.next_id(), good.id, "short", "chat", make.body(SECRET, model="short"))
        assert save_copies(connection, [shadow], tier="bulk", window_s=3600, patience_s=3600) == {shadow.id}
    assert client.post(f"/v1/jobs/{public('job', good.id)}/outcome", json={"score": 1}).status_code == 200

    # What a judge is asked about A's answers are jobs of the fleet's own, and hold them.
    judging.look(house.yard)

    # Batches: a list and a file that run, a file with output and errors, a list that nobody has looked at yet.
    made("/v1/jobs", "list", json=[one, one], params={"callback_url": hook})
    file_batch("running", line(SECRET), line(f"{SECRET} 2"))
    done = file_batch("done", line(SECRET, user=SECRET), {**line(f"{SECRET} 2"), "method": SECRET})
    house.expand()
    asked = "SELECT question_id, source_id FROM live_verdict JOIN job ON job.id = question_id WHERE job_id = %(id)s"
    [questions] = store.fetch(asked, {"id": good.id})
    house.answer(done, output=SECRET)
    finished = house.close(done)
    assert None not in (finished["output_file_id"], finished["error_file_id"])
    made("/v1/jobs", "new list", json=[one], params={"callback_url": hook})
    made("/v1/files", "alone", **{**_upload(""), "files": {"file": (f"{SECRET}.jsonl", SECRET.encode())}})

    # Calls, whose answers an instant engine gives: they become secrets afterwards.
    for route in ("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings"):
        answer = fleet.call(route, A, headers={"idempotency-key": f"{SECRET} {route}"}, part="body.user", sent=SECRET)
        assert answer.status_code == 200, answer.text
    fleet.until_final()
    secret = f"UPDATE result SET output = '{SECRET}' FROM job WHERE job.id = job_id AND attended RETURNING job_id"
    assert len(store.fetch(secret)) == 3

    # Quotes: of batches, one of which is over, and of a list that nobody has run.
    assert client.post("/v1/quotes", json=[one, {**one, "model": SECRET}]).status_code == 201
    with store.transaction() as connection:
        assert len(quotes.settle(connection)) == 1

    # Webhooks: one that works, with what was delivered to it, and one that is disabled.
    events = {"events": ["job.completed", "batch.completed"], "description": SECRET}
    works, off = (made("/v1/webhooks", f"webhook {i}", json={"url": f"{hook}/{i}", **events}) for i in range(2))
    owe = owe_deliveries(store)
    owe(works, n=2, outcome="delivered", attempts=[(204, None, SECRET)])
    owe(None, url=hook, outcome="failed", attempts=[(500, SECRET, SECRET)])
    assert client.post(f"/v1/webhooks/{off}/disable").json()["state"] == "disabled"
    assert client.post(f"/v1/webhooks/{works}/test").json()["state"] == "pending"

    # Classification runs: one that is under way, two that wait for rows, and one that has stopped.
    labels = {"labels": [{"name": SECRET}, {"name": f"{SECRET} 2"}], "metadata": {SECRET: SECRET}, "model": "short"}
    rows = [{"text": SECRET}, {"text": f"{SECRET} 2"}]
    running = made("/v1/classifications", "run", json={**labels, "rows": rows})
    made("/v1/classifications", "empty run", json=labels)
    begun_run = made("/v1/classifications", "run of one row", json=labels)
    assert client.post(f"/v1/classifications/{begun_run}/rows?first=1", json=rows[0]).json() == {"received": 1}
    classify_a_row(house, running)
    made("/v1/classifications", "stopped run", json={**labels, "rows": rows})
    store.fetch(
        f"UPDATE classification SET state = 'stopped', why = '{SECRET}', finished_at = now() "
        "WHERE id = (SELECT max(id) FROM classification) RETURNING id"
    )

    # What A pays for: its costs and its invoice name this.
    paid = f"UPDATE ledger SET deployment = '{SECRET}' WHERE tenant_id = %(tenant)s RETURNING job_id"
    assert store.fetch(paid, {"tenant": fleet.tenant})

    columns = [*(("id", kind) for kind in KINDS), *((f"{at}_id", "batch") for at in ("source", "first_job"))]
    found = "SELECT {} FROM {} WHERE tenant_id = %(tenant)s"
    rows = [row for at in columns for row in store.fetch(found.format(*at), {"tenant": fleet.tenant})]
    fleet.secrets = frozenset([shadow.id, *questions, *(number for [number] in rows)])
    tables = (("key", "api_key"), ("budget", "budget"), ("webhook", "webhook_endpoint"), ("delivery", "delivery"))
    numbers = {kind: fleet.ids(table) for kind, table in tables}
    fleet.names = frozenset([A_NAME, *(public(kind, number) for kind in numbers for number in numbers[kind])])
    fleet.b_file = fleet.call("POST /v1/files", B).json()["id"]
    for path, body in (("jobs", {"prompt": "mine"}), ("jobs", [{"prompt": "mine"}]), ("quotes", [{"prompt": "mine"}])):
        assert client.post(f"/v1/{path}", json=body, headers=B).status_code == 201
    assert all(rows for rows, _ in fleet.fingerprint().values()), "A must have something in every table"


def classify_a_row(house: House, run: str) -> None:
    """Its worker asks its texts, and reads what the first is answered."""
    worker = Classifying(house.yard, house.yard.admission())
    worker.tick()
    house.expand()
    [[batch_id]] = house.store.fetch(
        "SELECT batch_id FROM classification_part WHERE classification_id = %(id)s",
        {"id": internal("classification", run)},
    )
    make.release(house.store, batch_id, 1)
    make.route(house.store, [batch_id + 1], "short")
    claimed = make.claim(house.store, [batch_id + 1], make.worker(house.store), "short")
    with house.store.transaction() as connection:
        finish(connection, [make.ending(job, output=f'{{"label":"{SECRET}"}}') for job in claimed])
    worker.tick()


# Completeness: what is not attacked fails here


@pytest.fixture
def document(settings: Settings) -> dict[str, Any]:
    return create_app(settings).openapi()


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each operation by its method and path."""
    return {f"{m.upper()} {path}": o for path, methods in document["paths"].items() for m, o in methods.items()}


def members(document: dict[str, Any], schema: Any, *, deep: bool) -> set[str]:
    """The names of what a body may have: of its own members, or of all below it too."""
    found: set[str] = set()
    waiting, seen = [schema], set()
    while waiting:
        at = waiting.pop()
        if isinstance(at, list):
            waiting += at
        elif isinstance(at, dict):
            if (ref := at.get("$ref")) is not None and ref not in seen:
                seen.add(ref)
                waiting.append(document["components"]["schemas"][ref.rpartition("/")[2]])
            found |= set(at.get("properties", {}))
            below = at.values() if deep else [at[k] for k in ("anyOf", "oneOf", "allOf", "items") if k in at]
            waiting += [at["properties"]] if deep and "properties" in at else []
            waiting += below
    return found


def served(router: Any) -> Iterator[str]:
    """Method and path of what is routed, in the document or not."""
    for route in router.routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from served(included)
        else:
            path = re.sub(r":\w+}", "}", route.path)
            yield from (f"{method} {path}" for method in route.methods)


def bodies(operation: dict[str, Any]) -> list[Any]:
    return [content["schema"] for content in operation.get("requestBody", {}).get("content", {}).values()]


def named(operation: dict[str, Any], where: str) -> list[str]:
    return [p["name"] for p in operation.get("parameters", []) if p["in"] == where]


def test_every_route_is_attacked(settings: Settings, document: dict[str, Any]) -> None:
    assert set(operations(document)) == set(ROUTES), "say in ROUTES how a new route is attacked"
    assert set(served(create_app(settings))) - set(ROUTES) == UNDOCUMENTED, "a route that is not in the document"


def test_every_id_that_a_route_takes_is_attacked(document: dict[str, Any]) -> None:
    for route, operation in operations(document).items():
        attack = ROUTES[route]
        assert len(named(operation, "path")) == (attack.kind is not None), route
        assert set(filter(_TAKES_ID.fullmatch, named(operation, "query"))) == set(attack.query), route
        assert bool(bodies(operation)) == (attack.body is not None), route
        taking = set(filter(_TAKES_ID.fullmatch, members(document, bodies(operation), deep=True))) - NO_IDS_OF_OURS
        assert taking == {name for name in attack.fields if "." not in name}, route
        assert {name.lower() for name in named(operation, "header")} <= {"idempotency-key"}, route
        assert not named(operation, "cookie"), route


def test_every_table_is_watched() -> None:
    assert set(SQLModel.metadata.tables) == set(OWNED) | NOBODYS


# The attack


def test_no_route_leaks_or_touches_what_is_another_tenants(
    fleet: Fleet, document: dict[str, Any], record_property: Callable[[str, object], None], capsys: Any
) -> None:
    every = [public(kind, number) for number in sorted(fleet.secrets) for kind in (*KINDS, "benchmark")]
    every += [str(number) for number in sorted(fleet.secrets)] + sorted(fleet.names)
    some = [public(kind, fleet.ids(kind)[-1]) for kind in KINDS]
    before = fleet.fingerprint()
    for route, operation in operations(document).items():
        attack = ROUTES[route]
        if attack.kind is not None:
            for sent in every:
                fleet.attack(route, attack.path, sent=sent, part="path")
        if attack.kind in (None, "month"):
            fleet.attack(route, None, part="nothing")
        for name in named(operation, "query"):
            for sent in every if name in attack.query else some:
                fleet.attack(route, attack.query.get(name), sent=sent, part=f"query.{name}")
        for name in members(document, bodies(operation), deep=False) | set(attack.fields):
            for sent in every if name in attack.fields else some:
                fleet.attack(route, attack.fields.get(name), sent=sent, part=f"body.{name}")
        fleet.until_final()
        if (after := fleet.fingerprint()) != before:
            fleet.leaks.append(f"{route} changed {[t for t in before if before[t] != after[t]]}")
            before = after
    summary = f"leaks: {len(fleet.leaks)} of {fleet.tried.total()} requests"
    record_property("leaks", summary)
    with capsys.disabled():
        print(f"\n{summary}")
    assert not fleet.leaks, "\n".join(fleet.leaks[:20])
    assert all(fleet.tried[route] for route in ROUTES)


def test_what_is_anothers_and_what_is_not_there_look_alike(fleet: Fleet) -> None:
    who_may = {Scope.BENCHMARK: B_MEASURES, Scope.OPERATE: B_OPERATES}

    def shown(route: str, part: str, sent: str) -> tuple[int, str, dict[str, str]]:
        who = next((key for scope, key in who_may.items() if scope == ROUTES[route].scope), B)
        answer = fleet.call(route, who, sent, part)
        headers = {k: v for k, v in answer.headers.items() if k not in ("content-length", "x-request-id")}
        return answer.status_code, answer.text.replace(sent, "ID"), headers

    tables = TABLES | {"benchmark": "job", "key": "api_key"}
    theirs = {kind: [public(kind, number) for number in fleet.ids(table)] for kind, table in tables.items()}
    theirs["tenant"] = [A_NAME]
    of_queries = {"quote_id": "quote", "batch": "batch", "tenant": "tenant", "webhook": "webhook"}
    of_bodies = {"input_file_id": "file", "a": "benchmark", f"metadata.{quotes.IN_METADATA}": "quote", "key": "key"}
    of_bodies |= {"webhook": "webhook", "delivery": "delivery"}
    compared = Counter[str]()
    for route, attack in ROUTES.items():
        parts = [("path", attack.kind)] if attack.kind in theirs else []
        parts += [
            (f"query.{name}", of_queries[name]) for name, allowed in attack.query.items() if allowed <= {403, 404}
        ]
        parts += [(f"body.{name}", of_bodies[name]) for name in attack.fields if name in of_bodies]
        for part, kind in parts:
            assert kind is not None
            never = shown(route, part, public(kind, NEVER))
            assert never[0] == (403 if kind == "tenant" else 404)
            for sent in theirs[kind]:
                assert shown(route, part, sent) == never, (route, part, kind)
                compared[kind] += 1
    assert set(compared) == set(theirs)
    assert compared.total() > 50


def test_the_owner_does_see_and_change_all_of_that(fleet: Fleet) -> None:
    """Else the attack would prove nothing."""
    changing = [route for route in ROUTES if not route.startswith("GET")]
    order = sorted(ROUTES, key=lambda r: (r in changing, r.startswith("DELETE"), r.endswith("/cancel"), r))
    for route in order:
        kind = ROUTES[route].kind
        if kind not in TABLES:
            own = ROUTES[route].scope is Scope.READ or route == "GET /v1/budgets"
            assert not own or SECRET in fleet.call(route, A, part="nothing").text, route
            continue
        before = fleet.fingerprint()
        answers = [fleet.call(route, A, public(kind, number)) for number in fleet.ids(kind)]
        assert {200, 204} & {a.status_code for a in answers}, route
        # These answer with nothing of theirs.
        told = not route.startswith("DELETE") and not route.endswith(("/outcome", "/rows"))
        assert any(SECRET in a.text for a in answers) or not told, route
        assert (fleet.fingerprint() != before) == (route in changing), route


# Idempotency keys


@pytest.mark.parametrize("same", [True, False], ids=["the same request", "another request"])
def test_anothers_idempotency_key_is_a_key_like_any_other(fleet: Fleet, same: bool) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        (r, {})
        for r, attack in ROUTES.items()
        if attack.body is not None and r not in MAKES_NOTHING and attack.scope not in (Scope.BENCHMARK, Scope.OPERATE)
    ]
    asked += [("POST /v1/jobs", {"json": [{"prompt": "mine"}]})]
    asked += [("POST /v1/chat/completions", {"json": {"model": "auto", "messages": _MESSAGES, "stream": True}})]
    a_file, b_file = fleet.call("POST /v1/files", A).json()["id"], fleet.b_file
    different: dict[str, Any] = {} if same else {"params": {"tier": "bulk"}}
    for number, (route, request) in enumerate(asked):
        once = {"headers": {"idempotency-key": f"{SECRET} shared {number}"}, **request}
        fleet.b_file = a_file
        theirs = fleet.call(route, A, part="nothing", **once)
        assert theirs.status_code in (200, 201), theirs.text
        fleet.until_final()
        fleet.store.fetch(f"UPDATE result SET output = '{SECRET}' RETURNING job_id")
        before = fleet.fingerprint()

        fleet.b_file = b_file
        mine = fleet.call(route, B, part="nothing", **once, **different)
        assert mine.status_code == theirs.status_code, (route, mine.text)
        assert SECRET not in f"{mine.headers}{mine.text}", route
        fleet.until_final()
        assert fleet.fingerprint() == before, route
        assert _made(theirs) != _made(mine), route
        kind, _, number_of_mine = _made(mine).rpartition("_")
        [[owner]] = fleet.store.fetch(
            f"SELECT name FROM tenant WHERE id = (SELECT tenant_id FROM {TABLES[kind]} WHERE id = %(id)s)",
            {"id": int(number_of_mine)},
        )
        assert owner == "b", route

        fleet.b_file = a_file
        again = fleet.call(route, A, part="nothing", **once)
        assert _made(again) == _made(theirs), route
        assert fleet.fingerprint() == before, route


def _made(answer: httpx.Response) -> str:
    """What a POST has made: a call says it in a header."""
    return str(answer.headers.get("x-tieryard-job") or answer.json()["id"])


# Keys


def test_no_route_answers_without_a_key_that_may(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setattr(api.state, "_KEY_CACHE_S", 0.0)
    keys.add_key(fleet.store, "ty_revoked", tenant="tests", name="revoked")
    revoked = {"authorization": "Bearer ty_revoked"}
    assert fleet.call("GET /v1/jobs", revoked).status_code == 200
    keys.revoke(fleet.store, "ty_revoked")
    for scope in Scope:
        keys.add_key(fleet.store, f"ty_only_{scope}", tenant="b", name="one", scopes=[scope])
        keys.add_key(fleet.store, f"ty_not_{scope}", tenant="tests", name="two", scopes=set(Scope) - {scope})
    for name, tenant in (("ty_only_any", "b"), ("ty_not_any", "tests")):
        keys.add_key(fleet.store, name, tenant=tenant, name="none", scopes=[])
    strangers: list[tuple[dict[str, str], int]] = [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer ty_tes"}, 401),
        ({"authorization": "Basic dHlfdGVzdDp0eV90ZXN0"}, 401),
        ({"authorization": "ty_test"}, 401),
        (revoked, 401),
    ]
    before = fleet.fingerprint()
    refused = 0
    for route, attack in V1.items():
        sent = public(attack.kind, fleet.ids(attack.kind)[0]) if attack.kind in (*TABLES, "budget") else "auto"
        without = {"authorization": f"Bearer ty_not_{attack.scope}"}
        for who, status in [*strangers, (without, 403)] if attack.scope != ANY else strangers:
            answer = fleet.call(route, who, sent)
            assert answer.status_code == status, (route, who, answer.text)
            assert SECRET not in f"{answer.headers}{answer.text}"
            assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
            refused += 1
        del fleet.client.headers["authorization"]
        assert fleet.call(route, {}, sent).status_code == 401, route
        fleet.client.headers.update(A)
        refused += 1
    assert fleet.fingerprint() == before
    record_property("refused", refused)
    for route, attack in V1.items():  # and the scope that is asked for is enough
        answer = fleet.call(route, {"authorization": f"Bearer ty_only_{attack.scope}"}, public("job", NEVER))
        assert answer.status_code not in (401, 403), (route, answer.text)
