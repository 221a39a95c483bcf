"""What fits: the lines add up, agree with published starts, and only ever move the right way."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.errors import UserError
from tieryard.planning import (
    GIB,
    GPUS,
    Model,
    Plan,
    Wish,
    chosen,
    cost_usd_per_1k,
    known_configs,
    plan_kv_memory,
    plan_on,
    smallest_plan,
    ways_out,
)
from tieryard.planning.configs import read_shape
from tieryard.planning.fit import activation_bytes

MODELS = sorted(known_configs())
LLAMA_8B, LLAMA_70B = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"


def model(name: str) -> Model:
    return Model(read_shape(known_configs()[name], name=name), "here")


def on(name: str, gpu: str, *, tensor_parallel: int = 1, **wish: object) -> Plan:
    return plan_on(model(name), GPUS[gpu], Wish(**wish), tensor_parallel=tensor_parallel)  # type: ignore[arg-type]


def test_the_lines_add_up() -> None:
    plan = on(LLAMA_8B, "A10G")
    budget = plan.budget
    assert budget is not None
    assert budget.usable == int(budget.memory * 0.92)
    parts = budget.weights + budget.activations + budget.graphs + budget.other
    assert parts + plan.kv_bytes == budget.usable
    assert plan.kv_tokens == plan.kv_bytes // 131_072 // 16 * 16
    assert plan.largest_max_model_len == plan.kv_tokens - 16
    assert plan.max_in_flight == plan.kv_tokens // 4096
    assert plan.fits


# What vLLM itself said at starts on an H100 of 79.18 GiB, with 0.9 of its memory and 1,024 requests together
# (llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md): GiB of activations and of KV cache. Graphs were
# not yet taken off there. The 70B model was an fp8 checkpoint on two.
STARTS = [
    (LLAMA_8B, None, 1, 4.76, 51.38),
    (LLAMA_70B, "fp8", 2, 4.84, 32.00),
    ("Qwen/Qwen3-0.6B", None, 1, 5.56, 64.45),
    ("openai/gpt-oss-20b", None, 1, 7.38, 50.28),
]


@pytest.mark.parametrize(("name", "quantization", "gpus", "activations_gib", "kv_gib"), STARTS)
def test_published_starts(
    name: str, quantization: str | None, gpus: int, activations_gib: float, kv_gib: float
) -> None:
    served = model(name) if quantization is None else model(name).quantized(chosen(quantization))
    h100 = replace(GPUS["H100"], memory_bytes=round(79.18 * GIB))
    plan = plan_on(served, h100, Wish(utilization=0.9, enforce_eager=True), tensor_parallel=gpus)
    assert plan.budget is not None
    assert plan.budget.activations / GIB == pytest.approx(activations_gib, rel=0.06)
    assert plan.kv_bytes / GIB == pytest.approx(kv_gib, rel=0.05)


def test_activations_at_256_requests() -> None:
    """vLLM pull request 10511 shows 1.26 GiB for Llama 3 8B."""
    assert activation_bytes(model(LLAMA_8B), 2048, 256, tensor_parallel=1) / GIB == pytest.approx(1.26, rel=0.06)


def test_a_long_step_needs_more_than_sampling_does() -> None:
    long = activation_bytes(model(LLAMA_8B), 65_536, 16, tensor_parallel=1)
    assert long > activation_bytes(model(LLAMA_8B), 2048, 16, tensor_parallel=1)


@given(st.sampled_from(MODELS), st.sampled_from(sorted(GPUS)), st.floats(0.05, 1), st.floats(0.05, 1))
def test_lowering_utilization_never_makes_a_longer_context_fit(name: str, gpu: str, one: float, two: float) -> None:
    lower, higher = (on(name, gpu, utilization=share) for share in sorted((one, two)))
    assert lower.kv_tokens <= higher.kv_tokens
    assert lower.largest_max_model_len <= higher.largest_max_model_len
    assert higher.fits or not lower.fits


@given(st.sampled_from(MODELS), st.integers(1, 2**38), st.integers(0, 2**36))
def test_more_memory_never_holds_less(name: str, memory: int, more: int) -> None:
    small = replace(GPUS["A10G"], memory_bytes=memory)
    large = replace(small, memory_bytes=memory + more)
    plans = [plan_on(model(name), gpu, Wish(), tensor_parallel=1) for gpu in (small, large)]
    assert plans[0].kv_tokens <= plans[1].kv_tokens
    assert plans[0].concurrency(4096) <= plans[1].concurrency(4096)


@given(st.sampled_from(MODELS), st.sampled_from(sorted(GPUS)))
def test_an_fp8_cache_and_fewer_requests_never_hold_less(name: str, gpu: str) -> None:
    tokens = on(name, gpu).kv_tokens
    assert on(name, gpu, kv_dtype="fp8").kv_tokens >= tokens
    assert on(name, gpu, max_num_seqs=64).kv_tokens >= tokens
    assert on(name, gpu, enforce_eager=True).kv_tokens >= tokens


@given(st.sampled_from(MODELS), st.sampled_from(sorted(GPUS)), st.integers(1, 200_000))
def test_the_smallest_plan_is_the_smallest(name: str, gpu: str, context: int) -> None:
    wish = Wish(context=context)
    found = smallest_plan(model(name), GPUS[gpu], wish)
    fitting = [n for n in (1, 2, 4, 8) if plan_on(model(name), GPUS[gpu], wish, tensor_parallel=n).fits]
    assert found.fits == bool(fitting)
    assert not fitting or found.tensor_parallel == fitting[0]
    assert found.fault is None


def test_sizes_one_knows() -> None:
    assert smallest_plan(model(LLAMA_8B), GPUS["A10G"], Wish()).tensor_parallel == 1
    assert smallest_plan(model(LLAMA_70B), GPUS["H200"], Wish()).tensor_parallel == 2
    awq = model(LLAMA_70B).quantized(chosen("awq"))
    assert smallest_plan(awq, GPUS["L40S"], Wish(context=4096)).max_in_flight == 1
    assert smallest_plan(awq, GPUS["L40S"], Wish(context=8192)).tensor_parallel == 2
    assert smallest_plan(model("deepseek-ai/DeepSeek-V3"), GPUS["H200"], Wish()).tensor_parallel == 8
    assert not smallest_plan(model("deepseek-ai/DeepSeek-V3"), GPUS["A10G"], Wish()).fits


def test_what_would_make_it_fit() -> None:
    plan = on(LLAMA_70B, "A100-80")
    assert not plan.fits
    assert plan.kv_bytes < 0
    assert ways_out(plan) == [
        "2 × A100-80",
        "--quantization fp8 on 1 × A100-80",
        "--quantization awq on 1 × A100-80",
    ]
    assert ways_out(on(LLAMA_8B, "A10G")) == []


def test_a_context_that_is_too_long_has_its_own_ways_out() -> None:
    plan = on(LLAMA_8B, "A10G", max_model_len=40_000)
    assert not plan.fits
    found = ways_out(plan)
    assert "--kv-cache-dtype fp8 on 1 × A10G" in found
    assert f"requests of {plan.largest_max_model_len:,} tokens at most" in found


def test_a_split_that_vllm_refuses_does_not_fit() -> None:
    plan = on("HuggingFaceTB/SmolLM2-135M-Instruct", "A10G", tensor_parallel=2)
    assert plan.kv_tokens > plan.max_model_len
    assert not plan.fits


def test_kv_memory_outright() -> None:
    """vLLM's own log, for 1 GiB on a CPU: 46,592 tokens, and 22.75x for 2,048 tokens a request."""
    smol = model("HuggingFaceTB/SmolLM2-135M-Instruct")
    plan = plan_kv_memory(smol, GIB, Wish(block_size=128, max_model_len=2048))
    assert plan.kv_tokens == 46_592
    assert plan.concurrency(2048) == 22.75
    assert plan.max_in_flight == 22
    assert plan.fits


def test_vllms_own_limit_bounds_what_is_in_flight() -> None:
    plan = on("HuggingFaceTB/SmolLM2-135M-Instruct", "H200", context=128)
    assert plan.concurrency(128) > 1024
    assert plan.max_in_flight == 1024


def test_a_request_is_held_in_whole_blocks() -> None:
    plan = on(LLAMA_8B, "A10G")
    assert plan.concurrency(17) == plan.concurrency(32)


def test_what_rent_makes_of_a_thousand_tokens() -> None:
    cost = cost_usd_per_1k(rent_usd_per_h=Decimal("3.60"), throughput_tps=Decimal(2000))
    assert cost == Decimal("0.0005")
    with pytest.raises(UserError, match="no throughput"):
        cost_usd_per_1k(rent_usd_per_h=Decimal(1), throughput_tps=Decimal(0))


def test_wishes_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"gpu-memory-utilization: 1\.5"):
        on(LLAMA_8B, "A10G", utilization=1.5)
    with pytest.raises(UserError, match="vLLM refuses it"):
        on(LLAMA_8B, "H200", max_model_len=131_073)


def test_a_step_has_a_token_for_each_request() -> None:
    assert on(LLAMA_8B, "A10G", max_num_batched_tokens=100).max_num_seqs == 100, "vLLM lowers its default"
    for wish in ({"max_num_batched_tokens": 64, "max_num_seqs": 128}, {"max_num_seqs": 4096}):
        with pytest.raises(UserError, match="raise --max-num-batched-tokens or lower --max-num-seqs"):
            on(LLAMA_8B, "A10G", **wish)
    with pytest.raises(UserError, match=r"\(64\) is below max_num_seqs \(128\)"):
        plan_kv_memory(model(LLAMA_8B), GIB, Wish(max_num_batched_tokens=64, max_num_seqs=128))
