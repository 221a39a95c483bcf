"""What becomes of an infer process when another catalog comes in force: it takes it over while it runs, or, where its
engine would be another, makes room for a new process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tieryard.catalog import Catalog
from tieryard.catalog.changes import same_footing
from tieryard.tokens import load_counter
from workers.infer import Inference
from workers.yard import Yard


class Renewal:
    """Of the infer process of one deployment."""

    def __init__(self, yard: Yard, name: str, inference: Inference) -> None:
        self._yard, self._name, self._inference = yard, name, inference

    def prepare(self, old: Catalog, new: Catalog) -> Callable[[], None]:
        """Raises UserError where a new process could not start."""
        if self._name not in new.hosts:
            return self._yard.start_again
        if same_footing(old, new, self._name):
            return partial(self._inference.take_over, new)
        load_counter(new.deployments[self._name].tokenizer, cache_dir=self._yard.settings.cache_dir)
        return self._yard.start_again
