"""Parameters, weights and KV cache of models whose sizes are published, and of any shape at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.errors import UserError
from tieryard.planning import GIB, Model, ModelShape, Quantization, chosen, known_configs, kv_cache_tokens
from tieryard.planning.configs import read_shape

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def shape(name: str) -> ModelShape:
    return read_shape(known_configs()[name], name=name)


PARAMETERS = {
    LLAMA_8B: 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "microsoft/phi-4": 14_659_507_200,
    SMOL: 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "deepseek-ai/DeepSeek-V3": 671_026_419_200,  # without the layer that predicts further tokens
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_model_card(name: str) -> None:
    assert shape(name).parameters == PARAMETERS[name]


def test_an_8b_model_in_bf16_is_16_1_gb_and_8192_tokens_are_a_gib() -> None:
    llama = shape(LLAMA_8B)
    assert round(llama.weight_bytes / 1e9, 1) == 16.1
    assert 8192 * llama.kv_bytes_per_token() == GIB


@pytest.mark.parametrize(
    ("name", "gb"),
    [
        (LLAMA_8B, 5),
        ("meta-llama/Llama-3.1-70B-Instruct", 40),
        ("mistralai/Mistral-7B-Instruct-v0.3", 4),
        ("Qwen/Qwen2.5-72B-Instruct", 40),
        ("microsoft/phi-4", 9),
    ],
)
def test_4_bit_weights(name: str, gb: float) -> None:
    for kind in ("awq", "gptq"):
        quantized = Model(shape(name), "").quantized(chosen(kind))
        assert quantized.weight_bytes / 1e9 == pytest.approx(gb, rel=0.2)


def test_published_4_bit_checkpoints_are_counted_as_if_they_were_quantized_here() -> None:
    ready, made = shape("Qwen/Qwen2.5-32B-Instruct-AWQ"), shape("Qwen/Qwen2.5-32B-Instruct")
    assert ready.weight_bytes == Model(made, "").quantized(chosen("awq")).weight_bytes


def test_kv_bytes_per_token() -> None:
    assert shape(SMOL).kv_bytes_per_token() == 2 * 30 * 3 * 64 * 2 == 23_040
    assert shape("Qwen/Qwen2.5-72B-Instruct").kv_bytes_per_token() == 327_680
    assert shape("deepseek-ai/DeepSeek-V3").kv_bytes_per_token() == 61 * (512 + 64) * 2
    assert shape(LLAMA_8B).kv_bytes_per_token(kv_dtype="fp8") == 65_536
    assert shape(LLAMA_8B).kv_bytes_per_token(kv_dtype="fp8_e5m2") == 65_536
    with pytest.raises(UserError, match="int3"):
        shape(LLAMA_8B).kv_bytes_per_token(kv_dtype="int3")


def test_tensor_parallel_splits_kv_heads_and_then_copies_them() -> None:
    llama = shape(LLAMA_8B)  # 32 heads, 8 KV heads
    assert llama.kv_bytes_per_token(tensor_parallel=8) == 131_072 // 8
    assert llama.kv_bytes_per_token(tensor_parallel=16) == 131_072 // 8
    latent = shape("deepseek-ai/DeepSeek-V3")
    assert latent.kv_bytes_per_token(tensor_parallel=8) == latent.kv_bytes_per_token()


def test_vllm_reports_46592_tokens_for_a_gib_on_a_cpu() -> None:
    """Recorded from vLLM 0.32: `CPU KV cache size: 46,592 tokens`, for 1 GiB, in blocks of 128."""
    tokens = kv_cache_tokens(shape(SMOL), GIB, block_size=128)
    assert tokens == pytest.approx(46_592, rel=0.05)
    assert tokens == 46_592


def test_cache_sizes_that_others_have_published() -> None:
    """vLLM issue 15815: 7.71 GiB on each of two GPUs, `# CUDA blocks: 3947`. Issue 21348: 8.11 GiB on each of four,
    `GPU KV cache size: 178,880 tokens`, for 94 layers of 4 KV heads.
    """
    qwen = shape("Qwen/Qwen2.5-32B-Instruct")
    assert kv_cache_tokens(qwen, round(7.71 * GIB), tensor_parallel=2) == 3947 * 16
    wide = replace(qwen, layers=94, heads=64, kv_heads=4, head_dim=128)
    tokens = kv_cache_tokens(wide, round(8.11 * GIB), tensor_parallel=4)
    assert tokens == pytest.approx(178_880, rel=0.02)


def test_heads_that_do_not_divide_are_refused_as_vllm_does() -> None:
    smol = shape(SMOL)  # 9 heads, 3 KV heads
    assert smol.tensor_parallel_fault(1) is None
    assert smol.tensor_parallel_fault(3) is None
    assert "9 attention heads" in (smol.tensor_parallel_fault(2) or "")
    assert "10 KV heads" in (shape("microsoft/phi-4").tensor_parallel_fault(4) or "")


def test_a_quantization_group_must_not_be_cut() -> None:
    """29,568 over 2 GPUs is 115.5 groups of 128; the published AWQ checkpoint is padded to 29,696 for that reason."""
    cut = Model(shape("Qwen/Qwen2.5-72B-Instruct"), "").quantized(chosen("awq")).shape
    assert "quantization group 128" in (cut.tensor_parallel_fault(2) or "")
    assert shape("Qwen/Qwen2.5-72B-Instruct-AWQ").tensor_parallel_fault(2) is None


def test_a_quantization_that_is_not_known_is_not_guessed() -> None:
    odd = replace(shape(LLAMA_8B), quantization=Quantization("sparkle", None))
    with pytest.raises(UserError, match="'sparkle' is not known"):
        _ = odd.weight_bytes
    assert Model(odd, "", file_bytes=5).weight_bytes == 5


@given(st.sampled_from(sorted(PARAMETERS)), st.integers(0, 2**38), st.integers(0, 2**34), st.sampled_from([16, 128]))
def test_more_memory_never_holds_fewer_tokens(name: str, kv_bytes: int, more: int, block_size: int) -> None:
    less = kv_cache_tokens(shape(name), kv_bytes, block_size=block_size)
    assert less % block_size == 0
    assert kv_cache_tokens(shape(name), kv_bytes + more, block_size=block_size) >= less
    assert less * shape(name).kv_bytes_per_token() <= kv_bytes


@given(st.sampled_from(sorted(PARAMETERS)), st.integers(0, 2**36))
def test_more_gpus_and_narrower_caches_never_hold_fewer_tokens(name: str, kv_bytes: int) -> None:
    found = [kv_cache_tokens(shape(name), kv_bytes, tensor_parallel=n) for n in (1, 2, 4, 8)]
    assert found == sorted(found)
    assert kv_cache_tokens(shape(name), kv_bytes, kv_dtype="fp8") >= found[0]


def test_no_memory_holds_nothing() -> None:
    assert kv_cache_tokens(shape(SMOL), -5) == 0
