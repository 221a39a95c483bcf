"""A plan is typed in vLLM's words and in the catalog's, and both take it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tieryard.catalog import VllmEngine, parse_catalog
from tieryard.planning import GIB, GPUS, Model, Wish, chosen, known_configs, plan_kv_memory, plan_on
from tieryard.planning.configs import read_shape
from tieryard.planning.flags import catalog_fragment, flags, serve_line, size_class

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"
CATALOGS = Path(__file__).parents[2] / "catalogs"


def model(name: str = LLAMA_8B) -> Model:
    return Model(read_shape(known_configs()[name], name=name), "here")


def test_the_flags_are_what_the_sums_rest_on() -> None:
    plan = plan_on(model(), GPUS["A10G"], Wish(max_model_len=8192), tensor_parallel=2)
    assert flags(plan) == {
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.92,
        "tensor_parallel_size": 2,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 256,
    }
    assert serve_line(plan, revision=COMMIT) == (
        f"vllm serve {LLAMA_8B} --max-model-len 8192 --gpu-memory-utilization 0.92 --tensor-parallel-size 2"
        f" --max-num-batched-tokens 2048 --max-num-seqs 256 --revision {COMMIT}"
    )


@pytest.mark.parametrize(("kind", "flag"), [("fp8", "fp8"), ("bitsandbytes", "bitsandbytes"), ("awq", None)])
def test_only_what_vllm_quantizes_itself_is_a_flag(kind: str, flag: str | None) -> None:
    plan = plan_on(model().quantized(chosen(kind)), GPUS["A10G"], Wish(), tensor_parallel=1)
    assert flags(plan).get("quantization") == flag


@pytest.mark.parametrize(
    ("name", "kind", "missing"),
    [
        (LLAMA_8B, "awq", f"awq checkpoint of {LLAMA_8B}"),
        (LLAMA_8B, "int8", f"int8 checkpoint of {LLAMA_8B}"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "none", "16-bit checkpoint of Qwen/Qwen2.5-7B-Instruct-AWQ"),
        (LLAMA_8B, "fp8", None),
    ],
)
def test_a_checkpoint_that_is_not_the_named_one_is_left_to_fill_in(name: str, kind: str, missing: str | None) -> None:
    plan = plan_on(model(name).quantized(chosen(kind)), GPUS["L40S"], Wish(), tensor_parallel=1)
    line, fragment = serve_line(plan, revision=COMMIT), catalog_fragment(plan, revision=COMMIT)
    if missing is None:
        assert line.startswith(f"vllm serve {name} --")
        assert fragment.startswith(f"model: {name}\nrevision: {COMMIT}\n")
    else:
        assert line.startswith(f"vllm serve '<{missing}>' --")
        assert fragment.startswith(f"model: …  # the {missing}\nrevision: …  #")
        assert COMMIT not in line + fragment, "it is of another repository"


def test_a_checkpoint_says_its_own_quantization() -> None:
    plan = plan_on(model("Qwen/Qwen2.5-32B-Instruct-AWQ"), GPUS["L40S"], Wish(), tensor_parallel=1)
    assert "quantization" not in flags(plan)


def test_kv_memory_is_given_as_bytes() -> None:
    plan = plan_kv_memory(model(), GIB, Wish(kv_dtype="fp8", enforce_eager=True))
    assert flags(plan)["kv_cache_memory_bytes"] == GIB
    assert serve_line(plan).endswith("--kv-cache-dtype fp8 --enforce-eager")


def test_the_fragment_is_a_deployment_of_the_catalog() -> None:
    plan = plan_on(model(), GPUS["L40S"], Wish(kv_dtype="fp8", enforce_eager=True), tensor_parallel=1)
    lines = ["  planned:", *(f"    {line}" for line in catalog_fragment(plan, revision=COMMIT).splitlines())]
    rest = ["    tokenizer: utf8", "    price: {input_usd_per_1m: 1, output_usd_per_1m: 1}", ""]
    text = (CATALOGS / "fake.yaml").read_text(encoding="utf-8")
    text = text.partition("deployments:\n")[0] + "\n".join(["deployments:", *lines, *rest])
    [deployment] = parse_catalog(text).deployments.values()
    assert isinstance(deployment.engine, VllmEngine)
    assert deployment.engine.flags == flags(plan)
    assert (deployment.context_limit, deployment.max_in_flight) == (plan.max_model_len, plan.max_in_flight)
    assert deployment.size_class == "small"


@pytest.mark.parametrize(
    ("parameters", "word"),
    [(8_030_261_248, "small"), (14_000_000_000, "medium"), (70_553_706_496, "large"), (69_000_000_000, "medium")],
)
def test_size_classes(parameters: int, word: str) -> None:
    assert size_class(parameters) == word
