"""The whole OpenAPI document against a real server: whatever is sent, the answer is one that the document promises.

Schemathesis makes the requests: the document's examples, its boundaries one by one, and data that fits it or does not,
the same ones in every run. Of its stock checks those below hold. These do not, or say nothing here:

- `positive_data_acceptance`: a schema cannot say that a model or tier is the catalog's, that an id is one's own, or
  that two members exclude each other.
- `negative_data_rejection`: Python takes `0` for `false` where that is the only value allowed (`echo`).
- `ignored_auth`: takes our own valid key for a made-up one as soon as an operation has another header. Who may do
  what is `test_leaks.py`.
- `missing_required_header`: no operation requires one.
- `use_after_free`, `ensure_resource_availability`, `object_level_authorization`: for sequences of requests; who sees
  what is `test_leaks.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import schemathesis
from pydantic import SecretStr
from schemathesis.checks import (
    allow_header_conformance,
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from schemathesis.config import SchemathesisConfig

from api.app import create_app
from tests.gateway import gateway
from tests.integration.test_batches_api import BAD, line
from tests.integration.test_leaks import CATALOG, TABLES, A, Fleet, furnished, publish_engines
from tests.integration.trials import quality_run
from tieryard.catalog import load_catalog
from tieryard.embedded import EmbeddedPostgres, EmbeddedValkey
from tieryard.ids import public
from tieryard.settings import Settings
from tieryard.store import Store, golden, keys
from tieryard.store.keys import Scope

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    allow_header_conformance,
]
_EXAMPLES = 30
_PLACES = 12
_OF_STORE = (*TABLES, "benchmark", "budget", "key")

# Names that random text would never hit. Ids stand in until there is a store that has some.
_KNOWN = {
    **{kind: [f"known_{kind}_{place}" for place in range(_PLACES)] for kind in _OF_STORE},
    "model": ["auto", "class:small", "short", "vectors"],
    "tier": ["interactive", "batch", "bulk", "\x00"],
    "deployment": ["short", "vectors", "judge", "\x00"],
    "golden": ["sky", "sea", "\x00"],
    "category": ["chat", "code"],
    "window": ["1h", "90s"],
    "month": ["2026-01", "2026-13"],
    "tenant": ["tests", "b", "tieryard-rent", "\x00"],
    "since": ["24h", "2026-11-22T08:00:00Z", "7d", "soon"],
    "event": ["job.completed", "webhook.test", "\x00"],
    "group_by": ["day,deployment", "tenant,key,batch", "kind", "tier"],
}
_WHERE = {
    "path.job_id": "job",
    "path.batch_id": "batch",
    "path.file_id": "file",
    "path.benchmark_id": "benchmark",
    "path.quote_id": "quote",
    "path.classification_id": "classification",
    "path.budget_id": "budget",
    "path.month": "month",
    "path.webhook_id": "webhook",
    "path.delivery_id": "delivery",
    "path.name": "golden",
    "path.model": "model",
    "query.batch": "batch",
    "query.tier": "tier",
    "query.webhook": "webhook",
    "query.event": "event",
    "body.webhook": "webhook",
    "body.delivery": "delivery",
    "body.event": "event",
    "body.since": "since",
    "query.deployment": "deployment",
    "query.name": "golden",
    "query.quote_id": "quote",
    "query.tenant": "tenant",
    "query.group_by": "group_by",
    "body.tenant": "tenant",
    "body.key": "key",
    "body.a": "benchmark",
    "body.b": "benchmark",
    "body.golden": "golden",
    "body.deployment": "deployment",
    "body.model": "model",
    "body.tier": "tier",
    "body.category": "category",
    "body.input_file_id": "file",
    "body.completion_window": "window",
}
# Lines of a batch file: any text may stand there, and is somebody's failed job afterwards.
_BROKEN = [
    *(bad for bad, *_ in BAD.values()),
    *("null", "5", '"url"', '{"url": "body"}', '{"custom_id": "\\ud800"}', '{"custom_id": "x", "y": NaN}'),
    *({**line("x"), "custom_id": custom_id} for custom_id in (5, [], "x" * 600)),
    *({**line("y"), "body": body} for body in (5, [1], None, {"metadata": "z"}, {"metadata": {"a": 1}})),
]
CONFIG = SchemathesisConfig.from_dict(
    {
        "seed": 1,
        "headers": {"Authorization": A["authorization"]},
        "dictionaries": {name: {"values": values} for name, values in _KNOWN.items()},
        "parameters": {where: {"dictionary": name, "probability": 0.8} for where, name in _WHERE.items()},
        "generation": {"deterministic": True, "max-examples": _EXAMPLES, "database": "none"},
    }
)
NOWHERE = Settings(database_url=SecretStr("postgresql://"), redis_url=SecretStr("redis://"), catalog=Path())
"""Enough to make the document: nothing is opened."""

schemathesis.serializer.alias("application/x-ndjson", "text/plain")
schema = schemathesis.openapi.from_dict(create_app(NOWHERE).openapi(), config=CONFIG)


@pytest.fixture(scope="module")
def fleet(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """One server for all operations, with instant engines and a tenant that has one of everything."""
    path = tmp_path_factory.mktemp("catalog") / "tieryard.yaml"
    path.write_text(CATALOG)
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    with psycopg.connect(postgres.url, autocommit=True) as connection, pytest.MonkeyPatch.context() as patch:
        connection.execute("CREATE DATABASE schemathesis TEMPLATE template_fleet")
        settings = Settings(
            database_url=SecretStr(postgres.url_of("schemathesis")),
            redis_url=SecretStr(valkey.url),
            catalog=path,
            cache_dir=cache_dir,
            webhook_secret=SecretStr("whsec_" + "c2VjcmV0" * 4),
            log_level="warning",
        )
        publish_engines(valkey.url, load_catalog(path), patch)
        store = Store(settings.database_url.get_secret_value())
        keys.add_key(store, "ty_test", tenant="tests", name="test", scopes=Scope)
        tenant = keys.holder_of(store, "ty_test").tenant_id
        with gateway(settings, None, store) as gate, furnished(settings, store, tenant, gate.client) as found:  # type: ignore[arg-type]
            found.house.create(*_BROKEN)
            found.house.expand()
            _measure(found)
            _classify(found)
            yield found
        store.close()
        connection.execute("DROP DATABASE schemathesis WITH (FORCE)")


def _measure(fleet: Fleet) -> None:
    """Golden sets, quality runs that have ended and can be compared, and runs of all other kinds that wait."""
    item = {"id": "1", "category": "chat", "prompt": "What colour has the sky?", "criteria": "Says blue."}
    for name in ("sky", "sea"):
        answer = fleet.client.post("/v1/golden_sets", params={"name": name}, content=json.dumps(item))
        assert answer.status_code == 200, answer.text
    asked, catalog = golden.find_set(fleet.store, "sky"), fleet.house.yard.catalog
    ended = [
        quality_run(fleet.store, catalog, name, asked, {"chat": [0.5, None]}, judge="judge")
        for name in ("short", "judge", "short")
    ]
    pair = {"kind": "pairwise", "a": ended[0], "b": ended[1]}
    for ask in ({"kind": "speed"}, {"kind": "capacity"}, {"kind": "quality", "golden": "sea"}, pair):
        answer = fleet.client.post("/v1/benchmarks", json=ask)
        assert answer.status_code == 200, answer.text


def _classify(fleet: Fleet) -> None:
    """Runs that wait for rows, and runs that have stopped."""
    asked = {"labels": [{"name": "a"}, {"name": "b"}], "model": "short"}
    for _ in range(_PLACES):
        for rows in ({}, {"rows": [{"text": "one"}, {"text": "two"}]}):
            assert fleet.client.post("/v1/classifications", json={**asked, **rows}).status_code == 201
    fleet.store.fetch(
        "UPDATE classification SET state = 'stopped', finished_at = now() WHERE state = 'running' AND asked = 0 "
        "RETURNING id"
    )


@pytest.fixture(scope="module")
def ids(fleet: Fleet) -> dict[str, str]:
    """The id that each stand-in is for: some of all ages; every third job has an answer, which can be scored."""
    found = {kind: fleet.ids(kind) for kind in (*TABLES, "budget")}
    found["key"] = fleet.ids("api_key")
    found["benchmark"] = [row[0] for row in fleet.store.fetch("SELECT id FROM benchmark ORDER BY id")]
    made = {
        name: public(kind, found[kind][place * len(found[kind]) // _PLACES])
        for kind in found
        for place, name in enumerate(_KNOWN[kind])
    }
    answered = "SELECT id FROM job WHERE tenant_id = %(tenant)s AND state = 'succeeded' ORDER BY id"
    good = [row[0] for row in fleet.store.fetch(answered, {"tenant": fleet.tenant})]
    return made | {name: public("job", good[n % len(good)]) for n, name in enumerate(_KNOWN["job"][::3])}


@pytest.fixture(scope="module")
def answers() -> Counter[str]:
    """How often each operation answered with which status."""
    return Counter()


@schema.parametrize()
def test_whatever_is_sent(case: Any, fleet: Fleet, ids: dict[str, str], answers: Counter[str]) -> None:
    for part in (case.path_parameters, case.query, case.body):
        if isinstance(part, dict):
            part.update({name: ids[v] for name, v in part.items() if isinstance(v, str) and v in ids})
    case.headers.pop("Idempotency-Key", None)  # of a few made-up ones, nearly all would be used already
    answer = case.call(base_url=str(fleet.client.base_url))
    answers[f"{case.operation.label}: {answer.status_code}"] += 1
    if "text/event-stream" in str(answer.headers.get("content-type")):
        # The document says what a stream is as a whole; the stock check wants that of each event.
        case.validate_response(answer, checks=[check for check in CHECKS if check is not response_schema_conformance])
        assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-300:]
    else:
        case.validate_response(answer, checks=CHECKS)


def test_every_operation_was_reached(answers: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Else the requests above would say little: each operation has succeeded, and each has refused something."""
    with capsys.disabled():
        print(f"\nschemathesis: {answers.total()} requests")
    for path, methods in create_app(NOWHERE).openapi()["paths"].items():
        for method in methods:
            label = f"{method.upper()} {path}"
            seen = {answer.rpartition(" ")[2] for answer in answers if answer.startswith(f"{label}: ")}
            assert seen & {"200", "201", "204"}, (label, seen)
            assert seen & {"400", "401", "404", "405"}, (label, seen)
