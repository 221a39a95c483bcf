"""Golden sets to the store and back."""

from __future__ import annotations

import re

from tieryard.errors import UserError
from tieryard.golden.items import GoldenSet, Item
from tieryard.store import Store, golden
from tieryard.store.golden import SetRow

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def save(store: Store, given: GoldenSet) -> tuple[SetRow, bool]:
    """The set as it is kept, and whether it is new. Raises UserError for a name that commands and URLs cannot take."""
    if _NAME.fullmatch(given.name) is None:
        raise UserError(
            f"'{given.name}' is no name of a set: write letters, digits, '.', '_' and '-', 64 at most, "
            "a letter or digit first",
            param="name",
        )
    return golden.save_set(store, given.name, given.hash, given.counts, [item.canonical() for item in given.items])


def load(store: Store, row: SetRow) -> GoldenSet:
    """With its items. Raises pydantic's ValidationError where this version does not take what another one saved."""
    return GoldenSet(row.name, tuple(Item.model_validate(body) for body in golden.item_bodies(store, row.id)))
