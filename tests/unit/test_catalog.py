"""A good catalog loads; a bad one is refused with every fault's line, field and what was expected."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.conftest import CATALOGS
from tieryard.catalog import VllmEngine, load_catalog, parse_catalog
from tieryard.catalog.reading import line_of
from tieryard.errors import CatalogError

ROOT = Path(__file__).parents[2]
GOOD = """\
version: 1
tiers:
  realtime: {slo: {max_latency_ms: 1000}, window: 60s}
  bulk: {window: 24h}
categories: [chat, code]
deployments:
  small:
    model: org/model
    revision: abc
    size_class: small
    engine: {kind: openai_http, url: "http://vllm:8000"}
    context_limit: 4096
    max_in_flight: 8
    realtime_reserve: 2
    tokenizer: utf8
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
    quality: 0.5
"""

TIERS = "  realtime: {slo: {max_latency_ms: 1000}, window: 60s}\n  bulk: {window: 24h}\n"
SLO = "slo: {max_latency_ms: 1000}"

SHIPPED = [ROOT / "tieryard" / "local.yaml", ROOT / "deploy" / "tieryard.yaml", CATALOGS / "instant.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_catalogs_load(path: Path) -> None:
    catalog = load_catalog(path)
    assert set(catalog.tiers) == {"realtime", "interactive", "batch", "bulk"}
    assert load_catalog(path).hash() == catalog.hash()


def test_a_catalog_says_what_the_file_says() -> None:
    catalog = parse_catalog(GOOD)
    small = catalog.deployments["small"]
    assert small.price.input_usd_per_1m == Decimal("0.1")
    assert catalog.due_in("bulk", None) == timedelta(hours=24)
    assert catalog.due_in("bulk", timedelta(minutes=1)) == timedelta(minutes=1)
    assert re.fullmatch("[0-9a-f]{12}", catalog.hash())
    assert parse_catalog(GOOD.replace("0.10", "0.11")).hash() != catalog.hash()


def refused(text: str) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        parse_catalog(text, name="t.yaml")
    return caught.value


# (what is replaced, by what, the line at fault, its field, what the message says)
FAULTS = [
    ("version: 1", "version: 2", 1, "version", "1"),
    ("version: 1\n", "", 1, "version", "is required"),
    (f"tiers:\n{TIERS}", "", 1, "tiers", "is required"),
    (TIERS, "  {}\n", 2, "tiers", "must not be empty"),
    (SLO, "slo: {max_latency_ms: fast}", 3, "tiers.realtime.slo.max_latency_ms", "number"),
    (SLO, "slo: {max_latency_ms: 0}", 3, "tiers.realtime.slo.max_latency_ms", "greater than 0"),
    (SLO, "slo: {max_cost_per_1k: -1}", 3, "tiers.realtime.slo.max_cost_per_1k", "greater than or equal to 0"),
    (SLO, "slo: {deadline: soon}", 3, "tiers.realtime.slo.deadline", "a duration such as '90s'"),
    (SLO, "slo: {latency_ms: 10}", 3, "tiers.realtime.slo.latency_ms", "not a known field"),
    (SLO, "slo: 1000", 3, "tiers.realtime.slo", "expected an object, not 1000"),
    (SLO, "slo_ms: 1000", 3, "tiers.realtime.slo_ms", "is `slo.max_latency_ms` now"),
    (SLO, "ttft_ms: 300", 3, "tiers.realtime.ttft_ms", "is `slo.max_ttft_ms` now"),
    (SLO, "slo: {min_quality: 2}", 3, "tiers.realtime.slo.min_quality", "less than or equal to 1"),
    (SLO, "slo: {min_quality: {share: 2, of: small}}", 3, "tiers.realtime.slo.min_quality.share", "equal to 1"),
    (SLO, "slo: {min_quality: {share: 0.9, of: none}}", 3, "tiers.realtime.slo.min_quality.of",
     "'none' is not a deployment"),
    ("revision: abc", "revision: Main", 9, "deployments.small.revision", "or set allow_floating: true"),
    ("url: \"http://vllm:8000\"", "url: \"http://vllm:8000\", key_env: sk-1", 11, "deployments.small.engine.key_env",
     "pattern"),
    ("url: \"http://vllm:8000\"", "url: \"http://vllm:8000\", limits: {requests_per_minute: 0}", 11,
     "deployments.small.engine.limits.requests_per_minute", "greater than 0"),
    ("quality: 0.5", "gpus: 0", 17, "deployments.small.gpus", "greater than or equal to 1"),
    ("window: 24h", "window: a day", 4, "tiers.bulk.window", "a duration such as '90s'"),
    ("window: 24h", "window: 24", 4, "tiers.bulk.window", "a duration such as '90s'"),
    ("window: 24h", "window: 0s", 4, "tiers.bulk.window", "greater than"),
    ("  bulk:", "  Bulk!:", 4, "tiers.Bulk!", "pattern"),
    ("[chat, code]", "[]", 5, "categories", "must not be empty"),
    ("[chat, code]", "[chat, 7]", 5, "categories.1", "expected text, not 7"),
    ("[chat, code]", "chat", 5, "categories", "list"),
    ("    model: org/model\n", "", 7, "deployments.small.model", "is required"),
    ("model: org/model", "model: ''", 8, "deployments.small.model", "must not be empty"),
    ("size_class: small", "size_class: tiny", 10, "deployments.small.size_class", "'small', 'medium' or 'large'"),
    ("kind: openai_http", "kind: tgi", 11, "deployments.small.engine", "'vllm_server', 'lora', 'instant'"),
    ("kind: openai_http, ", "", 11, "deployments.small.engine", "kind"),
    ('url: "http://vllm:8000"', "url: vllm", 11, "deployments.small.engine.url", "pattern"),
    ("http://vllm:8000", "http://me:secret@vllm:8000", 11, "deployments.small.engine.url", "no place in a catalog"),
    ("http://vllm:8000", "http://vllm:8000?key=secret", 11, "deployments.small.engine.url", "must end before `/v1`"),
    ('url: "http://vllm:8000"', "slots: 4", 11, "deployments.small.engine.slots", "not a known field"),
    ('"http://vllm:8000"', '"http://vllm:8000", slots: 4', 11, "deployments.small.engine.slots", "not a known field"),
    ("context_limit: 4096", "context_limit: -1", 12, "deployments.small.context_limit", "greater than 0"),
    ("context_limit: 4096", f"context_limit: {10**30}", 12, "deployments.small.context_limit", "must fit in 64 bits"),
    ("kind: openai_http, url: \"http://vllm:8000\"", f"kind: vllm_server, flags: {{seed: {10**30}}}", 11,
     "deployments.small.engine.flags.seed", "must fit in 64 bits"),
    ("context_limit: 4096", "context_limt: 4096", 12, "deployments.small.context_limt", "not a known field"),
    ("realtime_reserve: 2", "realtime_reserve: 8", 7, "deployments.small", "realtime_reserve must be below"),
    ("input_usd_per_1m: 0.10", "input_usd_per_1m: -0.1", 16, "deployments.small.price.input_usd_per_1m", "0"),
    ("input_usd_per_1m: 0.10, ", "", 16, "deployments.small.price.input_usd_per_1m", "is required"),
    ("0.40", "0.0000001", 16, "deployments.small.price.output_usd_per_1m", "6 decimal"),
    ("0.40", ".nan", 16, "deployments.small.price.output_usd_per_1m", "finite"),
    ("quality: 0.5", "quality: 50", 17, "deployments.small.quality", "less than or equal to 1"),
    ("quality: 0.5", "capabilities: [vision]", 17, "deployments.small.capabilities.0", "'json_schema', 'tools' or"),
]  # fmt: skip


ROUTING = """\
routing:
  weights: {quality: 0.6}
  floors: {code: 0.5}
  exploration: {share: 0.02, tiers: [bulk]}
  shadows:
    - {of: small, to: large, share: 0.1}
  policies:
    acme: {models: [small], min_quality: 0.4}
"""
LARGE = GOOD.split("deployments:\n")[1].replace("small", "large")
# As above; the section begins on line 29, behind two deployments.
ROUTING_FAULTS = [
    ("{quality: 0.6}", "{quality: 0, cost: 0, latency: 0}", 30, "routing.weights", "must be above 0"),
    ("{quality: 0.6}", "{quality: -1}", 30, "routing.weights.quality", "greater than or equal to 0"),
    ("{code: 0.5}", "{poems: 0.5}", 31, "routing.floors.poems", "'poems' is not a category"),
    ("{code: 0.5}", "{code: 5}", 31, "routing.floors.code", "less than or equal to 1"),
    ("[bulk]", "[batch]", 32, "routing.exploration.tiers.0", "'batch' is not a tier"),
    ("share: 0.02", "share: 0.5", 32, "routing.exploration.share", "less than or equal to 0.2"),
    ("of: small", "of: none", 34, "routing.shadows.0.of", "'none' is not a deployment"),
    ("to: large", "to: none", 34, "routing.shadows.0.to", "'none' is not a deployment"),
    ("to: large", "to: small", 34, "routing.shadows.0.to", "is where the jobs go anyway"),
    ("[small]", "[small, none]", 36, "routing.policies.acme.models.1", "'none' is not a deployment"),
    ("[small]", "[]", 36, "routing.policies.acme.models", "must not be empty"),
    ("weights:", "wights:", 30, "routing.wights", "not a known field"),
]


def test_routing_is_read_whole() -> None:
    routing = parse_catalog(GOOD + LARGE + ROUTING).routing
    assert (routing.weights.quality, routing.weights.cost) == (0.6, 0.3)
    assert routing.floors == {"code": 0.5}
    assert routing.policies["acme"].models == ["small"]


@pytest.mark.parametrize(("good", "bad", "line", "field", "message"), ROUTING_FAULTS)
def test_a_fault_of_the_routing_is_refused(good: str, bad: str, line: int, field: str, message: str) -> None:
    assert ROUTING.count(good) == 1
    error = refused(GOOD + LARGE + ROUTING.replace(good, bad))
    assert (error.line, error.param) == (line, field), error.message
    assert f"t.yaml:{line}: {field}: " in error.message
    assert message in error.message


@pytest.mark.parametrize("revision", ["main", "master", "latest", "HEAD", "stable", "nightly"])
def test_a_revision_that_moves_is_refused_unless_it_is_meant(revision: str) -> None:
    moving = GOOD.replace("revision: abc", f"revision: {revision}")
    assert (refused(moving).line, refused(moving).param) == (9, "deployments.small.revision")
    assert parse_catalog(moving + "    allow_floating: true\n").deployments["small"].revision == revision


@pytest.mark.parametrize(("good", "bad", "line", "field", "message"), FAULTS)
def test_a_fault_is_refused_with_its_line_field_and_expectation(
    good: str, bad: str, line: int, field: str, message: str
) -> None:
    assert GOOD.count(good) == 1
    error = refused(GOOD.replace(good, bad))
    rows = [r for r in error.message.splitlines() if r.startswith(f"t.yaml:{line}: {field}: ")]
    assert any(message in row for row in rows), error.message
    assert error.line is not None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD.replace("tiers:", "tiers"), 3),
        (GOOD.replace("[chat, code]", "[chat, code"), 6),
        (GOOD.replace("    revision:", "\trevision:"), 9),
        (GOOD.replace("    revision: abc\n", "    revision: abc\n    revision: abd\n"), 10),
        (GOOD + "version: 1\n", 18),
        ("{", 1),
        ("a: &x\nb: *y", 2),
    ],
)
def test_bad_yaml_and_duplicate_keys_are_refused_with_their_line(text: str, line: int) -> None:
    error = refused(text)
    assert "not valid YAML" in error.message
    assert error.line is not None
    assert abs(error.line - line) <= 1


MERGED = GOOD.replace("  small:\n", "  small: &small\n") + "  large:\n    <<: *small\n    size_class: large\n"


def test_what_a_merge_brings_in_stands_where_it_was_written() -> None:
    large = parse_catalog(MERGED).deployments["large"]
    assert (large.size_class, large.max_in_flight) == ("large", 8)
    assert line_of(MERGED, ("deployments", "large", "price", "input_usd_per_1m")) == 16
    assert line_of(MERGED, ("deployments", "large", "size_class")) == 20
    rows = refused(MERGED.replace("max_in_flight: 8", "max_in_flight: 0")).message.splitlines()
    assert [row.split(": ")[:2] for row in rows] == [
        ["t.yaml:13", "deployments.large.max_in_flight"],
        ["t.yaml:13", "deployments.small.max_in_flight"],
    ]


def test_what_is_nested_too_deeply_is_refused() -> None:
    assert "nested too deeply" in refused("a: " + "[" * 1_000).message


def test_a_refused_url_is_not_quoted() -> None:
    assert "secret" not in refused(GOOD.replace("vllm:8000", "me:secret@vllm:8000")).message


@pytest.mark.parametrize("text", ["", "[]", "just words", "7"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert "expected a mapping" in refused(text).message


def test_several_faults_give_several_rows_in_the_files_order() -> None:
    text = GOOD.replace("24h", "soon").replace("4096", "none").replace("quality: 0.5", "quality: 9")
    rows = refused(text).message.splitlines()
    assert [row.split(":")[1] for row in rows] == ["4", "12", "17"]


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"absent\.yaml: cannot be read"):
        load_catalog(tmp_path / "absent.yaml")


VLLM = """\
version: 1
tiers: {bulk: {window: 24h}}
categories: [chat]
deployments:
  base:
    model: org/model
    revision: abc
    size_class: small
    engine:
      kind: vllm_server
      flags: {max_model_len: 4096, gpu_memory_utilization: 0.85, enable_chunked_prefill: true, middleware: [a, b]}
      env: {VLLM_CPU_KVCACHE_SPACE: 1}
      start_within: 20m
      unchecked: [stops]
    context_limit: 4096
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.10, output_usd_per_1m: 0.40}
  legal:
    model: org/legal-lora
    revision: abd
    size_class: small
    engine: {kind: lora, host: base, weights: /adapters/legal}
    context_limit: 2048
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.20, output_usd_per_1m: 0.80}
  plain:
    model: none
    revision: none
    size_class: small
    engine: {kind: instant}
    context_limit: 2048
    max_in_flight: 4
    tokenizer: utf8
    price: {input_usd_per_1m: 0, output_usd_per_1m: 0}
"""


def test_a_vllm_server_keeps_its_flags_in_plain_python() -> None:
    catalog = parse_catalog(VLLM)
    engine = catalog.deployments["base"].engine
    assert isinstance(engine, VllmEngine)
    assert engine.flags == {
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.85,
        "enable_chunked_prefill": True,
        "middleware": ["a", "b"],
    }
    assert [type(value) for value in engine.flags.values()] == [int, float, bool, list]
    assert engine.env == {"VLLM_CPU_KVCACHE_SPACE": "1"}
    assert engine.start_within == timedelta(minutes=20)
    assert re.fullmatch("[0-9a-f]{12}", catalog.hash())


def test_an_adapter_is_served_by_its_host() -> None:
    catalog = parse_catalog(VLLM)
    assert catalog.adapters_of("base") == ["legal"]
    assert catalog.adapters_of("legal") == catalog.adapters_of("plain") == []
    assert (catalog.host_of("legal"), catalog.host_of("base")) == ("base", "base")
    assert catalog.hosts == ["base", "plain"]


LEGAL = "    engine: {kind: lora, host: base, weights: /adapters/legal}\n"
VLLM_FAULTS = [
    ("enable_chunked_prefill", "port", 11, "deployments.base.engine.flags.port", "infer process chooses"),
    ("enable_chunked_prefill", "enable_log_requests", 11, "deployments.base.engine.flags.enable_log_requests", "logs"),
    ("enable_chunked_prefill", "enable-x", 11, "deployments.base.engine.flags.enable-x", "pattern"),
    ("enable_chunked_prefill", "no_x", 11, "deployments.base.engine.flags.no_x", "is written as `x: false`"),
    ("[a, b]", "null", 11, "deployments.base.engine.flags.middleware", "expected true, false, a number"),
    ("max_model_len: 4096", "max_model_len: 4k", 9, "deployments.base.engine", "whole number"),
    ("max_model_len: 4096", "max_model_len: 4095", 5, "deployments.base", "(4095) must be at least"),
    ("VLLM_CPU_KVCACHE_SPACE: 1", "lower: 1", 12, "deployments.base.engine.env.lower", "pattern"),
    ("VLLM_CPU_KVCACHE_SPACE: 1", "A: true", 12, "deployments.base.engine.env.A", "expected text, not true"),
    ("VLLM_CPU_KVCACHE_SPACE: 1", "VLLM_API_KEY: k", 12, "deployments.base.engine.env.VLLM_API_KEY",
     "only the fleet asks it"),
    ("VLLM_CPU_KVCACHE_SPACE: 1", "HF_TOKEN: hf_1", 12, "deployments.base.engine.env.HF_TOKEN",
     "a secret has no place in a catalog: set it in the infer process's environment"),
    ("[stops]", "[smell]", 14, "deployments.base.engine.unchecked.0", "'chat_template'"),
    ("host: base", "host: none", 23, "deployments.legal.engine.host", "'none' is not a deployment"),
    ("host: base", "host: plain", 23, "deployments.legal.engine.host", "'plain' must be a vLLM"),
    ("host: base", "host: legal", 23, "deployments.legal.engine.host", "'legal' must be a vLLM"),
    (LEGAL + "    context_limit: 2048", LEGAL + "    context_limit: 8192",
     24, "deployments.legal.context_limit", "8192 is above its host's 4096"),
    ("    max_in_flight: 8\n    tokenizer: utf8\n    price: {input_usd_per_1m: 0.20",
     "    max_in_flight: 4\n    tokenizer: utf8\n    price: {input_usd_per_1m: 0.20",
     25, "deployments.legal.max_in_flight", "4 differs from its host's 8, and they share one engine"),
    (LEGAL, LEGAL + "    realtime_reserve: 2\n", 24, "deployments.legal.realtime_reserve", "is its host's to keep"),
    ("    tokenizer: utf8\n    price: {input_usd_per_1m: 0.20",
     "    tokenizer: other\n    price: {input_usd_per_1m: 0.20",
     26, "deployments.legal.tokenizer", "differs from its host's"),
    (LEGAL, LEGAL + "    capabilities: [json_schema]\n", 24, "deployments.legal.capabilities", "json_schema: its host"),
    (LEGAL, LEGAL + "    serves: embeddings\n", 24, "deployments.legal.serves", "'embeddings' differs"),
    ("model: org/model", "model: legal", 23, "deployments.legal.engine.host", "name this deployment otherwise"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "line", "field", "message"), VLLM_FAULTS)
def test_a_fault_of_a_vllm_or_an_adapter_is_refused(good: str, bad: str, line: int, field: str, message: str) -> None:
    assert VLLM.count(good) == 1
    error = refused(VLLM.replace(good, bad))
    row = next((r for r in error.message.splitlines() if r.startswith(f"t.yaml:{line}: {field}: ")), "")
    assert row, error.message
    assert message in row


def test_a_quantization_that_contradicts_the_flags_is_refused() -> None:
    flagged = VLLM.replace("middleware: [a, b]", "quantization: fp8")
    assert parse_catalog(flagged.replace("revision: abc", "revision: abc\n    quantization: fp8"))
    error = refused(flagged.replace("revision: abc", "revision: abc\n    quantization: awq"))
    assert (error.line, error.param) == (8, "deployments.base.quantization")
    assert "'awq' is not the engine's flags.quantization, 'fp8'" in error.message


def test_an_attached_vllm_may_host_an_adapter_and_no_other_server() -> None:
    head, rest = VLLM.split("    engine:\n", 1)
    attached = head + '    engine: {kind: openai_http, url: "http://v:1"}\n' + rest.split("[stops]\n", 1)[1]
    assert parse_catalog(attached).adapters_of("base") == ["legal"]
    assert "must be a vLLM" in refused(attached.replace('v:1"', 'v:1", server: openai')).message
