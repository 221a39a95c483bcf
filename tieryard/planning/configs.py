"""Reads a config.json into a ModelShape: what it does not say is refused, or assumed aloud."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tieryard.errors import UserError
from tieryard.planning.quantization import of_config
from tieryard.planning.shapes import DTYPE_BYTES, Experts, Latent, ModelShape

_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "granite", "olmo2", "smollm3")
_MIXED = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")
_KNOWN = frozenset(_PLAIN + _MIXED)
"""Model types whose parameters follow from the config by the formulas of `shapes.py`."""

_QK_NORM = frozenset({"qwen3", "qwen3_moe", "gemma3_text"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})
_TIED_UNLESS_SAID = frozenset({"gemma", "gemma2", "gemma3_text"})
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_STATE_SPACE = ("mamba", "ssm", "linear_attention", "linear_attn", "rwkv", "hybrid_override_pattern", "attn_layer_")
"""Starts of keys of models that keep more, or something else, than keys and values."""

_STRETCHED = frozenset(
    {"yarn", "deepseek_yarn", "telechat3-yarn", "longrope", "su", "llama3", "deepseek_llama_scaling"}
)
"""Rope scalings of models whose `max_position_embeddings` is the stretched length already."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


def read_shape(config: dict[str, Any], *, name: str) -> ModelShape:
    """The shape that a config.json describes. Raises UserError for what cannot be planned, and says why."""
    try:
        return _read(config, name)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{name}: config.json has a value of a kind that is not planned here: {error}") from None


def _read(config: dict[str, Any], name: str) -> ModelShape:
    said: list[str] = []
    inner = config.get("text_config")
    text = config
    if isinstance(inner, dict):
        text = {**{k: config[k] for k in ("dtype", "torch_dtype", "tie_word_embeddings") if k in config}, **inner}
        said.append("only the language part is counted: what else it has, such as a vision part, comes on top")
    kind = str(text.get("model_type") or config.get("model_type") or "unknown")
    _refuse_other_memories(text, kind, name)
    experts = _experts(text, kind, name)
    latent = _latent(text, name)
    if kind not in _KNOWN:
        said.append(f"model_type '{kind}' is not known here: taken for a plain decoder with gate, up and down layers")
    heads, hidden = _whole(text, "num_attention_heads", name), _whole(text, "hidden_size", name)
    kv_heads = _count(text, "num_key_value_heads")
    if not kv_heads and latent is None:
        said.append("no num_key_value_heads: taken for one for each attention head")
    said += _windows(text)
    bias = bool(text.get("attention_bias"))
    return ModelShape(
        name=name,
        model_type=kind,
        layers=_whole(text, "num_hidden_layers", name),
        hidden=hidden,
        intermediate=_whole(text, "intermediate_size", name),
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=_count(text, "head_dim") or _head_dim(hidden, heads, name),
        vocab=_whole(text, "vocab_size", name),
        longest_context=longest_context(text, name),
        dtype=_dtype(text, said),
        tied=bool(text.get("tie_word_embeddings", kind in _TIED_UNLESS_SAID)),
        qkv_bias=bias or kind in ("qwen2", "qwen2_moe"),
        output_bias=bias,
        qk_norm=kind in _QK_NORM,
        norms_per_layer=4 if kind in _FOUR_NORMS else 2,
        experts=experts,
        latent=latent,
        quantization=of_config(config) or of_config(text),
        assumptions=tuple(said),
    )


def longest_context(text: dict[str, Any], name: str) -> int:
    """The longest context the model itself allows, with its rope scaling, by vLLM's rule.

    A factor multiplies the stated maximum, but for the scalings whose models have it counted in already (yarn, llama3
    and longrope among them), and for Gemma 3. Source: vLLM 0.32 `config/model.py`, where `max_model_len` is derived.
    """
    stated = [length for key in _CONTEXT_KEYS if (length := _count(text, key))]
    if not stated:
        raise UserError(f"{name}: config.json has no max_position_embeddings, so its longest context is not known")
    longest, factor = min(stated), 1.0
    for rope in _ropes(text):
        if rope.get("rope_type", rope.get("type")) not in _STRETCHED:
            factor = float(rope.get("factor") or factor)
    if not math.isfinite(factor) or factor <= 0:
        raise ValueError(f"a rope factor of {factor}")
    return longest if "gemma3" in str(text.get("model_type")) else int(longest * factor)


def _ropes(text: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rope scaling of all layers, or one for each kind of layer."""
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    by_layer = rope and all(isinstance(value, dict) for value in rope.values())
    yield from rope.values() if by_layer else [rope]


def _whole(text: dict[str, Any], key: str, name: str) -> int:
    value = text.get(key)
    if type(value) is not int or value <= 0:
        raise UserError(
            f"{name}: config.json has no {key} (found {value!r}); it describes no decoder that can be planned"
        )
    return value


def _count(text: dict[str, Any], key: str) -> int:
    """What may be missing, or null: then 0."""
    value = text.get(key)
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is {value!r}, and no whole number from 0 up")
    return value


def _head_dim(hidden: int, heads: int, name: str) -> int:
    if hidden % heads:
        raise UserError(f"{name}: config.json has no head_dim, and {hidden} does not divide by {heads} heads")
    return hidden // heads


def _dtype(text: dict[str, Any], said: list[str]) -> str:
    stated = str(text.get("dtype") or text.get("torch_dtype") or "").removeprefix("torch.")
    if stated not in DTYPE_BYTES:
        said.append("no dtype: taken for bfloat16")
        return "bfloat16"
    if stated == "float32":
        said.append("stored as float32: counted at 16 bits, as vLLM serves it unless --dtype says otherwise")
        return "bfloat16"
    return stated


def _refuse_other_memories(text: dict[str, Any], kind: str, name: str) -> None:
    """State-space and linear-attention layers keep a state whose size the formulas here do not give."""
    kinds = {str(k) for k in text.get("layer_types") or []}
    odd = sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    odd += sorted(key for key in text if key.startswith(_STATE_SPACE) and text[key])
    if text.get("is_encoder_decoder"):
        odd.append("is_encoder_decoder")
    if odd:
        raise UserError(
            f"{name}: model_type '{kind}' keeps more than keys and values ({', '.join(odd[:3])}), which is not planned"
            " here; start it with a small max_model_len, read `Available KV cache memory` and `KV cache size` in"
            " vLLM's log, and go on from there"
        )


def _windows(text: dict[str, Any]) -> list[str]:
    sliding = "sliding_attention" in (text.get("layer_types") or [])
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    if not window and not sliding:
        return []
    return [
        f"layers with a sliding window ({window or 'of unknown length'}) are counted with their full context; vLLM may"
        " keep less for them, so more tokens can fit than is said here"
    ]


def _latent(text: dict[str, Any], name: str) -> Latent | None:
    if not text.get("kv_lora_rank"):
        return None
    return Latent(
        query_rank=_count(text, "q_lora_rank") or None,
        kv_rank=_whole(text, "kv_lora_rank", name),
        nope_head_dim=_whole(text, "qk_nope_head_dim", name),
        rope_head_dim=_whole(text, "qk_rope_head_dim", name),
        value_head_dim=_whole(text, "v_head_dim", name),
    )


def _experts(text: dict[str, Any], kind: str, name: str) -> Experts | None:
    count = next((n for key in _EXPERT_COUNTS if (n := _count(text, key))), 0)
    if count <= 1:
        return None
    if kind not in _KNOWN:
        raise UserError(
            f"{name}: model_type '{kind}' has experts, and how they are laid out is not known here; its layout would"
            " be a guess"
        )
    layers = _whole(text, "num_hidden_layers", name)
    dense, first = set(text.get("mlp_only_layers") or []), _count(text, "first_k_dense_replace")
    step = _count(text, "decoder_sparse_step") or _count(text, "moe_layer_freq") or 1
    intermediate = _count(text, "moe_intermediate_size") or _whole(text, "intermediate_size", name)
    shared = _count(text, "shared_expert_intermediate_size")
    return Experts(
        count=count,
        intermediate=intermediate,
        shared_intermediate=shared or _count(text, "n_shared_experts") * intermediate,
        layers=sum(1 for i in range(first, layers) if i not in dense and (i + 1) % step == 0),
        router_bias=kind in ("deepseek_v3", "gpt_oss"),
    )
