"""How many bits a weight takes: as a checkpoint's config says, or as it would be if it were quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tieryard.errors import UserError

_SCALE_BITS = 16
"""AWQ, GPTQ and compressed-tensors keep one 16-bit scale for each group of weights."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """What the linear layers are stored as; embeddings, output head, norms and biases stay at 16 bits.

    `bits` counts a weight with its share of scales and zero points. None: this way of storing is not known here, and
    only the files can say what it takes. `group_size` is None where there are no groups along a row.
    """

    name: str
    bits: float | None
    group_size: int | None = None
    experts_only: bool = False


def grouped(name: str, bits: int, group_size: int, *, zero_points: bool = True) -> Quantization:
    """bits + (16 for the scale + bits for the zero point) / group size.

    Source: the tensors of a checkpoint, `qweight`, `scales` (one fp16 a group) and `qzeros` (packed to `bits`). A group
    size of -1 is one group a row, whose share is too small to count. GPTQ's `g_idx` is left out for the same reason.
    """
    if group_size <= 0:
        return Quantization(name, bits)
    share = (_SCALE_BITS + (bits if zero_points else 0)) / group_size
    return Quantization(name, bits + share, group_size)


CHOICES: dict[str, Quantization | None] = {
    "none": None,
    "awq": grouped("awq", 4, 128),
    "gptq": grouped("gptq", 4, 128),
    "int8": Quantization("int8", 8),
    "fp8": Quantization("fp8", 8),
    "bitsandbytes": Quantization("bitsandbytes", 4.5),  # NF4: a 32-bit maximum for each 64 weights
}
"""What `--quantization` may say: the usual checkpoint of each kind."""

ON_LOAD = frozenset({"fp8", "bitsandbytes"})
"""Those that vLLM makes of a 16-bit checkpoint as it loads it; the others need a checkpoint made so."""


def chosen(name: str) -> Quantization | None:
    """One of CHOICES. Raises UserError for a word that is none of them."""
    if name not in CHOICES:
        raise UserError(f"'{name}' is none of {', '.join(CHOICES)}", param="--quantization")
    return CHOICES[name]


def of_config(config: dict[str, Any]) -> Quantization | None:
    """What `quantization_config` of a config.json says, or None where there is none. Raises ValueError for sizes that
    are none."""
    stated = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(stated, dict):
        return None
    method = str(stated.get("quant_method", "unknown")).lower()
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin"):
        bits, group_size = _size(stated.get("bits", 4)), int(stated.get("group_size", 128))
        return grouped(method, bits, group_size, zero_points=bool(stated.get("zero_point", True)))
    if method == "fp8":
        block = stated.get("weight_block_size")
        block_weights = _size(block[0]) * _size(block[1]) if block else math.inf  # one block: the whole tensor
        return Quantization(method, 8 + 32 / block_weights)  # a 32-bit scale for each
    if method == "bitsandbytes":
        return Quantization(method, 4.5 if stated.get("load_in_4bit") else 8)
    if method == "mxfp4":
        return Quantization(method, 4 + 8 / 32, experts_only=True)  # an 8-bit scale for each 32 weights
    if method == "compressed-tensors":
        return _compressed_tensors(stated)
    return Quantization(method, None)


def _compressed_tensors(stated: dict[str, Any]) -> Quantization:
    """The widest of its groups: so a plan errs towards too much."""
    found = [_of_group(group.get("weights") or {}) for group in (stated.get("config_groups") or {}).values()]
    known = [q for q in found if q.bits is not None]
    if not known or len(known) < len(found):
        return Quantization("compressed-tensors", None)
    return max(known, key=lambda q: q.bits or 0)


def _of_group(weights: dict[str, Any]) -> Quantization:
    if not isinstance(weights.get("num_bits"), int):
        return Quantization("compressed-tensors", None)
    bits, zero_points = _size(weights["num_bits"]), not weights.get("symmetric", True)
    return grouped("compressed-tensors", bits, weights.get("group_size") or -1, zero_points=zero_points)


def _size(value: Any) -> int:
    if type(value) is not int or value <= 0:
        raise ValueError(f"quantization_config has {value!r} where a whole number above 0 is expected")
    return value
