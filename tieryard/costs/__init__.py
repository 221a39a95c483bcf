"""What tokens cost. Money is Decimal from the catalog to the ledger; it never passes through a float."""

from __future__ import annotations

from decimal import Decimal

from tieryard.catalog import Price

_MILLION = Decimal(1_000_000)


def token_cost(price: Price, *, prompt_tokens: int, cached_tokens: int = 0, completion_tokens: int) -> Decimal:
    """USD, exact: prices per million have at most 6 decimals, so a cost has at most 12. `cached_tokens`, of the prompt,
    are charged at their own price where there is one, and else as the rest."""
    usd = price.input_usd_per_1m * prompt_tokens + price.output_usd_per_1m * completion_tokens
    if cached_tokens and price.cached_input_usd_per_1m is not None:
        usd += (price.cached_input_usd_per_1m - price.input_usd_per_1m) * min(cached_tokens, prompt_tokens)
    return usd / _MILLION
