"""What fits: a GPU's memory, less everything that is not KV cache, is KV cache; the rest of a plan follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from tieryard.errors import UserError
from tieryard.planning.gpus import GIB, Gpu
from tieryard.planning.models import Model
from tieryard.planning.quantization import CHOICES
from tieryard.planning.shapes import kv_cache_tokens

DEFAULT_UTILIZATION = 0.92
"""vLLM 0.32's own `gpu_memory_utilization`."""

_TENSOR_PARALLEL = (1, 2, 4, 8)
"""GPUs of one host that are tried, fewest first."""

_SAMPLER_COPIES = 10
_LOGIT_BYTES = 4
_GRAPHS = round(0.75 * GIB)
_OTHER_ALONE, _OTHER_TOGETHER = round(0.15 * GIB), round(0.6 * GIB)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the deployment is to be, besides its model and its GPU. None: vLLM's own default on that GPU.

    `context` is a usual request, prompt and completion together, in tokens: concurrency is counted at that length.
    """

    context: int = 4096
    max_model_len: int | None = None
    utilization: float = DEFAULT_UTILIZATION
    kv_dtype: str = "auto"
    block_size: int = 16
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    enforce_eager: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """One GPU's memory, in bytes; the lines add up: memory × utilization = weights + … + KV cache."""

    memory: int
    usable: int
    weights: int
    activations: int
    graphs: int
    other: int

    @property
    def kv(self) -> int:
        """What is left for the KV cache; negative when the rest is too much already."""
        return self.usable - self.weights - self.activations - self.graphs - self.other


@dataclass(frozen=True, slots=True)
class Plan:
    """A model on `tensor_parallel` GPUs. `gpu` and `budget` are None when the KV memory was given outright."""

    model: Model
    wish: Wish
    gpu: Gpu | None
    tensor_parallel: int
    budget: Budget | None
    kv_bytes: int
    max_num_batched_tokens: int | None
    max_num_seqs: int | None
    fault: str | None = None
    """Why vLLM would refuse so many GPUs for this model, whatever their memory."""

    @property
    def kv_bytes_per_token(self) -> int:
        """On each GPU."""
        return self.model.shape.kv_bytes_per_token(tensor_parallel=self.tensor_parallel, kv_dtype=self.wish.kv_dtype)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds, of all requests together."""
        return kv_cache_tokens(
            self.model.shape,
            self.kv_bytes,
            block_size=self.wish.block_size,
            tensor_parallel=self.tensor_parallel,
            kv_dtype=self.wish.kv_dtype,
        )

    @property
    def largest_max_model_len(self) -> int:
        """The longest context that fits: the model's own, or what the cache holds less the block vLLM keeps back."""
        return min(self.model.shape.longest_context, max(0, self.kv_tokens - self.wish.block_size))

    @property
    def max_model_len(self) -> int:
        """What the deployment would be started with."""
        return self.wish.max_model_len or self.largest_max_model_len

    @property
    def context(self) -> int:
        """A usual request; none is longer than the model, or the wished limit, allows."""
        longest = self.wish.max_model_len or self.model.shape.longest_context
        return min(self.wish.context, longest)

    @property
    def fits(self) -> bool:
        return self.fault is None and self.largest_max_model_len >= (self.wish.max_model_len or self.context)

    def concurrency(self, tokens: int) -> float:
        """How many requests of so many tokens the cache holds at once, each in whole blocks: vLLM's own figure."""
        blocks = -(-tokens // self.wish.block_size)
        return self.kv_tokens / (blocks * self.wish.block_size)

    @property
    def max_in_flight(self) -> int:
        """Usual requests that fit at once, and no more than vLLM runs together."""
        together = int(self.concurrency(self.context))
        return min(together, self.max_num_seqs) if self.max_num_seqs is not None else together


def plan_on(model: Model, gpu: Gpu, wish: Wish, *, tensor_parallel: int) -> Plan:
    """The plan for so many of these GPUs, whether it fits or not. Raises UserError for a wish that cannot be."""
    _check(wish, model)
    batched = wish.max_num_batched_tokens or gpu.max_num_batched_tokens
    together = wish.max_num_seqs or min(gpu.max_num_seqs, batched)  # vLLM's default gives way, a wish does not
    _check_step(batched, together)
    budget = Budget(
        memory=gpu.memory_bytes,
        usable=int(gpu.memory_bytes * wish.utilization),
        weights=-(-model.weight_bytes // tensor_parallel),
        activations=activation_bytes(model, batched, together, tensor_parallel=tensor_parallel),
        graphs=0 if wish.enforce_eager else _GRAPHS,
        other=_OTHER_ALONE if tensor_parallel == 1 else _OTHER_TOGETHER,
    )
    fault = model.shape.tensor_parallel_fault(tensor_parallel)
    return Plan(model, wish, gpu, tensor_parallel, budget, budget.kv, batched, together, fault)


def smallest_plan(model: Model, gpu: Gpu, wish: Wish) -> Plan:
    """The fewest GPUs that fit the wish; when none do, the most that the model can be split over."""
    tried = [plan_on(model, gpu, wish, tensor_parallel=n) for n in _TENSOR_PARALLEL]
    return next((p for p in tried if p.fits), [p for p in tried if p.fault is None][-1])


def plan_kv_memory(model: Model, kv_bytes: int, wish: Wish, *, tensor_parallel: int = 1) -> Plan:
    """The plan for so much KV cache on each device, whatever the device: a CPU, or a figure of vLLM's own log."""
    _check(wish, model)
    fault = model.shape.tensor_parallel_fault(tensor_parallel)
    batched, together = wish.max_num_batched_tokens, wish.max_num_seqs
    if batched is not None and together is not None:
        _check_step(batched, together)
    return Plan(model, wish, None, tensor_parallel, None, kv_bytes, batched, together, fault)


def activation_bytes(model: Model, batched_tokens: int, max_num_seqs: int, *, tensor_parallel: int) -> int:
    """The most that one step needs beside weights and cache: an estimate, the larger of two peaks.

    Sampling: 10 × max_num_seqs × vocabulary × 4 bytes, on every GPU. vLLM's profiling run samples for `max_num_seqs`
    requests at once, and sorts and filters 32-bit logits. The 10 is fitted to published starts on an H100 (1,024
    requests; Llama 3.1 8B 4.76 GiB, Llama 3.3 70B on two 4.84, Qwen3 0.6B 5.56, gpt-oss 20B 7.38: factors of 9.6 to
    9.9; llm-d-benchmark, `empirical-vllm-memory-results.md`), and agrees with 1.26 GiB for Llama 3 8B at 256 requests
    (vLLM pull request 10511).

    Forward pass: tokens of a step × 2 bytes × (4 × hidden + 3 × intermediate / GPUs): residual, input and output of a
    block, and gate, up and their product. Smaller than sampling unless a step is made long.
    """
    shape = model.shape
    sampling = _SAMPLER_COPIES * max_num_seqs * shape.vocab * _LOGIT_BYTES
    forward = batched_tokens * 2 * (4 * shape.hidden + 3 * shape.intermediate // tensor_parallel)
    return max(sampling, forward)


def ways_out(plan: Plan) -> list[str]:
    """What would make a plan fit that does not, each checked by the same sums. Empty when nothing here does."""
    if plan.fits or plan.gpu is None:
        return []
    name, gpus = plan.gpu.name, plan.tensor_parallel
    more = [plan_on(plan.model, plan.gpu, plan.wish, tensor_parallel=n) for n in _TENSOR_PARALLEL if n > gpus]
    found = [f"{p.tensor_parallel} × {name}" for p in more if p.fits][:1]
    for kind in ("fp8", "awq") if plan.model.shape.quantization is None else ():
        model = plan.model.quantized(CHOICES[kind])
        if plan_on(model, plan.gpu, plan.wish, tensor_parallel=gpus).fits:
            found.append(f"--quantization {kind} on {gpus} × {name}")
    if not plan.wish.kv_dtype.startswith("fp8"):
        wish = replace(plan.wish, kv_dtype="fp8")
        if plan_on(plan.model, plan.gpu, wish, tensor_parallel=gpus).fits:
            found.append(f"--kv-cache-dtype fp8 on {gpus} × {name}")
    if (plan.max_num_seqs or 0) > 64:
        wish = replace(plan.wish, max_num_seqs=64)
        if plan_on(plan.model, plan.gpu, wish, tensor_parallel=gpus).fits:
            found.append(f"--max-num-seqs 64 on {gpus} × {name}")
    if plan.largest_max_model_len > 0 and plan.fault is None:
        found.append(f"requests of {plan.largest_max_model_len:,} tokens at most")
    return found


def cost_usd_per_1k(*, rent_usd_per_h: Decimal, throughput_tps: Decimal) -> Decimal:
    """USD for 1,000 tokens: rent an hour of all GPUs / 3,600 / tokens a second × 1,000. Raises UserError for 0."""
    if throughput_tps <= 0:
        raise UserError(f"{throughput_tps} tokens a second is no throughput", param="--throughput")
    return rent_usd_per_h * 1000 / (3600 * throughput_tps)


def _check(wish: Wish, model: Model) -> None:
    if not 0 < wish.utilization <= 1:
        raise UserError(f"{wish.utilization} is not above 0 and at most 1", param="--gpu-memory-utilization")
    longest = model.shape.longest_context
    if wish.max_model_len is not None and wish.max_model_len > longest:
        raise UserError(
            f"{wish.max_model_len:,} is more than the {longest:,} that {model.shape.name} allows; vLLM refuses it",
            param="--max-model-len",
        )


def _check_step(batched_tokens: int, max_num_seqs: int) -> None:
    """A step gives each request one token at least."""
    if batched_tokens < max_num_seqs:
        raise UserError(
            f"max_num_batched_tokens ({batched_tokens:,}) is below max_num_seqs ({max_num_seqs:,}), which vLLM refuses;"
            " raise --max-num-batched-tokens or lower --max-num-seqs",
            param="--max-num-seqs",
        )
