"""Refuse a message with a JSON object that has a name twice: parsers differ in which value they take; msgspec the last.

This holds at any depth, also inside values that are stored as sent: their readers would have to guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np

from ingest_project.contracts import require_single_names
from ingest_project.core.errors import UnreadableMessageError

Texts = Sequence[bytes | msgspec.Raw]

# Messages whose names are counted together: they fit into the cache of a core.
BLOCK_MESSAGES = 256
COLON, QUOTE = b':"'
BACKSLASH = b"\\"
# Escapes of a quote, a colon, and printable characters below the quote: written out unescaped, they may look like the
# end of a name, although the sent text did not.
LIKE_A_NAME = re.compile(rb"\\u00(?:2[0-2]|3[aA])")
_encoder = msgspec.json.Encoder()
_flat = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_values = msgspec.json.Decoder()


class SingleNames:
    """Finds messages with an object that has a name twice.

    Args:
        objects: names of the objects whose fields are read one by one.
    """

    def __init__(self, objects: Iterable[str] = ()) -> None:
        self._objects = [_encoder.encode(name) + b":{" for name in set(objects)]

    def problems(
        self,
        messages: Sequence[bytes],
        expected: np.ndarray[Any, Any] | int,
        kept: Sequence[Texts] = (),
        unknown: Sequence[bytes | None] = (),
    ) -> dict[int, UnreadableMessageError]:
        """Return the faults of messages, by their numbers: a name occurs twice, or the message is not JSON.

        Args:
            messages: JSON that was decoded.
            expected: how many fields were read of each.
            kept: for each field whose value is kept as it was written, the values; empty where one is missing.
            unknown: the other fields of each, a JSON object as the decoders make it; None without any.
        """
        found: dict[int, UnreadableMessageError] = {}
        for begin in range(0, len(messages), BLOCK_MESSAGES):
            rows = slice(begin, begin + BLOCK_MESSAGES)
            block = messages[rows]
            names = expected * len(block) if isinstance(expected, int) else int(expected[rows].sum())
            if not self._are_single(block, names, [values[rows] for values in kept], unknown[rows]):
                found |= {begin + number: error for number, error in _errors(block)}
        return found

    def _are_single(
        self, messages: Sequence[bytes], names: int, kept: Sequence[Texts], unknown: Sequence[bytes | None]
    ) -> bool:
        """Return True if messages have as many names as were read of them. False at times for sound ones."""
        text, others = b"".join(messages), list(filter(None, unknown))
        for written in (*kept, others):
            single = _single_names_in(list(filter(None, written)))
            if single is None:
                return False
            names += single
        # The names of known objects around unknown fields are counted already.
        names -= sum(one.count(name) for one in others for name in self._objects)
        return _count_names(text) == names and _is_utf8(text)


def _errors(messages: Sequence[bytes]) -> Iterator[tuple[int, UnreadableMessageError]]:
    """Yield the errors of messages by their numbers; looking at each on its own costs more than decoding it."""
    again = [_written_again([raw]) for raw in messages]
    is_same = _names_in(messages) == _names_in([one or b"" for one in again])
    for number, (raw, one) in enumerate(zip(messages, again, strict=True)):
        if one is None or not is_same[number]:
            try:
                require_single_names(raw)
            except UnreadableMessageError as error:
                yield number, error


def _single_names_in(texts: Texts) -> int | None:
    """Count the names of JSON values, one that an object has twice only once; None where that is not comparable."""
    text = b",".join(texts)
    if text.count(b"{") == len(texts):
        # No object is inside of another one: reading their values, and writing them again, would take longer.
        with suppress(ValueError, RecursionError):
            names = sum(map(len, _flat.decode(b"[%s]" % text)))
            if names == _count_names(text):
                return names
    again = _written_again(texts)
    return None if again is None else _count_names(again)


def _written_again(texts: Texts) -> bytes | None:
    """Return JSON values as a list that has each name of an object once; None where that may not be comparable."""
    text = b",".join(texts)
    # One byte is found many times faster than several.
    if BACKSLASH in text and LIKE_A_NAME.search(text):
        return None
    try:
        return _encoder.encode(_values.decode(b"[%s]" % text))
    except (ValueError, OverflowError, RecursionError):
        # A number or a text that msgspec does not read, and that is kept as it is.
        return None


def _count_names(text: bytes) -> int:
    """Count the names of a JSON text; what looks like one inside a string counts as well."""
    return int(np.count_nonzero(_are_names(text)))


def _names_in(texts: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """Count the names of each JSON text, see `_count_names`."""
    names = np.flatnonzero(_are_names(b"".join(texts)))
    ends = np.cumsum([len(text) for text in texts])
    return np.diff(np.searchsorted(names, ends), prepend=0)


def _are_names(text: bytes) -> np.ndarray[Any, Any]:
    """Return for each byte but the last whether a name ends there."""
    codes = np.frombuffer(text, np.uint8)
    # A quote, or white space behind one, which is less than a quote.
    found: np.ndarray[Any, Any] = (codes[1:] == COLON) & (codes[:-1] <= QUOTE)
    return found


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
