"""Bits of a weight, with its share of scales and zero points."""

from __future__ import annotations

from typing import Any

import pytest

from tieryard.errors import UserError
from tieryard.planning.quantization import CHOICES, ON_LOAD, chosen, grouped, of_config


@pytest.mark.parametrize(
    ("stated", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, 8 + 24 / 32),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 16384),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}}, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "narrow": {"weights": {"num_bits": 4, "group_size": 128, "symmetric": True}},
                    "wide": {"weights": {"num_bits": 4, "group_size": 128, "symmetric": False}},
                },
            },
            4 + 20 / 128,
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {}}}, None),
        ({"quant_method": "sparkle"}, None),
    ],
)
def test_what_a_config_says(stated: dict[str, Any], bits: float | None) -> None:
    found = of_config({"quantization_config": stated})
    assert found is not None
    assert found.bits == bits


def test_most_configs_say_nothing() -> None:
    assert of_config({}) is None


def test_groups_cost_and_symmetric_ones_less() -> None:
    assert grouped("q", 4, 32).bits > grouped("q", 4, 128).bits > grouped("q", 4, 128, zero_points=False).bits > 4


def test_what_may_be_chosen() -> None:
    assert chosen("none") is None
    assert chosen("awq") == CHOICES["awq"]
    assert CHOICES.keys() > ON_LOAD
    with pytest.raises(UserError, match="'q5' is none of none, awq"):
        chosen("q5")
