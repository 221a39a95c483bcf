"""A plan as it is typed: flags of `vllm serve`, and the catalog's words for the same."""

from __future__ import annotations

import shlex

from tieryard.planning.fit import Plan
from tieryard.planning.models import Model
from tieryard.planning.quantization import ON_LOAD

Flag = int | float | str | bool


def stand_in(model: Model) -> str | None:
    """In words, the checkpoint to serve in the place of the one that was named; None where that one will do, because
    nothing was overridden, or vLLM quantizes it so while it loads it."""
    if not model.overridden:
        return None
    quantization = model.shape.quantization
    if quantization is not None and quantization.name in ON_LOAD:
        return None
    return f"{quantization.name if quantization else '16-bit'} checkpoint of {model.shape.name}"


def flags(plan: Plan, *, revision: str | None = None) -> dict[str, Flag]:
    """What vLLM is to be told, in its own words; its defaults are spelt out where the sums rest on them. The revision
    is that of the named checkpoint, and left out where another has to be served."""
    found: dict[str, Flag] = {"max_model_len": plan.max_model_len}
    if plan.gpu is None:
        found["kv_cache_memory_bytes"] = plan.kv_bytes
    else:
        found["gpu_memory_utilization"] = plan.wish.utilization
    if plan.tensor_parallel > 1:
        found["tensor_parallel_size"] = plan.tensor_parallel
    if plan.max_num_batched_tokens is not None:
        found["max_num_batched_tokens"] = plan.max_num_batched_tokens
    if plan.max_num_seqs is not None:
        found["max_num_seqs"] = plan.max_num_seqs
    quantization = plan.model.shape.quantization
    if plan.model.overridden and quantization is not None and quantization.name in ON_LOAD:
        found["quantization"] = quantization.name
    if plan.wish.kv_dtype != "auto":
        found["kv_cache_dtype"] = plan.wish.kv_dtype
    if plan.wish.enforce_eager:
        found["enforce_eager"] = True
    if revision is not None and stand_in(plan.model) is None:
        found["revision"] = revision
    return found


def serve_line(plan: Plan, *, revision: str | None = None) -> str:
    """The same for a shell."""
    wanted = stand_in(plan.model)
    words = ["vllm", "serve", f"<{wanted}>" if wanted else plan.model.shape.name]
    for name, value in flags(plan, revision=revision).items():
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def catalog_fragment(plan: Plan, *, revision: str | None = None) -> str:
    """The deployment's lines that follow from the plan; name, tokenizer and price are the author's to write."""
    wanted, kept = stand_in(plan.model), flags(plan)
    shown = ", ".join(f"{name}: {_yaml(value)}" for name, value in kept.items())
    return "\n".join(
        (
            f"model: …  # the {wanted}" if wanted else f"model: {plan.model.shape.name}",
            f"revision: {(not wanted and revision) or '…  # the commit to pin'}",
            f"size_class: {size_class(plan.model.shape.parameters)}",
            "engine:",
            "  kind: vllm_server",
            f"  flags: {{{shown}}}",
            f"context_limit: {plan.max_model_len}",
            f"max_in_flight: {plan.max_in_flight}",
        )
    )


def size_class(parameters: int) -> str:
    """The catalog's word, by whole billions: an 8B model may have 8.03 of them."""
    billions = round(parameters / 1e9)
    if billions <= 8:
        return "small"
    return "large" if billions >= 70 else "medium"


def _yaml(value: Flag) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
