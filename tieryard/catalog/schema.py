"""The catalog's JSON Schema, for editors: what a file may say, before anything is run."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tieryard.catalog.changes import duration
from tieryard.catalog.whole import Catalog

_DURATION = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"


def json_schema() -> dict[str, Any]:
    """What `tieryard config schema` prints. What lies between fields only `tieryard config check` can tell."""
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **_tidy(Catalog.model_json_schema(schema_generator=_AsWritten)),
        "title": "tieryard.yaml",
        "description": "The catalog of a Tieryard fleet: tiers, deployments, prices and routing.",
    }


class _AsWritten(GenerateJsonSchema):
    """Values in the forms that the file has them in."""

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:  # noqa: ARG002  # pydantic's
        return {"type": "string", "pattern": _DURATION, "examples": ["90s", "24h"]}

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:  # noqa: ARG002
        return {"type": "number"}

    def encode_default(self, dft: Any) -> Any:
        match dft:
            case timedelta():
                return duration(dft)
            case Decimal():
                return float(dft)
            case frozenset():
                return sorted(dft)
        return super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def _tidy(node: Any) -> Any:
    """Pydantic leaves words of its own on numbers, lets names through that it would refuse when it reads them, and
    repeats the defaults of a part where the part is used."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidied = {name: _tidy(item) for name, item in node.items() if name not in ("decimal_places", "max_digits", "ge")}
    if "ge" in node:
        tidied["minimum"] = node["ge"]
    if "$ref" in node:
        tidied.pop("default", None)
    if "patternProperties" in node:
        tidied.setdefault("additionalProperties", False)
    return tidied
