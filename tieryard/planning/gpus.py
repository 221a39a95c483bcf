"""The GPUs that can be planned for: their memory as the driver reports it, and vLLM's defaults on them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tieryard.errors import UserError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """`memory_bytes` is what CUDA calls the device's total, of which `gpu_memory_utilization` is a share."""

    name: str
    sold_as: str
    memory_bytes: int
    max_num_batched_tokens: int
    max_num_seqs: int


def _gpu(name: str, sold_as: str, memory_gib: float, *, large: bool) -> Gpu:
    """`large`: vLLM's defaults for 70 GiB and more, the A100 excepted (`engine/arg_utils.py`, 0.32)."""
    return Gpu(name, sold_as, round(memory_gib * GIB), *((8192, 1024) if large else (2048, 256)))


# The number in a name says little: an A10G sold as 24 GB gives 22.06 GiB. ECC, the driver and the context take their
# part, and GB are not GiB. These are totals that PyTorch prints on such devices; drivers differ by about 0.1 GiB.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A10G", "24 GB", 22.06, large=False),
        _gpu("L40S", "48 GB", 44.4, large=False),
        _gpu("A100-40", "40 GB", 39.5, large=False),
        _gpu("A100-80", "80 GB", 79.2, large=False),
        _gpu("H100", "80 GB", 79.1, large=True),
        _gpu("H200", "141 GB", 139.7, large=True),
    )
}


def find_gpus(words: list[str]) -> list[Gpu]:
    """Names of the table, `all`, or a size such as `15.8GiB` for a GPU that is not in it. Raises UserError."""
    found: list[Gpu] = []
    for word in words:
        found += list(GPUS.values()) if word.lower() == "all" else [_find(word)]
    return found


def _find(word: str) -> Gpu:
    by_name = {name.lower(): gpu for name, gpu in GPUS.items()}
    if word.lower() in by_name:
        return by_name[word.lower()]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s?GiB", word, re.IGNORECASE)
    if size and 0 < float(size[1]) < math.inf:
        return _gpu(f"{size[1]}GiB", "as given", float(size[1]), large=float(size[1]) >= 70)
    near = " or ".join(name for name in GPUS if name.lower().startswith(f"{word.lower()}-"))
    hint = f"did you mean {near}?" if near else f"known are {', '.join(GPUS)}, all, or a size such as 15.8GiB"
    raise UserError(f"no GPU '{word}': {hint}", param="--gpu")
