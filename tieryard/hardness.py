"""The learned model's word on prompts: how far one lowers the odds of a good answer. Loaded once a process; where it
cannot be, the rules decide, and that is said."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean

from tieryard import telemetry
from tieryard.catalog import Catalog
from tieryard.errors import UserError
from tieryard.routing.quality import QualityModel, parse_quality_model
from tieryard.telemetry import Event

DEFAULT_MODEL = "default_quality_model.json.gz"
_LEAST = 0.02  # odds of less would hold against any evidence


@dataclass(frozen=True, slots=True)
class Word:
    """On one prompt: see `JobFeatures`. Without a model there is none."""

    hardness: float | None = None
    predicted: dict[str, float] = field(default_factory=dict)


class Hardness:
    """By one model, for one catalog: of the models that it knows by name, those that are deployed."""

    def __init__(self, model: QualityModel, catalog: Catalog) -> None:
        self._model = model
        self._usual = _log_odds(1 - fmean(mean for part in model.parts for mean in part.mean))
        known = frozenset(model.models)
        self._named = sorted({d.measured_as or name for name, d in catalog.deployments.items()} & known)

    def of(self, text: str, category: str) -> Word:
        found = self._model.predict(text, category)
        predicted = {name: round(found.quality[name], 3) for name in self._named}
        return Word(round(_log_odds(found.difficulty) - self._usual, 3), predicted)


@dataclass(frozen=True, slots=True)
class Loaded:
    """`hardness` is None where the catalog wants the rules, and where the model cannot be read: `fault` says why.
    `quality_model` is the hash of the one that was read."""

    hardness: Hardness | None = None
    fault: str = ""
    quality_model: str = ""


def load_hardness(catalog: Catalog) -> Loaded:
    """By the catalog's model, or the one that is shipped. A fault is logged, too."""
    if catalog.routing.classifier != "learned":
        return Loaded()
    path = catalog.routing.quality_model
    try:
        model = _model(path, _changed(path))
        return Loaded(Hardness(model, catalog), quality_model=model.hash)
    except (UserError, OSError) as error:
        todo = "mend routing.quality_model, or set routing.classifier to rules"
        telemetry.logger().error(Event.QUALITY_MODEL_UNREAD, error=str(error)[:300], todo=todo)
        return Loaded(fault=f"the quality model cannot be read where jobs are routed ({type(error).__name__}); {todo}")


@lru_cache(maxsize=2)
def _model(path: str | None, changed: float) -> QualityModel:  # noqa: ARG001  # a file that changed is another one
    if path is None:
        return parse_quality_model((files("tieryard.routing") / DEFAULT_MODEL).read_bytes(), "the shipped model")
    return parse_quality_model(Path(path).read_bytes(), path)


def _changed(path: str | None) -> float:
    return Path(path).stat().st_mtime if path is not None else 0.0


def _log_odds(share: float) -> float:
    share = min(max(share, _LEAST), 1 - _LEAST)
    return math.log(share / (1 - share))
