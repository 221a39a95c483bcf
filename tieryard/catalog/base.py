"""What the parts of a catalog share: strictness, names, and faults that lie between fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tieryard.requests.fields import INT64


def too_large(value: Any) -> bool:
    """Whether it is a whole number of more than 64 bits."""
    return isinstance(value, int) and not -INT64 <= value < INT64


class Strict(BaseModel):
    """Unknown fields are faults, and whole numbers that nothing could store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _numbers_fit(cls, given: Any) -> Any:
        for name, value in given.items() if isinstance(given, dict) else ():
            if too_large(value):
                raise misfit("must fit in 64 bits", name)
        return given


CategoryName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]
TierName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]
DeploymentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]


def misfit(fault: str, *at: str | int) -> PydanticCustomError:
    """A field that does not fit another one: `at` is where it stands in the file."""
    return PydanticCustomError("misfit", "{fault}", {"fault": fault, "at": at})
