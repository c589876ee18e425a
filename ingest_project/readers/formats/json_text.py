"""JSON of strangers: parse one value with its numbers as written, and write values back.

A float would change `0.10` and every integer above 2^53, so a number stays the text that it is.
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time
from decimal import Decimal
from math import isnan
from typing import Any

STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)
# After an odd number of backslashes it would be the text `\u0000` itself.
NUL = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000")
MAX_NUMBER_LENGTH = 400
# Where a number may be one that databases do not store.
HUGE = re.compile(r"[0-9][eE][+-]?[0-9]{3}|[0-9.]{300}")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Number(str):
    """A number, as it is written."""

    __slots__ = ()


class JsonParser:
    """Parses JSON as RFC 8259 has it, which Python's own parser takes less strictly.

    Args:
        max_depth: of objects and lists within each other.
    """

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._problem = ""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_int=Number, parse_float=Number, parse_constant=self._constant
        )

    def value_at(self, text: str, start: int = 0) -> tuple[Any, int, str]:
        """Parse the value that begins at a position.

        Returns:
            the value; its end; and why it is not accepted, empty if it is: `not_json` (NaN or Infinity),
            `duplicate_key`, `nested_too_deep`, `nul_byte`, or `invalid_unicode` (half of a surrogate pair).

        Raises:
            json.JSONDecodeError: the syntax is wrong, or the text ends too early.
            RecursionError: it is nested far too deeply.
        """
        self._problem = ""
        value, end = self._decoder.raw_decode(text, start)
        return value, end, self._problem or self._unacceptable(text[start:end], value)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._problem = "duplicate_key"
        return found

    def _constant(self, _name: str) -> None:
        self._problem = "not_json"

    def _unacceptable(self, text: str, value: object) -> str:
        if text.count("[") + text.count("{") > self._max_depth and depth_of(text) > self._max_depth:
            return "nested_too_deep"
        if "\\u" not in text:
            return ""
        if NUL.search(text):
            return "nul_byte"
        return "invalid_unicode" if SURROGATE.search(text) and not _is_unicode(value) else ""


def depth_of(text: str) -> int:
    """Return how many objects and lists are within each other, of valid JSON."""
    depth = deepest = 0
    for token in STRUCTURE.finditer(text):
        sign = token[0]
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def _is_unicode(value: object) -> bool:
    try:
        json_of(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def json_of(value: Any) -> str:  # noqa: ANN401 - whatever a file holds
    """Write a value as JSON: numbers as they were written, times in ISO 8601, bytes as text or hexadecimal digits.

    Args:
        value: of JSON or Arrow, as Python has it. A float that JSON cannot write is its name, as in streams.
    """
    if isinstance(value, Number | Decimal | bool | int) or value is None:
        return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_of(str(name))}:{json_of(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(json_of, value)) + "]"
    if isinstance(value, float):
        if value - value == 0:
            return repr(value)
        return '"NaN"' if isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
    if isinstance(value, date | datetime | time):
        value = value.isoformat()
    if isinstance(value, bytes):
        text = text_of(value)
        value = f"\\x{value.hex()}" if text is None else text
    return json.dumps(str(value), ensure_ascii=False)


def is_stored(number: str) -> bool:
    """Return False for a number of JSON with more digits, or another exponent, than databases store."""
    found = float(number)
    is_lost = found == 0 and re.match("[^eE]*[1-9]", number)
    return len(number) <= MAX_NUMBER_LENGTH and found - found == 0 and not is_lost


def text_of(value: bytes) -> str | None:
    """Return bytes as text if they are UTF-8, as many programs write texts; None if they are not."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
