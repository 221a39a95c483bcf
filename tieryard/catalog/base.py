"""What the parts of a catalog share: strictness, names, and faults that lie between fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Unknown fields are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True)


CategoryName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]
TierName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]
DeploymentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]


def misfit(fault: str, *at: str | int) -> PydanticCustomError:
    """A field that does not fit another one: `at` is where it stands in the file."""
    return PydanticCustomError("misfit", "{fault}", {"fault": fault, "at": at})
