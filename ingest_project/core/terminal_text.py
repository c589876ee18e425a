"""Make untrusted text safe for a terminal: file names, reasons, raw rows and exceptions, in tables, logs and JSON.

A character that is not printable (C0 and C1 controls, DEL, bidirectional and other format characters, lone surrogates,
unassigned code points) is printed as an escape: it could move the cursor, change colours, reverse the text or forge a
line.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

# Printable ASCII needs no check; other characters are checked one by one.
_DOUBTFUL = re.compile(r"[^\x20-\x7e]")
_DOUBTFUL_IN_JSON = re.compile(r"[^\n\x20-\x7e]")


def printable(value: object) -> str:
    """Return the text on one line, with every character that is not printable as an escape."""
    return _DOUBTFUL.sub(lambda found: _escaped(found[0]), str(value))


def printable_lines(text: str) -> str:
    """Return the text with its lines kept, each printable."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """Return the same JSON with characters that are not printable as JSON's own escapes.

    Args:
        text: JSON, in which such characters can only be part of strings.
    """
    return _DOUBTFUL_IN_JSON.sub(lambda found: _json_escaped(found[0]), text)


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return any value as printable JSON: structs, times and enums included, null for NaN and infinity."""
    plain = _finite(msgspec.to_builtins(value, str_keys=True, enc_hook=str))
    return printable_json(json.dumps(plain, ensure_ascii=False, indent=indent))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _json_escaped(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index] << 8 | units[index + 1]:04x}" for index in range(0, len(units), 2))


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can show
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
