"""What a model takes: its shape, and from that parameters, bytes of weights and bytes of KV cache per token."""

from __future__ import annotations

from dataclasses import dataclass

from tieryard.errors import UserError
from tieryard.planning.quantization import Quantization

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts, in `layers` of the model's layers; the others are dense."""

    count: int
    intermediate: int
    shared_intermediate: int
    layers: int
    router_bias: bool = False


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek): one compressed vector a token and layer instead of keys and values."""

    query_rank: int | None
    kv_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder, as its config.json describes it. `assumptions` is what the config left open, in plain words."""

    name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    longest_context: int
    dtype: str
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2
    experts: Experts | None = None
    latent: Latent | None = None
    quantization: Quantization | None = None
    assumptions: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """All of them, as the checkpoint's model card counts them."""
        return self._wide_parameters + self._dense_parameters + self._expert_parameters

    @property
    def weight_bytes(self) -> int:
        """Linear layers at the quantization's bits, everything else at 16 bits.

        Raises UserError when the quantization's bits are not known here.
        """
        wide = DTYPE_BYTES[self.dtype]
        if self.quantization is None:
            return self.parameters * wide
        if self.quantization.bits is None:
            raise UserError(
                f"{self.name}: its quantization '{self.quantization.name}' is not known here, and its files are not at"
                " hand to be counted; plan for a directory that holds the safetensors files"
            )
        narrow = self._expert_parameters
        kept = self._wide_parameters
        if self.quantization.experts_only:
            kept += self._dense_parameters
        else:
            narrow += self._dense_parameters
        return kept * wide + round(narrow * self.quantization.bits / 8)

    def kv_bytes_per_token(self, *, tensor_parallel: int = 1, kv_dtype: str = "auto") -> int:
        """Bytes of KV cache that one token takes on each GPU.

        2 (key, value) × layers × KV heads × head size × bytes of an element. Tensor parallelism gives each GPU its
        share of the KV heads, and a copy where there are fewer heads than GPUs. Latent attention keeps
        layers × (kv_lora_rank + qk_rope_head_dim) elements, on every GPU.
        Source: vLLM's AttentionSpec and MLAAttentionSpec (`page_size_bytes` over `block_size`).
        """
        element = self.kv_element_bytes(kv_dtype)
        if self.latent is not None:
            return self.layers * (self.latent.kv_rank + self.latent.rope_head_dim) * element
        heads = max(1, self.kv_heads // tensor_parallel)
        return 2 * self.layers * heads * self.head_dim * element

    def kv_element_bytes(self, kv_dtype: str) -> int:
        """`auto` is the model's own dtype, any `fp8…` one byte. Raises UserError for another word."""
        if kv_dtype == "auto":
            return DTYPE_BYTES[self.dtype]
        if kv_dtype.startswith("fp8"):
            return 1
        if kv_dtype in DTYPE_BYTES:
            return DTYPE_BYTES[kv_dtype]
        raise UserError(f"'{kv_dtype}' is none of auto, fp8, {', '.join(DTYPE_BYTES)}", param="--kv-cache-dtype")

    def tensor_parallel_fault(self, gpus: int) -> str | None:
        """Why vLLM would refuse this model on so many GPUs, or None."""
        if self.heads % gpus:
            return f"{self.heads} attention heads do not divide by {gpus}"
        if self.latent is None and self.kv_heads % gpus and gpus % self.kv_heads:
            return f"{self.kv_heads} KV heads neither divide by {gpus} nor into it"
        split = self.experts.intermediate if self.experts else self.intermediate
        if split % gpus:
            return f"an intermediate size of {split:,} does not divide by {gpus}"
        group = self.quantization.group_size if self.quantization else None
        if group and (split // gpus) % group:
            return (
                f"an intermediate size of {split:,} over {gpus} GPUs is no multiple of the quantization group {group}"
            )
        return None

    @property
    def _wide_parameters(self) -> int:
        """What no quantization touches: embeddings, output head, norms, biases and the experts' router."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        per_layer = self.norms_per_layer * self.hidden
        if self.qk_norm:
            per_layer += 2 * self.head_dim
        if self.qkv_bias:
            per_layer += (self.heads + 2 * self.kv_heads) * self.head_dim
        if self.output_bias:
            per_layer += self.hidden
        if self.latent is not None:
            per_layer += self.latent.kv_rank + (self.latent.query_rank or 0)
        routers = 0
        if self.experts is not None:
            routers = self.experts.layers * self.experts.count * (self.hidden + int(self.experts.router_bias))
        return embeddings + self.layers * per_layer + self.hidden + routers

    @property
    def _dense_parameters(self) -> int:
        """Attention in every layer, and the feed-forward part (gate, up, down) of the layers without experts."""
        dense_layers = self.layers - (self.experts.layers if self.experts else 0)
        shared = self.experts.layers * 3 * self.hidden * self.experts.shared_intermediate if self.experts else 0
        return self.layers * self._attention_parameters + dense_layers * 3 * self.hidden * self.intermediate + shared

    @property
    def _expert_parameters(self) -> int:
        if self.experts is None:
            return 0
        return self.experts.layers * self.experts.count * 3 * self.hidden * self.experts.intermediate

    @property
    def _attention_parameters(self) -> int:
        if self.latent is None:
            return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim  # q and o, k and v
        rank, query = self.latent.kv_rank, self.heads * (self.latent.nope_head_dim + self.latent.rope_head_dim)
        into = self.hidden * query
        if self.latent.query_rank is not None:
            into = self.latent.query_rank * (self.hidden + query)
        compressed = self.hidden * (rank + self.latent.rope_head_dim)
        expanded = rank * self.heads * (self.latent.nope_head_dim + self.latent.value_head_dim)
        return into + compressed + expanded + self.heads * self.latent.value_head_dim * self.hidden


def kv_cache_tokens(
    shape: ModelShape, kv_bytes: int, *, block_size: int = 16, tensor_parallel: int = 1, kv_dtype: str = "auto"
) -> int:
    """Tokens that `kv_bytes` of KV cache on each GPU hold: whole blocks, as vLLM hands them out.

    The figure to compare with vLLM's own log line, `GPU KV cache size: … tokens`. Block sizes there: 16 on a GPU, 128
    on a CPU.
    """
    per_block = block_size * shape.kv_bytes_per_token(tensor_parallel=tensor_parallel, kv_dtype=kv_dtype)
    return max(0, kv_bytes) // per_block * block_size
