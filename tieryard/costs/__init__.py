"""What tokens cost. Money is Decimal from the catalog to the ledger; it never passes through a float."""

from __future__ import annotations

from decimal import Decimal

from tieryard.catalog import Price

_MILLION = Decimal(1_000_000)


def token_cost(price: Price, *, prompt_tokens: int, completion_tokens: int) -> Decimal:
    """USD, exact: prices per million have at most 6 decimals, so a cost has at most 12."""
    return (price.input_usd_per_1m * prompt_tokens + price.output_usd_per_1m * completion_tokens) / _MILLION
