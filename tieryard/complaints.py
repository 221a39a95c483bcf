"""Pydantic's complaints in our words: what is wanted, and what was given."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_MOST_QUOTED = 40
_MOST_NUMBER = 10**_MOST_QUOTED
_HOLDERS = ("a list", "an object")  # where one of them is wanted, a text may be a prompt

_PLAIN = {"extra_forbidden": "no such field", "missing": "is required"}
_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "date_from_datetime_inexact": "a date such as 2026-11-22",
    "date_from_datetime_parsing": "a date such as 2026-11-22",
    "date_parsing": "a date such as 2026-11-22",
    "date_type": "a date such as 2026-11-22",
    "datetime_from_date_parsing": "a time such as 2026-11-22T12:00:00Z",
    "datetime_parsing": "a time such as 2026-11-22T12:00:00Z",
    "datetime_type": "a time such as 2026-11-22T12:00:00Z",
    "decimal_parsing": "a number",
    "decimal_type": "a number",
    "dict_type": "an object",
    "enum": "{expected}",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "none_required": "null",
    "string_type": "text",
    "timezone_aware": "a time with its zone, such as 2026-11-22T12:00:00Z",
    "url_parsing": "a URL such as https://example.com/hook ({error})",
    "url_scheme": "a URL that begins with {expected_schemes}",
    "url_type": "a URL such as https://example.com/hook",
}
"""What follows "expected", by the kind of complaint; in braces what pydantic knows of it."""

_BOUNDS = {
    "decimal_max_digits": "must have at most {max_digits} digits",
    "decimal_max_places": "must have at most {decimal_places} decimal places",
    "decimal_whole_digits": "must have at most {whole_digits} digits before the point",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be greater than or equal to {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be less than or equal to {le}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
    "url_too_long": "must have at most {max_length} characters",
}
_COUNTED = frozenset({"string_too_long", "string_too_short", "too_long", "too_short"})
_UNQUOTED = frozenset({"string_pattern_mismatch", "url_parsing", "url_scheme", "url_too_long"})
"""A name of a variable may turn out to be the secret itself, and a URL may hold one."""


def complaint(found: Mapping[str, Any], *, quotes: bool = True) -> str:
    """One of `ValidationError.errors()`, with its input and context: a clause that follows the field's name.
    `quotes`: says what was given, never much of it; not where that may be a secret."""
    kind, context = found["type"], {name: _whole(value) for name, value in found.get("ctx", {}).items()}
    if kind in _PLAIN:
        return _PLAIN[kind]
    if context.get("min_length") == 1:
        return "must not be empty"
    if kind == "json_invalid":
        return f"not valid JSON: {context.get('error', found['msg'])}"
    if kind in _WANTED:
        wanted = "expected " + _WANTED[kind].format_map(context)
    elif kind in _BOUNDS:
        wanted = _BOUNDS[kind].format_map(context)
    else:
        message: str = found["msg"].removeprefix("Value error, ")
        return message if message[1:2].isupper() else message[:1].lower() + message[1:]  # "URL …" stays
    if not quotes or kind in _UNQUOTED:
        return wanted
    given = found.get("input")
    return f"{wanted}, not {len(given) if kind in _COUNTED and given is not None else _shown(given, kind)}"


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shown(given: Any, kind: str) -> str:
    if given is None:
        return "null"
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, str):
        quotable = len(given) <= _MOST_QUOTED and given.isprintable() and _WANTED.get(kind) not in _HOLDERS
        return f"'{given}'" if quotable else "text"
    if isinstance(given, int | float | Decimal):
        return "one so large" if isinstance(given, int) and abs(given) >= _MOST_NUMBER else str(given)
    if isinstance(given, Mapping):
        return "an object"
    return "a list" if isinstance(given, list | tuple | set) else f"a {type(given).__name__}"
