"""A catalog's price book: which row is meant, on which day, and what is refused with its line and field."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from tieryard.catalog import Catalog, Price, parse_catalog
from tieryard.catalog.changes import changes
from tieryard.errors import CatalogError

TODAY = date(2026, 11, 23)
SAID = "source: a list, read_on: 2026-11-23, status: as_printed"
BOOK = f"""
version: 1
tiers: {{batch: {{window: 24h}}}}
categories: [chat]
price_book:
  hosted:
    - {{provider: openai, model: gpt-4o, input_usd_per_1m: 2.50, output_usd_per_1m: 10, cached_input_usd_per_1m: 1.25,
       valid_from: 2025-01-01, valid_until: 2026-11-23, {SAID}}}
    - {{provider: openai, model: gpt-4o, input_usd_per_1m: 2, output_usd_per_1m: 8, valid_from: 2026-11-24, {SAID}}}
    - {{provider: other, model: old, input_usd_per_1m: 1, output_usd_per_1m: 1, valid_from: 2024-01-01,
       valid_until: 2024-12-31, {SAID}}}
    - {{provider: google, model: unsaid, input_usd_per_1m: 1, output_usd_per_1m: null, valid_from: 2024-01-01, {SAID}}}
  instances:
    - {{provider: aws, name: g5.12xlarge, region: us-east-1, purchase: on_demand, gpus: 4, gpu_type: A10G,
       usd_per_h: 5.672, valid_from: 2025-01-01, {SAID}}}
    - {{provider: aws, name: g5.12xlarge, region: us-east-1, purchase: spot, gpus: 4, gpu_type: A10G,
       usd_per_h: 2.1, valid_from: 2025-01-01, {SAID}}}
    - {{provider: aws, name: g5.12xlarge, region: eu-west-1, purchase: spot, gpus: 4, gpu_type: A10G,
       usd_per_h: 2.4, valid_from: 2025-01-01, {SAID}}}
    - {{provider: cheap, name: a10g, region: x, purchase: on_demand, gpus: 1, gpu_type: A10G,
       usd_per_h: 0.05, valid_from: 2025-01-01, doubt: too little, {SAID}}}
overhead:
  - {{name: redis-1, rent: {{usd_per_hour: 0.17}}}}
deployments:
  rented: &one
    model: test/one
    revision: "1"
    size_class: small
    engine: {{kind: openai_http, url: "http://one.invalid"}}
    context_limit: 4096
    max_in_flight: 8
    tokenizer: utf8
    price: {{input_usd_per_1m: 0.1, output_usd_per_1m: 0.4}}
    rent: {{instance: aws/g5.12xlarge, gpus: 1}}
  bought:
    <<: *one
    size_class: large
    engine: {{kind: openai_http, url: "http://two.invalid", server: openai}}
    price: {{book: openai/gpt-4o}}
    rent: null
"""


def catalog_of(text: str = BOOK) -> Catalog:
    return parse_catalog(text, name="t.yaml")


def changed(old: str, new: str) -> str:
    assert BOOK.count(old) == 1, old
    return BOOK.replace(old, new)


def test_a_hosted_price_is_that_of_the_day() -> None:
    catalog = catalog_of()
    before = catalog.price_of("bought", TODAY)
    assert (before.output_usd_per_1m, before.cached_input_usd_per_1m) == (10, Decimal("1.25"))
    after = catalog.price_of("bought", date(2026, 11, 24))
    assert after == Price(input_usd_per_1m=Decimal(2), output_usd_per_1m=Decimal(8))
    assert catalog.price_of("rented", TODAY).input_usd_per_1m == Decimal("0.1")


def test_what_is_offered_no_more_is_paid_as_it_last_was() -> None:
    catalog = catalog_of(changed("{book: openai/gpt-4o}", "{book: old}"))
    assert catalog.price_of("bought", TODAY).input_usd_per_1m == 1
    [(at, why)] = catalog.lapsed_on(TODAY)
    assert at == ("deployments", "bought", "price", "book")
    assert why == "no price of other/old holds on 2026-11-23: the price book has 2024-01-01 to 2024-12-31"
    assert catalog_of().lapsed_on(TODAY) == []
    assert [at for at, _ in catalog_of().lapsed_on(date(2024, 6, 1))] == [
        ("deployments", "rented", "rent", "instance"),
        ("deployments", "bought", "price", "book"),
    ]


@pytest.mark.parametrize(
    ("given", "usd_per_h"),
    [
        ("{instance: aws/g5.12xlarge, gpus: 1}", "5.672"),
        ("{instance: g5.12xlarge, purchase: spot, region: eu-west-1}", "2.4"),
        ("{instance: g5.12xlarge, purchase: spot, region: us-east-1}", "2.1"),
    ],
)
def test_a_rent_is_by_its_region_and_how_it_is_bought(given: str, usd_per_h: str) -> None:
    catalog = catalog_of(changed("{instance: aws/g5.12xlarge, gpus: 1}", given))
    rent = catalog.deployments["rented"].rent
    assert rent is not None
    found = catalog.instance_of(rent, TODAY)
    assert found is not None
    assert found.usd_per_h == Decimal(usd_per_h)


RENT = "rent: {instance: aws/g5.12xlarge, gpus: 1}"


@pytest.mark.parametrize(
    ("old", "new", "field", "said"),
    [
        (RENT, "rent: {instance: aws/g6}", "deployments.rented.rent.instance", "the price book has no 'aws/g6'"),
        (RENT, "rent: {instance: a10g}", "deployments.rented.rent.instance", "nothing is computed with the price of"),
        (RENT, "rent: {instance: g5.12xlarge, gpus: 5}", "deployments.rented.rent.gpus", "has 4 from 2025-01-01 on"),
        (
            RENT,
            "rent: {instance: g5.12xlarge, purchase: spot}",
            "deployments.rented.rent.instance",
            "'g5.12xlarge' is aws/g5.12xlarge (spot, us-east-1), aws/g5.12xlarge (spot, eu-west-1): say which",
        ),
        (
            RENT,
            "rent: {instance: g5.12xlarge, region: mars}",
            "deployments.rented.rent.instance",
            "the price book has no on_demand price of 'g5.12xlarge' in mars",
        ),
        (RENT, "rent: {usd_per_hour: 1, instance: a}", "deployments.rented.rent", "one of both"),
        (RENT, "rent: {}", "deployments.rented.rent", "give `usd_per_hour` or `instance`"),
        (RENT, "rent: {usd_per_hour: -1}", "deployments.rented.rent.usd_per_hour", "greater than or equal to 0"),
        (RENT, "rent: {usd_per_hour: 1, region: x}", "deployments.rented.rent.region", "is an instance's"),
        (RENT, "rent_usd_per_hour: 1", "deployments.rented.rent_usd_per_hour", "is `rent.usd_per_hour` now"),
        ("{book: openai/gpt-4o}", "{book: gpt-5}", "deployments.bought.price.book", "the price book has no 'gpt-5'"),
        ("{book: openai/gpt-4o}", "{book: unsaid}", "deployments.bought.price.book", "has no output price from"),
        ("{book: openai/gpt-4o}", "{output_usd_per_1m: 1}", "deployments.bought.price.input_usd_per_1m", "is required"),
        ("{book: openai/gpt-4o}", "{book: x, a: 1}", "deployments.bought.price.a", "is not a known field"),
        ("    rent: null\n", "", "deployments.bought.price.book", "is a hosted model's"),
        ("input_usd_per_1m: 2,", "input_usd_per_1m: -2,", "price_book.hosted.1.input_usd_per_1m", "greater than"),
        ("input_usd_per_1m: 2, ", "", "price_book.hosted.1.input_usd_per_1m", "is required"),
        ("valid_until: 2026-11-23", "valid_until: 2026-11-24", "price_book.hosted.1.valid_from", "overlaps hosted.0"),
        ("output_usd_per_1m: 8,", "output_usd_per_1m: 8, currency: EUR,", "price_book.hosted.1.currency", "'USD'"),
        ("1m: 1.25", "1m: 2.51", "price_book.hosted.0.cached_input_usd_per_1m", "is above the input price, 2.5"),
        ("{name: redis-1", "{name: Redis", "overhead.0.name", "pattern"),
        ("categories: [chat]", "categories: [chat]\nbaseline: nobody", "baseline", "is not a deployment"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_line_and_field(old: str, new: str, field: str, said: str) -> None:
    text = changed(old, new)
    with pytest.raises(CatalogError) as refused:
        catalog_of(text)
    row = next(row for row in str(refused.value).splitlines() if f": {field}: " in row)
    assert said in row
    assert int(row.split(":")[1]) > 1


def test_the_baseline_is_the_dearest_large_one() -> None:
    assert catalog_of().baseline_on(TODAY) == "bought"
    named = catalog_of(changed("categories: [chat]", "categories: [chat]\nbaseline: rented"))
    assert named.baseline_on(TODAY) == "rented"
    assert catalog_of(changed("size_class: large", "size_class: small")).baseline_on(TODAY) is None


def test_rows_are_compared_by_what_they_are_of() -> None:
    first = "    - {provider: a, model: b, input_usd_per_1m: 1, output_usd_per_1m: 2, valid_from: 2025-01-01, "
    new = catalog_of(changed("  hosted:\n", f"  hosted:\n{first}{SAID}}}\n"))
    [change] = changes(catalog_of(), new)
    assert (change.field, change.before) == ("price_book.a/b from 2025-01-01", None)
    assert change.after == "1 in, 2 out, USD per 1M"
    dearer = catalog_of(changed("usd_per_h: 5.672", "usd_per_h: 6"))
    [change] = changes(catalog_of(), dearer)
    assert change.field == "price_book.aws/g5.12xlarge (on_demand, us-east-1) from 2025-01-01.usd_per_h"
    assert (change.before, change.after) == ("5.672", "6")
