"""The most that a job can cost: at the dearest deployment that may take it, with its longest answer."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import factories as make
from tieryard.catalog import Price
from tieryard.routing import Candidate, PolicyRules, Rules, decide, worst_usd


def price(input_usd: str, output_usd: str) -> Price:
    return Price(input_usd_per_1m=Decimal(input_usd), output_usd_per_1m=Decimal(output_usd))


PRICES = {"cheap": price("1", "2"), "dear": price("10", "20"), "new": price("30", "40")}


def of(*candidates: Candidate, limited: bool = True, rules: Rules | None = None, **job: Any) -> Decimal:
    known = make.features(100, max_tokens=50, **job)
    return worst_usd(known, make.snapshot(*candidates, rules=rules), PRICES, limited=limited) * 1_000_000


CHEAP, DEAR = make.candidate("cheap"), make.candidate("dear")
AT_CHEAP, AT_DEAR = 100 * 1 + 50 * 2, 100 * 10 + 50 * 20


def test_the_dearest_that_may_take_it() -> None:
    assert of(CHEAP) == AT_CHEAP
    assert of(CHEAP, DEAR) == of(DEAR, CHEAP) == AT_DEAR


@pytest.mark.parametrize(
    ("dear", "job"),
    [
        (DEAR, {"model": "cheap"}),
        (make.candidate("dear", size_class="large"), {"model": "class:small"}),
        (make.candidate("dear", context_limit=149), {}),
        (make.candidate("dear", named_only=True), {}),
        (make.candidate("dear", serves=frozenset({"/v1/embeddings"})), {}),
    ],
)
def test_what_cannot_take_it_does_not_count(dear: Candidate, job: dict[str, Any]) -> None:
    assert of(CHEAP, dear, **job) == AT_CHEAP


def test_a_policy_narrows_it() -> None:
    rules = Rules(policies={"tests": PolicyRules(models=frozenset({"cheap"}))})
    assert of(CHEAP, DEAR, rules=rules, policy="tests") == AT_CHEAP
    assert of(CHEAP, DEAR, rules=rules) == AT_DEAR


@pytest.mark.parametrize("whose", ["job", "policy"])
def test_what_only_a_cap_refuses_counts_at_the_cap(whose: str) -> None:
    """Where it is rented, what its tokens cost then may be less than the catalog's price."""
    cap = Decimal("0.0005")
    dear = make.candidate("dear", input_usd_per_1m=Decimal(9))
    rules = Rules(policies={"tests": PolicyRules(max_cost_usd=cap)}) if whose == "policy" else None
    job: dict[str, Any] = {"policy": "tests"} if rules else {"max_cost_usd": cap}
    assert of(CHEAP, dear, rules=rules, **job) == cap * 1_000_000
    assert of(CHEAP, dear, rules=rules, limited=False, **job) == of(CHEAP, limited=False)


def test_what_only_falls_short_counts() -> None:
    """Where all fall short, or the better ones are away, it is served there all the same."""
    assert of(CHEAP, make.candidate("dear", live=False, quality=0.0)) == AT_DEAR


def test_a_candidate_counts_for_a_canary_may_send_it_there() -> None:
    assert of(CHEAP, make.candidate("new", candidate_of="cheap", named_only=True)) == 100 * 30 + 50 * 40


def test_without_a_limit_an_answer_may_fill_the_context() -> None:
    assert of(CHEAP, limited=False) == 100 * 1 + 900 * 2


def test_nobody_who_can_take_it() -> None:
    assert of(make.candidate("cheap", context_limit=10)) == 0


@given(
    st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.integers(100, 400), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 300), st.integers(0, 200), st.sampled_from(["auto", "d0", "class:small"]), st.floats(0, 1),
)  # fmt: skip
def test_no_decision_can_cost_more(
    given_: list[tuple[int, int, int, bool]], prompt: int, most: int, model: str, draw: float
) -> None:
    found = [
        make.candidate(
            f"d{n}", input_usd_per_1m=Decimal(a), output_usd_per_1m=Decimal(b), context_limit=context, named_only=named
        )
        for n, (a, b, context, named) in enumerate(given_)
    ]
    prices = {c.name: Price(input_usd_per_1m=c.input_usd_per_1m, output_usd_per_1m=c.output_usd_per_1m) for c in found}
    job, snapshot = make.features(prompt, model=model, max_tokens=most, draw=draw), make.snapshot(*found)
    chosen = decide(job, snapshot).deployment
    worst = worst_usd(job, snapshot, prices, limited=True)
    if chosen is not None:
        paid = prices[chosen]
        assert worst >= (paid.input_usd_per_1m * prompt + paid.output_usd_per_1m * most) / 1_000_000
