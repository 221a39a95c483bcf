"""Complaints of validation: what is wanted and what was given, in words that are not a library's."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import AnyHttpUrl, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tieryard.complaints import complaint


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


def first(kind: Any, given: object, **how: Any) -> dict[str, Any]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(given, **how)
    return dict(caught.value.errors(include_url=False)[0])


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (str, 5, "expected text, not 5"),
        (str, None, "expected text, not null"),
        (str, ["a"], "expected text, not a list"),
        (int, "many", "expected a whole number, not 'many'"),
        (int, 1.5, "expected a whole number, not 1.5"),
        (int, "9" * 5000, "expected a whole number of fewer digits, not text"),
        (float, "x" * 300, "expected a number, not text"),
        (float, "a\x1b[2J", "expected a number, not text"),
        (Annotated[float, Field(allow_inf_nan=False)], float("nan"), "expected a finite number, not nan"),
        (Decimal, True, "expected a number, not true"),
        (bool, "maybe", "expected true or false, not 'maybe'"),
        (list[str], "a secret prompt", "expected a list, not text"),
        (list[str], {"a": 1}, "expected a list, not an object"),
        (dict[str, str], "a secret prompt", "expected an object, not text"),
        (Part, 5, "expected an object, not 5"),
        (Part, {}, "is required"),
        (Literal["float", "base64"], "int8", "expected 'float' or 'base64', not 'int8'"),
        (datetime, "soon", "expected a time such as 2026-11-22T12:00:00Z, not 'soon'"),
        (AwareDatetime, "2026-11-22T12:00:00", "such as 2026-11-22T12:00:00Z, not '2026-11-22T12:00:00'"),
        (None, 5, "expected null, not 5"),
        (Annotated[int, Field(ge=1)], 0, "must be greater than or equal to 1, not 0"),
        (Annotated[int, Field(lt=2**63)], 10**400, "must be less than 9223372036854775808, not one so large"),
        (Annotated[float, Field(gt=0)], -0.5, "must be greater than 0, not -0.5"),
        (Annotated[float, Field(le=1)], 1.5, "must be less than or equal to 1, not 1.5"),
        (Annotated[str, Field(max_length=3)], "four", "must have at most 3 characters, not 4"),
        (Annotated[str, Field(min_length=1)], "", "must not be empty"),
        (Annotated[list[int], Field(max_length=2)], [1, 2, 3], "must have at most 2 items, not 3"),
        (Annotated[Decimal, Field(decimal_places=6)], "0.0000001", "at most 6 decimal places, not '0.0000001'"),
        (Annotated[str, Field(pattern="^[A-Z_]+$")], "sk-secret", "must match the pattern ^[A-Z_]+$"),
        (AnyHttpUrl, "nope", "expected a URL such as https://example.com/hook (relative URL without a base)"),
        (AnyHttpUrl, "ftp://u:secret@x", "expected a URL that begins with 'http' or 'https'"),
    ],
)
def test_what_is_wanted_and_what_was_given(kind: Any, given: object, says: str) -> None:
    said = complaint(first(kind, given))
    assert said.endswith(says)
    assert "secret" not in said
    assert "nput should" not in said


def test_where_it_may_be_a_secret_nothing_is_quoted() -> None:
    assert complaint(first(int, "hunter2"), quotes=False) == "expected a whole number"


def test_own_words_and_unknown_kinds_stay() -> None:
    assert complaint({"type": "value_error", "msg": "Value error, must not be empty"}) == "must not be empty"
    assert complaint({"type": "new", "msg": "URL has a fault"}) == "URL has a fault"
    assert complaint({"type": "new", "msg": "Input should be new"}) == "input should be new"
    found = {"type": "json_invalid", "msg": "Invalid JSON: EOF", "ctx": {"error": "EOF at line 1"}}
    assert complaint(found) == "not valid JSON: EOF at line 1"
