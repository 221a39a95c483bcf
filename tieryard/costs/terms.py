"""What a place is rented for, and what its tokens are charged at: the terms a rent window is opened with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tieryard.catalog import Price, Rent
from tieryard.catalog.price_book import InstancePrice
from tieryard.costs.windows import FullLoad, prefill_weight, replica_usd_per_hour, standard_price
from tieryard.errors import UserError

ASSUMED_PREFILL_WEIGHT = Decimal("0.25")
"""Of a prompt token beside an output token, where neither two runs nor the catalog's `price` say it: hosted APIs ask a
quarter of the output price for input."""


@dataclass(frozen=True, slots=True)
class Terms:
    """`usd_per_hour` is the replica's own, of all its `gpus`. `price` is the standard price of its tokens, `catalog`
    the version that said so. `price_id`: the row of `price` that the rent comes from; None where the catalog gave it.
    `measured_by`: the runs that the standard price comes from; empty where the catalog's `price` is charged."""

    usd_per_hour: Decimal
    gpus: int
    purchase: str
    price: Price
    catalog: str
    price_id: int | None = None
    measured_by: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FullRun:
    """A speed run that kept every replica full, and what one of them did."""

    run_id: int
    load: FullLoad


@dataclass(frozen=True, slots=True)
class Standard:
    """A standard price and where it comes from: the runs (none: the catalog's `price`), and what a prefilled token was
    counted beside a decoded one. `weight_is_assumed`: there were no two runs of different mixes."""

    price: Price
    measured_by: tuple[int, ...] = ()
    prefill_weight: Decimal | None = None
    weight_is_assumed: bool = False


def standard_of(usd_per_hour: Decimal, runs: Sequence[FullRun], given: Price) -> Standard:
    """By the newest run, the first of `runs`; the weight by the newest other one whose mix is different enough, else by
    the ratio of the catalog's prices. Without a run it is the catalog's price, `given`."""
    if not runs:
        return Standard(Price(input_usd_per_1m=given.input_usd_per_1m, output_usd_per_1m=given.output_usd_per_1m))
    newest = runs[0]
    for other in runs[1:]:
        try:
            weight = prefill_weight(newest.load, other.load)
        except UserError:  # too alike, or one of them was not full
            continue
        return Standard(
            standard_price(usd_per_hour, newest.load, weight), (newest.run_id, other.run_id), prefill_weight=weight
        )
    weight = assumed_weight(given)
    price = standard_price(usd_per_hour, newest.load, weight)
    return Standard(price, (newest.run_id,), prefill_weight=weight, weight_is_assumed=True)


def assumed_weight(given: Price) -> Decimal:
    """Input price ÷ output price, as the catalog has them; ASSUMED_PREFILL_WEIGHT where one of them is 0."""
    if given.input_usd_per_1m and given.output_usd_per_1m:
        return given.input_usd_per_1m / given.output_usd_per_1m
    return ASSUMED_PREFILL_WEIGHT


def rent_of(rent: Rent, instance: InstancePrice | None, *, gpus: int | None) -> tuple[Decimal, int]:
    """USD an hour of a replica or a host, and its GPUs. `instance` is the price book's row where the rent names one,
    `gpus` what the deployment says it has."""
    if instance is None:
        assert rent.usd_per_hour is not None
        return rent.usd_per_hour, rent.gpus or gpus or 0
    if rent.gpus is None or not instance.gpus:
        return instance.usd_per_h, instance.gpus
    return replica_usd_per_hour(instance.usd_per_h, machine_gpus=instance.gpus, gpus=rent.gpus), rent.gpus
