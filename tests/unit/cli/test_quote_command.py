"""`tieryard quote`: what it refuses before it asks the fleet, and how it tells what is left of a budget."""

from __future__ import annotations

import io
from decimal import Decimal

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tieryard.cli.main import cli
from tieryard.cli.money_reports import usd
from tieryard.cli.quote import show
from tieryard.errors import NotFoundError


@pytest.mark.parametrize("text", ["../jobs", "", "quote_", "quote_7/..", "batch_7", "?limit=1"])
def test_what_is_no_quotes_id_is_not_asked_for(text: str) -> None:
    env = {"TIERYARD_API_KEY": "ty_x", "TIERYARD_URL": "http://127.0.0.1:1"}
    result = CliRunner().invoke(cli, ["quote", "show", text], env=env)
    assert isinstance(result.exception, NotFoundError), result.output
    assert str(result.exception) == f"quote: no quote '{text}'"


@pytest.mark.parametrize(
    ("left", "covers", "said"),
    [
        ("2.5", True, "budget: the 2.50 USD left covers the 0.10 USD to reserve"),
        ("0.05", False, "budget: the 0.050 USD left does not cover the 0.10 USD to reserve"),
        ("-0.0000034", False, "budget: nothing is left, which does not cover the 0.10 USD to reserve"),
    ],
)
def test_what_is_left_of_a_budget(left: str, covers: bool, said: str) -> None:
    console = Console(width=80, file=io.StringIO(), highlight=False)
    budget = {"left_usd": left, "reserves_usd": "0.1", "covers": covers}
    offer = {"tier": "bulk", "cost_usd": dict.fromkeys(("low", "expected", "worst"), "0.1"), "finish": None}
    counts = {"output_tokens": {"expected": 1}, "meets": "likely", "deployments": [], "notes": [], "waits": 0}
    made = {"id": "quote_7", "requests": 1, "prompt_tokens": 9, "prompt_tokens_error": 0, "input_file_id": None}
    lines = {"good": 1, "bad": 0, "read": 1, "faults": []}
    came = {"deadline": None, "cheapest": "bulk", "batch_id": None, "tier": None, "actual": None}
    show(console, {**made, **came, "lines": lines, "budget": budget, "offers": [offer | counts | {"fallbacks": 0}]})
    assert said in console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_amounts_below_zero_have_their_sign_first() -> None:
    assert [usd(Decimal(text)) for text in ("-0.0000034", "-2", "-0.01", "0", "0.0012")] == [
        "-$0.0000034", "-$2.00", "-$0.01", "$0.00", "$0.0012",
    ]  # fmt: skip
