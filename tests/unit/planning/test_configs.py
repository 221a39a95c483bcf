"""A config.json is read as it stands; what it does not say is refused, or assumed aloud."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tieryard.errors import UserError
from tieryard.planning.configs import read_shape

PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}


def test_a_plain_config_needs_no_assumption() -> None:
    shape = read_shape(PLAIN, name="m")
    assert (shape.head_dim, shape.kv_heads, shape.longest_context, shape.tied) == (32, 2, 2048, False)
    assert shape.assumptions == ()


def test_an_explicit_head_dim_wins() -> None:
    assert read_shape({**PLAIN, "head_dim": 64}, name="m").head_dim == 64


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_missing_field_is_named(missing: str) -> None:
    config = {k: v for k, v in PLAIN.items() if k != missing}
    with pytest.raises(UserError, match=f"m: config.json has no {missing}"):
        read_shape(config, name="m")


def test_a_missing_longest_context_is_named() -> None:
    with pytest.raises(UserError, match="max_position_embeddings"):
        read_shape({k: v for k, v in PLAIN.items() if k != "max_position_embeddings"}, name="m")


def test_a_head_size_is_not_rounded() -> None:
    with pytest.raises(UserError, match="does not divide by 7"):
        read_shape({**PLAIN, "num_attention_heads": 7}, name="m")


@pytest.mark.parametrize(
    "more",
    [
        {"num_key_value_heads": [2, 4]},
        {"num_key_value_heads": -2},
        {"head_dim": "wide"},
        {"head_dim": -4},
        {"head_dim": True},
        {"max_position_embeddings": 2048.5},
        {"model_type": "mixtral", "num_local_experts": -8},
        {"model_type": "mixtral", "num_local_experts": 8, "first_k_dense_replace": 0.5},
        {"rope_scaling": "twice"},
        {"rope_scaling": {"type": "linear", "factor": -2}},
        {"rope_scaling": {"type": "linear", "factor": "inf"}},
        {"rope_scaling": {"type": "linear", "factor": 1e308}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
    ],
)
def test_a_value_of_another_kind_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"m: config\.json has a value of a kind"):
        read_shape({**PLAIN, **more}, name="m")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model_type": "brandnew"}, "'brandnew' is not known here"),
        ({"num_key_value_heads": None}, "one for each attention head"),
        ({"dtype": None}, "no dtype"),
        ({"dtype": "float32"}, "counted at 16 bits"),
        ({"sliding_window": 128}, r"sliding window \(128\)"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "of unknown length"),
    ],
)
def test_what_is_assumed_is_said(more: dict[str, Any], said: str) -> None:
    [assumption] = read_shape({**PLAIN, **more}, name="m").assumptions
    assert re.search(said, assumption)


def test_a_window_that_is_switched_off_is_none() -> None:
    config = {**PLAIN, "model_type": "qwen2", "sliding_window": 128, "use_sliding_window": False}
    assert read_shape(config, name="m").assumptions == ()


@pytest.mark.parametrize(
    "more",
    [
        {"layer_types": ["linear_attention", "full_attention"]},
        {"mamba_d_state": 128},
        {"ssm_state_size": 16},
        {"is_encoder_decoder": True},
    ],
)
def test_models_that_keep_more_than_keys_and_values_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="keeps more than keys and values"):
        read_shape({**PLAIN, **more}, name="m")


def test_experts_of_an_unknown_layout_are_refused() -> None:
    with pytest.raises(UserError, match="would be a guess"):
        read_shape({**PLAIN, "model_type": "brandnew", "num_experts": 8}, name="m")


def test_the_language_part_of_a_multimodal_config() -> None:
    shape = read_shape({"model_type": "seer", "dtype": "float16", "text_config": PLAIN | {"dtype": None}}, name="m")
    assert (shape.model_type, shape.layers) == ("llama", 4)
    assert any("vision" in said for said in shape.assumptions)


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 2048),
        ({"type": "deepseek_yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "su", "factor": 4.0}, 2048),
        ({"rope_type": "longrope", "factor": 4.0}, 2048),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}, 2048),
        ({"type": "linear", "factor": 2.0}, 4096),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "ntk", "factor": 2.0}, 4096),
        ({"rope_type": "default"}, 2048),
        (
            {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}},
            16384,
        ),
        (None, 2048),
    ],
)
def test_rope_scaling_as_vllm_counts_it(rope: dict[str, Any] | None, longest: int) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        assert read_shape({**PLAIN, key: rope}, name="m").longest_context == longest


def test_gemma_3_states_its_stretched_context() -> None:
    config = {**PLAIN, "model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert read_shape(config, name="m").longest_context == 2048


def test_only_some_layers_have_experts() -> None:
    config = {**PLAIN, "model_type": "qwen3_moe", "num_experts": 8, "moe_intermediate_size": 64}
    shape = read_shape({**config, "mlp_only_layers": [0]}, name="m")
    assert shape.experts is not None
    assert (shape.experts.layers, shape.experts.intermediate) == (3, 64)
