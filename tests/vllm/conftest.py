"""Skips what stands on real vLLM where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.engine import PYTHON


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a run that collected more than this folder, only this folder's."""
    if not PYTHON:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no vLLM here: run `make test-vllm`"))
