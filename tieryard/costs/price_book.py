"""The price book as a file: the example that is shipped, and those that are given on the command line."""

from __future__ import annotations

import re
from pathlib import Path

from tieryard.catalog.price_book import PriceBook, PriceBookFile
from tieryard.catalog.reading import parse_as, parse_catalog, read_text

EXAMPLE = Path(__file__).with_name("example_prices.yaml")
"""The price book that is shipped: an example, with a source for each row."""


_IN_A_CATALOG = re.compile(r"^price_book:", re.MULTILINE)


def load_price_book(path: Path = EXAMPLE) -> PriceBook:
    """Reads and checks a price book, or a catalog that has one. Raises CatalogError with one row per fault:
    `name:line: field: what is wrong`."""
    text = read_text(path)
    if _IN_A_CATALOG.search(text):
        return parse_catalog(text, name=str(path)).price_book
    return parse_price_book(text, name=str(path))


def parse_price_book(text: str, *, name: str = "prices.yaml") -> PriceBookFile:
    """Checks a price book's text. Raises CatalogError."""
    return parse_as(PriceBookFile, text, name=name, kind="a price book", fields="version, hosted, instances")
