"""GPUs are named by the table, or by the memory they report."""

from __future__ import annotations

import pytest

from tieryard.errors import UserError
from tieryard.planning import GIB, GPUS, find_gpus


def test_none_gives_what_its_name_says() -> None:
    for gpu in GPUS.values():
        assert 0.85 < gpu.memory_bytes / GIB / float(gpu.sold_as.split()[0]) < 1


def test_vllms_defaults_there() -> None:
    assert {name: gpu.max_num_batched_tokens for name, gpu in GPUS.items()} == {
        "A10G": 2048,
        "L40S": 2048,
        "A100-40": 2048,
        "A100-80": 2048,
        "H100": 8192,
        "H200": 8192,
    }


def test_names_sizes_and_all() -> None:
    assert [gpu.name for gpu in find_gpus(["h100", "15.8GiB"])] == ["H100", "15.8GiB"]
    assert find_gpus(["15.8GiB"])[0].memory_bytes == round(15.8 * GIB)
    assert find_gpus(["all"]) == list(GPUS.values())


@pytest.mark.parametrize(
    ("word", "hint"),
    [("A100", "did you mean A100-40 or A100-80"), ("T4", "a size such as"), ("0GiB", "known are"), ("", "known are")],
)
def test_others_are_refused_with_a_hint(word: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        find_gpus([word])
