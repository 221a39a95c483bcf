"""Which requests speed is measured with: of tenants who have agreed and of nobody else, redacted, then others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import pytest

from tests import factories as make
from tests.factories import statements
from tests.integration.conftest import OpenYard
from tests.integration.measuring import write_catalog
from tieryard.errors import UserError
from tieryard.settings import Settings
from tieryard.store import Store, keys, samples
from workers.sampling import Sample, draw_sample

CHAT = "/v1/chat/completions"
Draw = Callable[..., Sample]


@pytest.fixture
def draw(open_yard: OpenYard, settings: Settings, tmp_path: Path) -> Draw:
    """A sample for `short`, by a catalog with this section."""

    def drawn(
        more: str = "",
        *,
        count: int = 4,
        categories: tuple[str, ...] = ("chat",),
        apart: Mapping[str, Any] = MappingProxyType({"cache_salt": "s"}),
        **known: Any,
    ) -> Sample:
        path = write_catalog(tmp_path, "http://127.0.0.1:1", more=more)
        yard = open_yard("benchmark", settings=settings.model_copy(update={"catalog": path, **known}))
        return draw_sample(yard, yard.catalog, "short", categories=categories, count=count, seed=0, apart=dict(apart))

    return drawn


def tenant_of(store: Store, name: str) -> int:
    keys.add_key(store, f"ty_{name}", tenant=name, name=name)
    return keys.holder_of(store, f"ty_{name}").tenant_id


def succeeded(store: Store, tenant: int, *bodies: str, category: str = "chat", deployment: str = "short") -> None:
    """Jobs that were routed, run and answered."""
    for body in bodies:
        [job] = make.save_jobs(store, tenant, text=body)
        store.fetch(
            "UPDATE job SET state = 'succeeded', finished_at = now(), category = %(category)s, "
            "deployment = %(deployment)s WHERE id = %(id)s RETURNING id",
            {"id": job, "category": category, "deployment": deployment},
        )


def prompts(sample: Sample) -> set[str]:
    return {one.body["messages"][-1]["content"] for one in sample.requests}


AGREED = "benchmarks: {sample: {tenants: [agrees]}}"


def test_only_of_tenants_who_have_agreed(store: Store, draw: Draw) -> None:
    succeeded(store, tenant_of(store, "agrees"), make.body("theirs 1"), make.body("theirs 2"))
    succeeded(store, tenant_of(store, "silent"), *[make.body(f"secret {i}") for i in range(9)])
    found = draw(AGREED)
    assert {"theirs 1", "theirs 2"} < prompts(found)
    assert not any("secret" in prompt for prompt in prompts(found))
    assert found.origins == {"chat": {"tenants": 2, "built_in": 2}}


def test_without_such_a_tenant_no_job_is_read_at_all(store: Store, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    succeeded(store, tenant_of(store, "silent"), make.body("secret"))
    with statements(monkeypatch) as seen:
        assert draw().origins == {"chat": {"built_in": 4}}
    assert not [statement for statement in seen if " job" in statement or "line" in statement]


def test_the_catalogs_own_come_before_the_built_in_ones(draw: Draw) -> None:
    items = "[{category: chat, prompt: of the catalog, max_tokens: 5}, {category: code, prompt: not asked for}]"
    found = draw(f"benchmarks: {{sample: {{items: {items}}}}}")
    assert found.origins == {"chat": {"catalog": 1, "built_in": 3}}
    [own] = [one.body for one in found.requests if one.body["messages"][0]["content"] == "of the catalog"]
    assert own == {"messages": own["messages"], "max_tokens": 5, "cache_salt": "s"}


def test_what_is_no_business_of_an_engine_is_left_out(store: Store, draw: Draw) -> None:
    agrees = tenant_of(store, "agrees")
    call = {"messages": [{"role": "user", "content": "a call"}], "model": "auto", "stream": True}
    call |= {"metadata": {"a": "b"}, "stream_options": {"include_usage": True}, "user": "u", "temperature": 0.5}
    line = {"method": "POST", "url": CHAT, "body": call}
    native = make.body("a job", callback_url="https://x.example/y", metadata={"a": "b"}, custom_id="c", max_tokens=9)
    succeeded(store, agrees, orjson.dumps(line).decode(), native)
    bodies = {one.body["messages"][0]["content"]: one.body for one in draw(AGREED, count=2).requests}
    assert bodies["a call"].keys() == {"messages", "temperature", "max_tokens", "cache_salt"}
    assert bodies["a job"].keys() == {"messages", "max_tokens", "cache_salt"}


def test_what_does_not_fit_or_is_no_text_is_left_out(store: Store, draw: Draw) -> None:
    agrees = tenant_of(store, "agrees")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    call = {"messages": [{"role": "user", "content": "tools"}], "model": "auto", "tools": tools}
    succeeded(store, agrees, make.body("long " * 1000), make.body("short", max_tokens=9000), make.body("fits"))
    succeeded(store, agrees, orjson.dumps({"method": "POST", "url": CHAT, "body": call}).decode(), "no JSON")
    vectors = {"method": "POST", "url": "/v1/embeddings", "body": {"model": "auto", "input": "Oslo"}}
    succeeded(store, agrees, orjson.dumps(vectors).decode(), deployment="vectors")
    [waiting] = make.save_jobs(store, agrees, text=make.body("not answered"))
    assert waiting
    assert draw(AGREED, count=9).origins == {"chat": {"tenants": 1, "built_in": 8}}


def test_where_its_policy_keeps_its_jobs_from_a_deployment_it_keeps_its_requests_too(store: Store, draw: Draw) -> None:
    succeeded(store, tenant_of(store, "agrees"), make.body("theirs"))
    for policy in ("models: [hosted]", "regions: [eu]"):
        found = draw(f"{AGREED}\nrouting: {{policies: {{agrees: {{{policy}}}}}}}")
        assert found.origins == {"chat": {"built_in": 4}}


def test_every_text_is_redacted_before_it_is_used(store: Store, draw: Draw) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["Ann Lee"]}}}
    messages = [
        {"role": "system", "content": "You help Ann Lee."},
        {"role": "user", "content": "Mail ann@x.org, 12-34"},
    ]
    line = orjson.dumps({"messages": messages, "response_format": schema, "stop": ["Ann Lee"]}).decode()
    succeeded(store, tenant_of(store, "agrees"), line)
    more = r"""
benchmarks:
  sample:
    tenants: [agrees]
    redact: [{pattern: '\d'}, {pattern: '\S+@\S+', put: '\1 <mail>'}]
"""
    [one] = draw(more, count=1, redactor="tests.integration.test_sampling:no_names").requests
    assert "Ann" not in str(one.body)
    assert one.body["messages"][1] == {"role": "user", "content": r"Mail \1 <mail> ……-……"}
    assert one.body["response_format"]["type"] == "json_schema"
    assert one.body["stop"] == ["somebody"]


def test_names_of_the_protocol_hide_nothing(store: Store, draw: Draw) -> None:
    told = {
        "type": "object",
        "properties": {"role": {"type": "string", "description": "as Ann Lee"}, "type": ["Ann Lee"]},
    }
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": told | {"$defs": {"type": "Ann Lee"}}}}
    line = orjson.dumps({"messages": [{"role": "user", "content": "Hi"}], "response_format": schema}).decode()
    succeeded(store, tenant_of(store, "agrees"), line)
    [one] = draw(AGREED, count=1, redactor="tests.integration.test_sampling:no_names").requests
    assert "Ann" not in str(one.body)
    assert one.body["response_format"]["json_schema"]["schema"]["type"] == "object"


def no_names(text: str) -> str:
    assert "@" not in text  # the catalog's patterns come first
    return text.replace("Ann Lee", "somebody")


def fails(text: str) -> str:
    raise ValueError(text)


def test_what_the_redactor_cannot_read_is_left_out_and_not_quoted(store: Store, draw: Draw) -> None:
    succeeded(store, tenant_of(store, "agrees"), make.body("secret"))
    found = draw(AGREED, redactor="tests.integration.test_sampling:fails")
    assert found.origins == {"chat": {"built_in": 4}}
    assert found.notes == ["1 requests were left out: the redactor failed (ValueError)"]


@pytest.mark.parametrize("named", ["no.such.module:f", "json:no_such_function", "json:__doc__"])
def test_a_redactor_that_is_not_there_ends_the_run(store: Store, draw: Draw, named: str) -> None:
    succeeded(store, tenant_of(store, "agrees"), make.body("secret"))
    with pytest.raises(UserError, match="TIERYARD_REDACTOR"):
        draw(AGREED, redactor=named)


def test_categories_share_alike_and_the_newest_come_first(store: Store, draw: Draw) -> None:
    agrees = tenant_of(store, "agrees")
    succeeded(store, agrees, *[make.body(f"chat {i}") for i in range(40)])
    succeeded(store, agrees, make.body("code 0"), category="code")
    found = draw(AGREED, count=12, categories=("chat", "code", "reasoning"))
    assert found.origins == {
        "chat": {"tenants": 4},
        "code": {"tenants": 1, "built_in": 3},
        "reasoning": {"built_in": 4},
    }
    assert {f"chat {i}" for i in range(36, 40)} < prompts(found)
    assert [one.category for one in found.requests[:4]] == ["chat", "code", "reasoning", "chat"]


def test_few_prompts_are_sent_again_and_that_is_said(draw: Draw) -> None:
    found = draw(count=20)
    assert len(found.requests) == 20
    assert found.notes == ["fewer prompts than requests, so a prefix cache may have helped: chat 8 for 20"]
    assert found.most_tokens > 72
    without_cache = draw(count=20, apart={"cache_prompt": False})
    assert without_cache.notes == ["fewer prompts than requests: chat 8 for 20"]


def test_a_category_that_nobody_has_is_said(draw: Draw) -> None:
    found = draw(categories=("chat", "poetry"))
    assert found.origins.keys() == {"chat"}
    assert found.notes == ["no request of poetry fits short"]
    with pytest.raises(UserError, match="no request of poetry"):
        draw(categories=("poetry",))


MANY = """
INSERT INTO tenant (name) VALUES ('agrees'), ('other');
INSERT INTO job (id, tenant_id, source_id, line_no, tier, state, deployment, category, deadline, finished_at)
SELECT n, CASE WHEN n % 20 = 0 THEN 1 ELSE 2 END, n, 1, 'bulk', 'succeeded', 'one',
       (ARRAY['chat', 'code'])[1 + n % 2], now(), now() FROM generate_series(1, 60000) n;
INSERT INTO line (source_id, line_no, body) SELECT n, 1, '{}' FROM generate_series(1, 60000) n;
ANALYZE tenant, job, line;
"""


def test_the_statement_reads_by_tenant_and_by_key(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute(MANY.encode())
    wanted = {"tenants": ["agrees"], "categories": ["chat", "code"], "passed": ["vectors"], "each": 32, "look": 5000}
    plan = "\n".join(row[0] for row in store.fetch("EXPLAIN " + samples._RECENT, wanted))
    assert "job_by_tenant" in plan, plan
    assert "line_pkey" in plan, plan
    assert "Seq Scan on job" not in plan, plan
    assert "Seq Scan on line" not in plan, plan
