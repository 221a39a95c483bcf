"""The scorer of numbers: reads the answer's last one, however it is written."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from tieryard.golden.scorers.base import Score, Scorer, Unfit, Wanted, shown

MARK = "####"
_MOST_DIGITS = 300
_MINUS = ("-", "−")
_CURRENCY = "$€£¥₹₩₽₪₺₴฿"
_GROUPED = "[,'’_\u00a0\u2009\u202f]"
_UNDER = r"(?!0+(?!\d))\d{1,9}(?![\d/])"  # what divides by nothing is no fraction
_NUMBER = re.compile(
    rf"""(?<!\w)(?<!\d\.)  # not inside a word or a version
    (?P<sign>[-+−]?)[{_CURRENCY}]?(?P<inner>[-−]?)
    (?:(?P<whole>\d{{1,3}}(?:{_GROUPED}\d{{3}})+(?!\d)|\d++)(?P<part>\.\d++)?+|(?P<bare>\.\d++))
    (?P<exponent>[eE][-+]?\d{{1,3}}(?!\w))?+(?![eE][-+]?\d)
    (?:[ ](?P<over>\d{{1,9}})/(?P<under>{_UNDER})|/(?P<by>{_UNDER}))?
    (?P<percent>[ ]?%)?""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it stands: of `50 %` the value is 50."""

    value: Fraction
    percent: bool = False


def numbers(text: str) -> list[Number]:
    """Every number of a text, in order: `-1,234.5`, `$3`, `50 %`, `3/4`, `1 1/2`, `½`, `6e3`. The decimal mark is a
    point; commas, apostrophes, underscores and narrow spaces may part groups of three digits. Numbers of more than
    300 digits, and those with an exponent of more than 3, are passed over."""
    found = (_read(match) for match in _NUMBER.finditer(_vulgar_written_out(text)))
    return [number for number in found if number is not None]


def last_number(text: str) -> Number | None:
    """The first one after the last `####`, as GSM8K's answers end (Cobbe et al. 2021, arXiv:2110.14168); where there is
    none, the text's last one."""
    marked = numbers(text.rpartition(MARK)[2]) if MARK in text else []
    return marked[0] if marked else next(reversed(numbers(text)), None)


def _vulgar_written_out(text: str) -> str:
    """½ as ` 1/2`."""
    if text.isascii():
        return text
    return "".join(
        " " + unicodedata.normalize("NFKC", c).replace("⁄", "/")
        if unicodedata.decomposition(c).startswith("<fraction>")
        else c
        for c in text
    )


def _read(match: re.Match[str]) -> Number | None:
    whole = re.sub(_GROUPED, "", match["whole"] or "0")
    part = match["part"] or match["bare"] or ""
    if len(whole) + len(part) > _MOST_DIGITS:
        return None
    digits = "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in whole + part)
    value = Fraction(digits + (match["exponent"] or ""))
    if match["over"]:
        value += Fraction(int(match["over"]), int(match["under"]))
    elif match["by"]:
        value /= int(match["by"])
    negative = (match["sign"] in _MINUS) != (match["inner"] in _MINUS)
    return Number(-value if negative else value, match["percent"] is not None)


class Numeric(Scorer):
    """1 where the answer's number (see `last_number`) is an expected one, else 0.

    Equal means |answer − expected| ≤ max(tolerance, relative_tolerance × |expected|), exactly, not in floating point.
    Where only one side has a percent sign, that side counts as it stands and as its hundredth: `15%` is both 15 and
    0.15.
    """

    name: Literal["numeric"] = "numeric"
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    relative_tolerance: float = Field(default=0.0, ge=0, lt=1)

    def check(self, wanted: Wanted) -> None:
        _expected(wanted.expected)

    def rate(self, answer: str, wanted: Wanted) -> Score:
        given = last_number(answer)
        if given is None:
            return Score(0.0, f"no number in {shown(answer)}")
        right = _expected(wanted.expected)
        if any(self._equal(given, number) for number in right):
            return Score(1.0, f"{_told(given)} is right")
        return Score(0.0, f"expected {_told(right[0])}, got {_told(given)}")

    def _equal(self, given: Number, right: Number) -> bool:
        allowed = max(Fraction(self.tolerance), Fraction(self.relative_tolerance) * abs(right.value))
        return any(abs(a - b) <= allowed for a, b in _pairs(given, right))


def _pairs(given: Number, right: Number) -> list[tuple[Fraction, Fraction]]:
    pairs = [(given.value, right.value)]
    if given.percent and not right.percent:
        pairs.append((given.value / 100, right.value))
    elif right.percent and not given.percent:
        pairs.append((given.value, right.value / 100))
    return pairs


def _expected(expected: Any) -> list[Number]:
    given = expected if isinstance(expected, list | tuple) else [expected]
    found = [_one(value) for value in given]
    if not found:
        raise Unfit("expected", "write a number, or a list of numbers of which any is right")
    return found


def _one(value: Any) -> Number:
    number = None
    if isinstance(value, str):
        number = last_number(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = last_number(repr(value))
    if number is None:
        raise Unfit("expected", f"{shown(value)} holds no number; write one, such as 42 or '1,250.50'")
    return number


def _told(number: Number) -> str:
    value = number.value
    text = str(value.numerator) if value.denominator == 1 else _decimal(value)
    return shown(text)[1:-1] + (" %" if number.percent else "")


def _decimal(value: Fraction) -> str:
    try:
        return f"{float(value):.12g}"
    except OverflowError:
        return "a very large number"
