"""What a rented replica's tokens are charged at: by two runs, by one, by none; and its share of a machine."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.unit.catalog.test_tariffs import TODAY, catalog_of, changed
from tieryard.catalog import Price, Rent
from tieryard.costs.terms import ASSUMED_PREFILL_WEIGHT, FullRun, assumed_weight, rent_of, standard_of
from tieryard.costs.windows import FullLoad

USD = Decimal("1.80")
GIVEN = Price(
    input_usd_per_1m=Decimal("0.1"), output_usd_per_1m=Decimal("0.8"), cached_input_usd_per_1m=Decimal("0.05")
)


def ran(run_id: int, prefill: int, decode: int) -> FullRun:
    return FullRun(run_id, FullLoad(Decimal(prefill), Decimal(decode)))


def test_two_runs_of_different_mixes_say_it_all() -> None:
    found = standard_of(USD, [ran(9, 10_000, 1_000), ran(7, 2_000, 1_800)], GIVEN)
    assert found.price == Price(input_usd_per_1m=Decimal("0.025"), output_usd_per_1m=Decimal("0.25"))
    assert (found.measured_by, found.prefill_weight, found.weight_is_assumed) == ((9, 7), Decimal("0.1"), False)


def test_runs_that_are_alike_or_not_full_are_passed_over() -> None:
    runs = [ran(9, 10_000, 1_000), ran(8, 10_100, 990), ran(7, 100, 900), ran(6, 2_000, 1_800)]
    assert standard_of(USD, runs, GIVEN).measured_by == (9, 6)


def test_with_one_run_the_weight_is_the_catalogs_and_said_to_be_assumed() -> None:
    found = standard_of(USD, [ran(9, 8_000, 1_000)], GIVEN)
    assert (found.prefill_weight, found.weight_is_assumed, found.measured_by) == (Decimal("0.125"), True, (9,))
    assert found.price.output_usd_per_1m == Decimal("0.25")
    free = Price(input_usd_per_1m=Decimal(0), output_usd_per_1m=Decimal(1))
    assert assumed_weight(free) == ASSUMED_PREFILL_WEIGHT


def test_without_a_run_it_is_the_catalogs_price_and_cached_tokens_cost_nothing() -> None:
    found = standard_of(USD, [], GIVEN)
    assert found.price == GIVEN.model_copy(update={"cached_input_usd_per_1m": None})
    assert (found.measured_by, found.prefill_weight) == ((), None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("{instance: aws/g5.12xlarge, gpus: 1}", ("1.418", 1)),
        ("{instance: aws/g5.12xlarge}", ("5.672", 4)),
        ("{usd_per_hour: 2}", ("2", 3)),
        ("{usd_per_hour: 2, gpus: 1}", ("2", 1)),
    ],
)
def test_a_replica_pays_for_its_gpus(given: str, expected: tuple[str, int]) -> None:
    catalog = catalog_of(changed("{instance: aws/g5.12xlarge, gpus: 1}", given))
    rent = catalog.deployments["rented"].rent
    assert rent is not None
    assert rent_of(rent, catalog.instance_of(rent, TODAY), gpus=3) == (Decimal(expected[0]), expected[1])


def test_a_host_without_gpus_has_none() -> None:
    assert rent_of(Rent(usd_per_hour=Decimal("0.17")), None, gpus=None) == (Decimal("0.17"), 0)
