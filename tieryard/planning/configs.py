"""Reads a config.json into a ModelShape: what it does not say is refused, or assumed aloud."""

from __future__ import annotations

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

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


def read_shape(config: dict[str, Any], *, name: str) -> ModelShape:
    """The shape that a config.json describes. Raises UserError for what cannot be planned, and says why."""
    try:
        return _read(config, name)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
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
    if not text.get("num_key_value_heads") and latent is None:
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
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or _head_dim(hidden, heads, name)),
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

    A yarn factor multiplies `original_max_position_embeddings`; linear and dynamic ones multiply the stated maximum;
    the others have it counted in already. Source: vLLM `config/model.py`, where `max_model_len` is derived.
    """
    stated = [int(text[key]) for key in _CONTEXT_KEYS if text.get(key)]
    if not stated:
        raise UserError(f"{name}: config.json has no max_position_embeddings, so its longest context is not known")
    longest = min(stated)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type"))
    factor = float(rope.get("factor") or 1)
    if kind in ("yarn", "deepseek_yarn"):
        return int(int(rope.get("original_max_position_embeddings") or longest) * factor)
    return int(longest * factor) if kind in ("linear", "dynamic") else longest


def _whole(text: dict[str, Any], key: str, name: str) -> int:
    value = text.get(key)
    if not isinstance(value, int) or value <= 0:
        raise UserError(
            f"{name}: config.json has no {key} (found {value!r}); it describes no decoder that can be planned"
        )
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
        query_rank=int(text["q_lora_rank"]) if text.get("q_lora_rank") else None,
        kv_rank=_whole(text, "kv_lora_rank", name),
        nope_head_dim=_whole(text, "qk_nope_head_dim", name),
        rope_head_dim=_whole(text, "qk_rope_head_dim", name),
        value_head_dim=_whole(text, "v_head_dim", name),
    )


def _experts(text: dict[str, Any], kind: str, name: str) -> Experts | None:
    count = next((int(text[key]) for key in _EXPERT_COUNTS if text.get(key)), 0)
    if count <= 1:
        return None
    if kind not in _KNOWN:
        raise UserError(
            f"{name}: model_type '{kind}' has experts, and how they are laid out is not known here; its layout would"
            " be a guess"
        )
    layers = _whole(text, "num_hidden_layers", name)
    dense = set(text.get("mlp_only_layers") or []) | set(range(int(text.get("first_k_dense_replace") or 0)))
    step = int(text.get("decoder_sparse_step") or text.get("moe_layer_freq") or 1)
    intermediate = int(text.get("moe_intermediate_size") or _whole(text, "intermediate_size", name))
    shared = int(text.get("shared_expert_intermediate_size") or 0)
    return Experts(
        count=count,
        intermediate=intermediate,
        shared_intermediate=shared or int(text.get("n_shared_experts") or 0) * intermediate,
        layers=sum(1 for i in range(layers) if i not in dense and (i + 1) % step == 0),
        router_bias=kind in ("deepseek_v3", "gpt_oss"),
    )
