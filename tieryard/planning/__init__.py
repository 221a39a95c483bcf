"""Sizes a deployment: from a model's shape and a GPU, what fits, with which flags, and what it costs."""

from tieryard.planning.fit import (
    DEFAULT_UTILIZATION,
    Budget,
    Plan,
    Wish,
    cost_usd_per_1k,
    plan_kv_memory,
    plan_on,
    smallest_plan,
    ways_out,
)
from tieryard.planning.gpus import GIB, GPUS, Gpu, find_gpus
from tieryard.planning.models import Model, find_model, known_configs
from tieryard.planning.quantization import CHOICES, ON_LOAD, Quantization, chosen
from tieryard.planning.shapes import ModelShape, kv_cache_tokens

__all__ = [
    "CHOICES",
    "DEFAULT_UTILIZATION",
    "GIB",
    "GPUS",
    "ON_LOAD",
    "Budget",
    "Gpu",
    "Model",
    "ModelShape",
    "Plan",
    "Quantization",
    "Wish",
    "chosen",
    "cost_usd_per_1k",
    "find_gpus",
    "find_model",
    "known_configs",
    "kv_cache_tokens",
    "plan_kv_memory",
    "plan_on",
    "smallest_plan",
    "ways_out",
]
