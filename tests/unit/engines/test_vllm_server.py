"""A vLLM of our own: what it is started with, what it says, and that it ends."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
import structlog.testing

from tests.conftest import eventually
from tests.unit.engines.test_keeper import runs
from tests.unit.engines.test_vllm_flags import pid_in
from tests.unit.engines.vllm_script import HELP, asked_of, write_python, write_slow_python
from tieryard.catalog import parse_catalog
from tieryard.engines import Recording, record
from tieryard.engines.opening import open_engine, open_replica
from tieryard.engines.vllm_flags import STARTER, Flags, read_help
from tieryard.engines.vllm_server import VllmFacts, VllmServerEngine, environment, serve_command
from tieryard.errors import EngineDownError, UserError

KNOWN = Flags("0.32.0", read_help(HELP))
CATALOG = """
version: 1
tiers: {bulk: {window: 24h}}
categories: [chat]
deployments:
  base:
    model: org/model
    revision: abc
    size_class: small
    engine: %s
    context_limit: 2048
    max_in_flight: 4
    tokenizer: utf8
    price: {input_usd_per_1m: 0, output_usd_per_1m: 0}
"""
ADAPTER = """
  legal:
    model: org/legal
    revision: abd
    size_class: small
    engine: {kind: lora, host: base, weights: /adapters/legal}
    context_limit: 2048
    max_in_flight: 4
    tokenizer: utf8
    price: {input_usd_per_1m: 0, output_usd_per_1m: 0}
"""
STARTING = [
    "(EngineCore pid=1) INFO 11-22 20:35:45 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
    "model='smol', enable_prefix_caching=True, enable_chunked_prefill=True",
    "(EngineCore pid=1) INFO 11-22 20:35:57 [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens, Maximum "
    "concurrency for 2,048 tokens per request: 22.75x",
]
FACTS = VllmFacts("0.32.0", kv_cache_tokens=46592, max_concurrency=22.75, chunked_prefill=True)
AWQ = [
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
    "  Value error, Cannot find the config file for awq [type=value_error, input_value=ArgsKwargs(())]",
]


@pytest.fixture(autouse=True)
def plain_logs():
    """As they are unless configured: another test's level would keep lines from being seen."""
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


def catalog(*, adapter=False, **engine):
    return parse_catalog(CATALOG % json.dumps({"kind": "vllm_server"} | engine) + (ADAPTER if adapter else ""))


def command(*, adapter=False, installed=KNOWN, **engine):
    adapters = {"legal": "/adapters/legal"} if adapter else {}
    return serve_command(catalog(**engine).deployments["base"], adapters, installed, port=8011)


def test_weights_of_the_hub_are_pinned_to_the_deployments_revision():
    assert command(flags={"quantization": "awq"}) == [
        str(STARTER), "serve", "org/model", "--host=127.0.0.1", "--port=8011", "--served-model-name=org/model",
        "--max-model-len=2048", "--revision=abc", "--tokenizer-revision=abc", "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log", "--quantization=awq",
    ]  # fmt: skip
    assert "--tokenizer-revision=abc" not in command(flags={"tokenizer": "org/tokenizer"})


def test_weights_in_a_directory_have_no_revision(tmp_path):
    words = command(weights=str(tmp_path))
    assert words[1:3] == ["serve", str(tmp_path)]
    assert not [word for word in words if "revision" in word]
    with pytest.raises(EngineDownError, match="weights '/nowhere/at/all': no such directory here"):
        command(weights="/nowhere/at/all")


def test_the_catalogs_flags_stand_over_the_defaults_and_unknown_ones_are_refused():
    assert "--max-model-len=4096" in command(flags={"max_model_len": 4096})
    with pytest.raises(EngineDownError, match="no flag 'max_loros'"):
        command(flags={"max_loros": 4})
    old = Flags("0.6.0", KNOWN.names - {"enable_prompt_tokens_details"})
    assert "--enable-prompt-tokens-details" not in command(installed=old)


def test_adapters_are_served_under_their_deployments_names():
    words = command(adapter=True)
    assert words[-4:] == ["--enable-lora", "--max-loras=1", "--lora-modules", "legal=/adapters/legal"]
    assert "--max-loras=7" in command(adapter=True, flags={"max_loras": 7})


def test_an_adapter_is_opened_by_its_host_and_asked_by_its_name(tmp_path):
    found = catalog(adapter=True)
    assert isinstance(open_engine(found, "base", cache_dir=tmp_path), VllmServerEngine)
    with pytest.raises(UserError, match="'legal' is a LoRA adapter"):
        open_engine(found, "legal", cache_dir=tmp_path)
    names = [open_replica(found, name, "http://127.0.0.1:1")._model for name in ("base", "legal")]
    assert names == ["org/model", "legal"]


def test_vllm_sees_neither_the_fleets_settings_nor_another_environments_programs_first(monkeypatch, tmp_path):
    monkeypatch.setenv("TIERYARD_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("HF_TOKEN", "kept")
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")  # for a server that somebody attaches
    python = write_python(tmp_path)
    found = environment({"VLLM_CPU_KVCACHE_SPACE": "1"}, python=str(python))
    assert [name for name in found if name.startswith("TIERYARD_") or name == "VLLM_API_KEY"] == []
    assert found["PATH"] == f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert (found["HF_TOKEN"], found["VLLM_CPU_KVCACHE_SPACE"], found["VLLM_NO_USAGE_STATS"]) == ("kept", "1", "1")


def test_facts_are_read_from_the_log():
    facts = VllmFacts("0.32.0")
    for line in STARTING:
        facts = facts.told(line)
    assert facts == FACTS
    chunked = facts.told("INFO [scheduler.py:307] Chunked prefill is enabled with max_num_batched_tokens=8192.")
    assert (chunked.chunked_prefill, chunked.max_num_batched_tokens) == (True, 8192)
    assert facts.told("GPU KV cache size: 1,000,000 tokens").kv_cache_tokens == 1_000_000


def test_the_size_of_a_step_is_read_where_vllm_chose_it():
    # The line that names it is left out when it is the default, and told of the default when the prefill is whole.
    scheduler = "(APIServer pid=1) INFO [scheduler.py:307] Chunked prefill is enabled with max_num_batched_tokens=2048."
    config = (
        "(EngineCore pid=2) INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='smol', "
        "enable_prefix_caching=True, enable_chunked_prefill=%s, pooler_config=None, compilation_config={'mode': "
        "<CompilationMode.NONE: 0>, 'compile_sizes': None, 'compile_ranges_endpoints': [%s], 'inductor_passes': {}}"
    )
    on = VllmFacts("0.32.0").told(config % (True, "2048"))
    assert (on.chunked_prefill, on.max_num_batched_tokens) == (True, 2048)
    off = VllmFacts("0.32.0").told(scheduler).told(config % (False, "1024, 16384"))
    assert (off.chunked_prefill, off.max_num_batched_tokens) == (False, 16384)
    assert VllmFacts("0.32.0").told(config % (True, "")).max_num_batched_tokens is None


@pytest.fixture
def make(tmp_path):
    """Makes an engine over the stand-in, which behaves as the variables say."""
    python = write_python(tmp_path)

    def of(*, start_within="60s", flags=None, says=(), **variables):
        spec = {
            "weights": str(tmp_path),
            "python": str(python),
            "flags": flags or {},
            "env": {"SAYS": json.dumps(says), **variables},
            "start_within": start_within,
        }
        return VllmServerEngine("base", catalog(**spec).deployments["base"], adapters={}, cache_dir=tmp_path)

    return of


async def test_a_server_is_started_heard_and_asked(make, tmp_path):
    engine = make(says=STARTING, flags={"max_num_batched_tokens": 512})
    with structlog.testing.capture_logs() as logs:
        await engine.start()
    try:
        recording = Recording()
        await record(engine, {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}, recording)
        assert recording.usage.completion_tokens == 4
        assert await engine.healthy()
        assert (await engine.load()).running == 0
        assert engine.url.startswith("http://127.0.0.1:")
        assert (engine.facts.kv_cache_tokens, engine.facts.max_num_batched_tokens) == (46592, 512)
        assert engine.log_tail[:2] == STARTING
        said = [log for log in logs if log["event"] == "engine.said"]
        assert [log["line"] for log in said[:2]] == STARTING
        assert {"version": "0.32.0", "kv_cache_tokens": 46592}.items() <= said[-1].items()
        assert "SAYS" in json.loads((tmp_path / "environment.json").read_text())
    finally:
        await engine.close()
    assert engine.url is None
    assert not await engine.healthy()


def children(pid):
    """Every process below this one."""
    below = [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    return below + [deeper for child in below for deeper in children(child)]


async def test_nothing_runs_after_a_close_and_the_next_start_is_a_new_server(make):
    engine = make()
    await engine.start()
    first, pids = engine.url, children(engine._keeper.pid)
    assert len(pids) == 2  # the server, and the child that it forked
    await engine.close()
    assert [pid for pid in pids if runs(pid)] == []
    await engine.start()
    assert engine.url != first
    assert await engine.healthy()
    await engine.close()


@pytest.mark.parametrize("victim", ["server", "keeper"])
async def test_a_server_that_dies_is_seen_and_leaves_nothing(make, victim):
    engine = make()
    await engine.start()
    try:
        pids = children(engine._keeper.pid)
        with structlog.testing.capture_logs() as logs:
            os.kill(pids[0] if victim == "server" else engine._keeper.pid, signal.SIGKILL)
            await engine._ended
        assert not await engine.healthy()
        assert [log["error"] for log in logs if log["event"] == "engine.down"] == [
            "vLLM has stopped: it was killed (SIGKILL), most likely by the kernel for want of memory: look into dmesg, "
            "and give it more memory or a smaller model"
        ]
        eventually(lambda: not any(runs(pid) for pid in pids), what="the end of all")
    finally:
        await engine.close()


async def test_a_failed_start_is_told_by_its_cause(make):
    engine = make(says=AWQ, ENDS="1")
    with pytest.raises(EngineDownError) as caught:
        await engine.start()
    assert caught.value.message.startswith("vLLM did not start: quantization awq is set and the weights are not")
    assert not caught.value.sent
    assert engine.url is None


async def test_a_start_that_takes_too_long_is_ended(make):
    engine = make(says=["Loading weights", "half of them"], start_within="1s", HANGS="1")
    with pytest.raises(EngineDownError, match=r"within 1 s \(start_within\); the last it said: half of them"):
        await engine.start()
    assert engine._keeper is None


async def test_unknown_flags_are_refused_before_anything_is_started(make, tmp_path):
    with pytest.raises(EngineDownError, match=r"'max_num_batched_token' \(did you mean 'max_num_batched_tokens'\?\)"):
        await make(flags={"max_num_batched_token": 512}).start()
    assert not [line for line in asked_of(tmp_path) if "--port" in line]


async def test_a_start_that_is_called_off_leaves_nothing(make):
    engine = make(says=["here"], HANGS="1")
    starting = asyncio.create_task(engine.start())
    await asyncio.to_thread(eventually, lambda: engine.log_tail, what="its first word")
    pids = children(engine._keeper.pid)
    assert pids
    starting.cancel()
    await asyncio.gather(starting, engine.close(), return_exceptions=True)
    assert [pid for pid in pids if runs(pid)] == []


async def test_a_start_that_is_called_off_while_vllm_prints_its_flags_leaves_nothing(tmp_path):
    spec = {"weights": str(tmp_path), "python": str(write_slow_python(tmp_path))}
    deployment = catalog(**spec).deployments["base"]
    engine = VllmServerEngine("base", deployment, adapters={}, cache_dir=tmp_path)
    starting = asyncio.create_task(engine.start())
    pid = await asyncio.to_thread(pid_in, tmp_path)
    starting.cancel()
    await engine.close()
    assert not runs(pid)
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_a_closed_engine_takes_no_request(make):
    with pytest.raises(EngineDownError, match="vLLM is not started"):
        await record(make(), {"messages": []}, Recording())


def test_once_it_serves_the_api_servers_words_stay_out_of_the_log(make):
    engine = make()
    engine._phase = "serving"
    secret = "(APIServer pid=7) ERROR 11-22 20:35:29 [serving.py:120] ValueError: cannot read 'my secret prompt'"
    core = "(EngineCore pid=8) WARNING 11-22 20:35:29 [core.py:9] preempted"
    quiet = "(EngineCore pid=8) INFO 11-22 20:35:29 [core.py:9] stats"
    with structlog.testing.capture_logs() as logs:
        for line in (secret, "ValueError: my secret prompt", core, quiet, " "):
            engine._hear(line)
    assert [(log["log_level"], log["line"]) for log in logs] == [
        ("info", "(APIServer pid=7) ERROR 11-22 20:35:29 [serving.py:120]"),
        ("info", core),
        ("debug", quiet),
    ]
    assert "secret" not in str(engine.log_tail)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("dump_input.py:70", "Dumping scheduler output for model execution: SchedulerOutput(x=['secret'])"),
        ("core.py:9", "NewRequestData(req_id=1,sampling_params=SamplingParams(stop=['secret'], seed=None))"),
        ("core.py:9", "PoolingParams('secret')"),
        ("core.py:9", "cannot take the prompt 'secret'"),
        ("__init__.py:208", "ValueError: secret"),  # the trace of a schema that cannot be compiled
        ("backend_guidance.py:231", "LLMatcher error: secret"),
        ("scheduler.py:2190", "Unexpected: grammar rejected tokens [secret] for request 1. Terminating request."),
    ],
)
def test_of_what_the_engine_says_of_a_request_only_the_place_is_told(make, place, said):
    engine = make()
    engine._phase = "serving"
    head = f"(EngineCore pid=8) ERROR 11-22 20:35:29 [{place}]"
    with structlog.testing.capture_logs() as logs:
        engine._hear(f"{head} {said}")
        engine._hear(f"(EngineCore pid=8) INFO 11-22 20:35:29 [{place}] {said}")
        engine._hear(f"(EngineCore pid=8) SamplingParams(stop=['{said}'])")  # of a trace, which has no place
    assert [log["line"] for log in logs] == [head]
    assert "secret" not in str(engine.log_tail)


def test_what_is_kept_of_the_log_is_bounded(make):
    engine = make()
    engine._phase = "starting"
    for i in range(3000):
        engine._hear(f"{i} " + "x" * 10_000)
    assert len(engine.log_tail) == 2000
    assert engine.log_tail[-1].startswith("2999 ")
    assert max(map(len, engine.log_tail)) == 4000
