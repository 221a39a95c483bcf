"""`tieryard plan`: what of a model fits a GPU, with which flags, and what that costs."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from rich.console import Console

from tieryard.cli.printing import JsonOption, print_json
from tieryard.cli.tables import printable, table
from tieryard.errors import UserError
from tieryard.planning import (
    DEFAULT_UTILIZATION,
    GIB,
    Gpu,
    Model,
    Plan,
    Wish,
    chosen,
    cost_usd_per_1k,
    find_gpus,
    find_model,
    plan_kv_memory,
    plan_on,
    smallest_plan,
    ways_out,
)
from tieryard.planning.flags import catalog_fragment, flags, serve_line, stand_in

_LOWER = (
    "Lowering gpu_memory_utilization shrinks the KV cache; it does not make a longer context fit. More GPUs, an fp8 KV"
    " cache, quantized weights or a lower max_num_seqs do."
)
_ESTIMATES = (
    "Activations, graphs and the rest are estimates. vLLM's log has the real figure: give `Available KV cache memory`"
    " to --kv-memory, and the plan rests on it."
)


def _money(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f"'{text}' is no number") from None
    if not value.is_finite() or value <= 0:
        raise typer.BadParameter("must be above 0")
    return value


def _gib_of(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no number") from None
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"{text} is no size in GiB")
    return value


def plan(
    model: Annotated[str, typer.Argument(help="A directory with a config.json, that file, or a Hugging Face name.")],
    gpu: Annotated[
        list[str] | None, typer.Option(help="A10G, L40S, A100-40, A100-80, H100, H200, all, or 15.8GiB; repeat it.")
    ] = None,
    kv_memory: Annotated[
        float | None,
        typer.Option(parser=_gib_of, metavar="GIB", help="Instead of --gpu: KV cache on each device, such as a CPU."),
    ] = None,
    tensor_parallel: Annotated[int | None, typer.Option(min=1, help="GPUs; the fewest that fit without it.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Plan as if quantized: awq, gptq, int8, fp8, bitsandbytes, none.")
    ] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, or fp8 for half the KV cache.")] = "auto",
    context: Annotated[int, typer.Option(min=1, help="Tokens of a usual request, prompt and completion.")] = 4096,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="The longest that fits without it.")] = None,
    gpu_memory_utilization: float = DEFAULT_UTILIZATION,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, help="vLLM's default without it.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="vLLM's default without it.")] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="Without CUDA graphs.")] = False,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens: 16 on a GPU, 128 on a CPU.")] = 16,
    revision: Annotated[str | None, typer.Option(help="Commit or tag on the hub.")] = None,
    rent: Annotated[Decimal | None, typer.Option(parser=_money, help="USD an hour, for one GPU.")] = None,
    throughput: Annotated[
        Decimal | None, typer.Option(parser=_money, help="Tokens a second, as measured on all the GPUs together.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sizes a deployment: weights, KV cache, context, concurrency, flags and cost. Exit code 1 when nothing fits."""
    wish = Wish(
        context=context,
        max_model_len=max_model_len,
        utilization=gpu_memory_utilization,
        kv_dtype=kv_cache_dtype,
        block_size=block_size,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        enforce_eager=enforce_eager,
    )
    _refuse_halves(gpu, kv_memory, rent, throughput)
    found = find_model(model, revision=revision)
    if quantization is not None:
        found = _requantized(found, quantization)
    plans = _plans(found, wish, find_gpus(gpu or []), kv_memory, tensor_parallel)
    if len(plans) > 1 and (rent is not None or throughput is not None):
        raise UserError("rent and throughput are those of one GPU; give a single --gpu with them", param="--rent")
    _print(found, plans, revision, rent, throughput, as_json=as_json)
    if not any(p.fits for p in plans):
        raise typer.Exit(1)


def _refuse_halves(
    gpu: list[str] | None, kv_memory_gib: float | None, rent: Decimal | None, throughput: Decimal | None
) -> None:
    """Raises UserError where an option lacks what it takes, or has it twice."""
    if (gpu is None) == (kv_memory_gib is None):
        raise UserError("name a GPU with --gpu, or give the KV cache's GiB with --kv-memory", param="--gpu")
    if throughput is not None and rent is None:
        raise UserError("a cost takes both --throughput and --rent; give the rent too", param="--throughput")


def _print(
    model: Model,
    plans: list[Plan],
    revision: str | None,
    rent: Decimal | None,
    throughput: Decimal | None,
    *,
    as_json: bool,
) -> None:
    if as_json:
        shown = [_as_dict(p, revision, rent, throughput) for p in plans]
        print_json(shown[0] if len(shown) == 1 else shown)
    elif len(plans) > 1:
        _show_all(Console(), model, plans)
    else:
        _show(Console(), plans[0], revision, rent, throughput)


def _requantized(model: Model, word: str) -> Model:
    """As if the 16-bit checkpoint were quantized so. Raises UserError for one that is quantized otherwise already."""
    wanted, has = chosen(word), model.shape.quantization
    if wanted is None and has is None:
        return model
    if wanted is not None and has is not None:
        raise UserError(
            f"{model.shape.name} is {has.name} already; plan for the 16-bit checkpoint", param="--quantization"
        )
    return model.quantized(wanted)


def _plans(
    model: Model, wish: Wish, gpus: list[Gpu], kv_memory_gib: float | None, tensor_parallel: int | None
) -> list[Plan]:
    if kv_memory_gib is not None:
        return [plan_kv_memory(model, round(kv_memory_gib * GIB), wish, tensor_parallel=tensor_parallel or 1)]
    if tensor_parallel is None:
        return [smallest_plan(model, gpu, wish) for gpu in gpus]
    return [plan_on(model, gpu, wish, tensor_parallel=tensor_parallel) for gpu in gpus]


def _show(console: Console, made: Plan, revision: str | None, rent: Decimal | None, throughput: Decimal | None) -> None:
    shape = made.model.shape
    where = f"{made.tensor_parallel} × {made.gpu.name}" if made.gpu else f"{_gib(made.kv_bytes)} GiB of KV cache"
    _say(console, f"{shape.name} on {where}", style="bold")
    _say(console, f"shape from {made.model.source}\n")
    console.print(_memory(made))
    console.print()
    if made.fits:
        console.print(_what_fits(made, rent, throughput))
        console.print()
        console.rule("vLLM", align="left")
        _say(console, serve_line(made, revision=revision))
        console.rule("catalog", align="left")
        _say(console, catalog_fragment(made, revision=revision))
    else:
        _say(console, _why_not(made), style="red")
        for way in ways_out(made):
            _say(console, f"fits: {way}")
    notes = _notes(made)
    if notes:
        console.rule("notes", align="left")
    for note in notes:
        console.print(f"– {printable(note)}", markup=False, highlight=False)


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True, style=style)


def _memory(made: Plan) -> Any:
    shape, budget = made.model.shape, made.budget
    stored = f", {shape.quantization.name}" if shape.quantization else f", {shape.dtype}"
    millions = shape.parameters / 1e6
    count = f"{millions / 1000:,.2f}B" if millions >= 1000 else f"{millions:,.0f}M"
    weights = f"{count} parameters{stored}, {made.model.weights_from}"
    per_token = f"{made.kv_bytes_per_token:,} bytes a token: {made.kv_tokens:,} tokens"
    if budget is None or made.gpu is None:
        rows = [
            ("weights", _gib(made.model.weight_bytes // made.tensor_parallel), weights),
            ("KV cache", _gib(made.kv_bytes), per_token),
        ]
    else:
        step = f"estimate: {made.max_num_batched_tokens:,} tokens a step, {made.max_num_seqs:,} requests"
        rows = [
            (
                made.gpu.name,
                _gib(budget.memory),
                f"sold as {made.gpu.sold_as}" if made.gpu.sold_as[0].isdigit() else "",
            ),
            (f"× {made.wish.utilization:g}", _gib(budget.usable), "gpu_memory_utilization"),
            ("– weights", _gib(budget.weights), weights),
            ("– activations", _gib(budget.activations), step),
            ("– CUDA graphs", _gib(budget.graphs), "allowance" if budget.graphs else "enforce_eager"),
            ("– CUDA, NCCL", _gib(budget.other), "allowance"),
            ("= KV cache", _gib(budget.kv), per_token),
        ]
    return table(("each GPU" if made.gpu else "each device", "GiB", "from"), rows, right=("GiB",), folds=("from",))


def _what_fits(made: Plan, rent: Decimal | None, throughput: Decimal | None) -> Any:
    longest = made.model.shape.longest_context
    rows = [
        ("longest context", f"{made.largest_max_model_len:,}", f"tokens, of the {longest:,} that the model allows"),
        (
            "max_model_len",
            f"{made.max_model_len:,}",
            f"{made.concurrency(made.max_model_len):.2f} such requests at once",
        ),
        ("max_in_flight", f"{made.max_in_flight:,}", f"requests of {made.context:,} tokens"),
    ]
    if rent is not None:
        rows.append(("rent", f"{rent * made.tensor_parallel}", "USD an hour, all GPUs"))
    cost = _cost(made, rent, throughput)
    if cost is not None:
        rows.append(("cost per 1k tokens", f"{cost:.6f}", f"USD, at {throughput} tokens a second"))
    return table(("fits", "", "means"), rows, right=("",), folds=("means",))


def _cost(made: Plan, rent: Decimal | None, throughput: Decimal | None) -> Decimal | None:
    if rent is None or throughput is None:
        return None
    return cost_usd_per_1k(rent_usd_per_h=rent * made.tensor_parallel, throughput_tps=throughput)


def _why_not(made: Plan) -> str:
    if made.fault is not None:
        return f"vLLM refuses {made.tensor_parallel} GPUs: {made.fault}"
    wanted = made.wish.max_model_len or made.context
    if made.kv_bytes <= 0 and made.gpu is not None:
        return f"it does not fit: {_gib(-made.kv_bytes)} GiB are missing on each GPU before any KV cache"
    return f"a request of {wanted:,} tokens does not fit: the KV cache holds {made.kv_tokens:,}"


def _notes(made: Plan) -> list[str]:
    found = list(made.model.shape.assumptions)
    if made.gpu is not None:
        found += [_ESTIMATES, _LOWER]
    wanted = stand_in(made.model)
    if wanted is not None:
        found.append(f"{made.model.shape.name} is not stored so: fill in the name of the {wanted}")
    if made.fits and made.max_in_flight == made.max_num_seqs:
        found.append(f"max_num_seqs ({made.max_num_seqs:,}), not memory, bounds max_in_flight")
    return found


def _show_all(console: Console, model: Model, plans: list[Plan]) -> None:
    _say(console, model.shape.name, style="bold")
    _say(console, f"shape from {model.source}\n")
    figures = ("GPUs", "weights GiB", "KV GiB", "KV tokens", "max_model_len", "in flight")
    rows = [
        (
            p.gpu.name if p.gpu else "",
            f"{p.tensor_parallel}",
            _gib(model.weight_bytes // p.tensor_parallel),
            _gib(p.kv_bytes),
            f"{p.kv_tokens:,}",
            f"{p.max_model_len:,}" if p.fits else "does not fit",
            f"{p.max_in_flight:,}" if p.fits else "–",
        )
        for p in plans
    ]
    console.print(table(("GPU", *figures), rows, right=figures))
    context = plans[0].context
    _say(console, f"GiB on each GPU; in flight: requests of {context:,} tokens; the fewest GPUs that hold one.")


def _as_dict(made: Plan, revision: str | None, rent: Decimal | None, throughput: Decimal | None) -> dict[str, Any]:
    budget, cost = made.budget, _cost(made, rent, throughput)
    return {
        "model": made.model.shape.name,
        "source": made.model.source,
        "gpu": made.gpu.name if made.gpu else None,
        "tensor_parallel": made.tensor_parallel,
        "fits": made.fits,
        "why_not": None if made.fits else _why_not(made),
        "ways_out": ways_out(made),
        "parameters": made.model.shape.parameters,
        "weight_bytes": made.model.weight_bytes,
        "kv_bytes_per_token": made.kv_bytes_per_token,
        "bytes_on_each_gpu": None
        if budget is None
        else {
            "memory": budget.memory,
            "usable": budget.usable,
            "weights": budget.weights,
            "activations": budget.activations,
            "graphs": budget.graphs,
            "other": budget.other,
        },
        "kv_bytes_on_each_gpu": made.kv_bytes,
        "kv_tokens": made.kv_tokens,
        "longest_context": made.largest_max_model_len,
        "max_model_len": made.max_model_len,
        "context": made.context,
        "max_in_flight": made.max_in_flight,
        "flags": flags(made, revision=revision),
        "rent_usd_per_h": None if rent is None else str(rent * made.tensor_parallel),
        "cost_usd_per_1k": None if cost is None else str(cost),
        "notes": _notes(made),
    }


def _gib(amount: int) -> str:
    return f"{amount / GIB:,.2f}"
