"""Refuse a name that occurs twice in a JSON object: parsers differ in which value they take; msgspec takes the last."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl

from ingest_project.contracts import not_json
from ingest_project.core.errors import UnreadableMessageError

# The names of fields; a mapping where there are more inside.
Tree = Mapping[str, Any]
Texts = Sequence[bytes | msgspec.Raw]

# Messages whose names are counted together: they fit into the cache of a core.
BLOCK_MESSAGES = 256
COLON, QUOTE = b':"'
# Escapes of a quote, a colon, and what is less than a quote and no control.
LIKE_A_NAME = re.compile(rb"\\u00(?:2[0-2]|3[aA])")
_encoder = msgspec.json.Encoder()


class SingleNames:
    """Finds messages with a name that occurs twice.

    Args:
        tree: the fields that are read. In an object that has one of them, no name may occur twice.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        names = "|".join(map(re.escape, sorted(set(_names(tree)))))
        self._objects = [_encoder.encode(name) + b":{" for name in set(_objects(tree))]
        # No encoder escapes ASCII letters: an object that names a field so is looked at.
        self._pattern = rf'"(?:{names})"\s*:|\\u00[2-7]'

    def problems(
        self,
        messages: Sequence[bytes],
        expected: np.ndarray[Any, Any] | int,
        kept: Sequence[Texts] = (),
        unknown: Sequence[bytes | None] = (),
    ) -> dict[int, UnreadableMessageError]:
        """Return what is wrong with some of the messages, by their numbers: a name occurs twice, or it is no JSON.

        Args:
            messages: JSON that was decoded.
            expected: how many of the fields each has.
            kept: for each field whose value is kept as it was written, the values; empty where one is missing.
            unknown: the other fields of each, a JSON object as the decoders make it; None without any.
        """
        found: dict[int, UnreadableMessageError] = {}
        for begin in range(0, len(messages), BLOCK_MESSAGES):
            rows = slice(begin, begin + BLOCK_MESSAGES)
            block, inside = messages[rows], [values[rows] for values in kept]
            names = [expected] * len(block) if isinstance(expected, int) else expected[rows].tolist()
            others = unknown[rows] or [None] * len(block)
            if not self._are_single(block, names, inside, others):
                suspects = self._suspects(block, names, inside, others)
                found |= {begin + number: error for number, error in _errors(block, suspects, self._tree)}
        return found

    def _are_single(
        self, messages: Texts, expected: Sequence[int], kept: Sequence[Texts], unknown: Sequence[bytes | None]
    ) -> bool:
        """Return True if messages have as many names as were read of them. False at times for sound ones."""
        text, others = b"".join(messages), b"".join(filter(None, unknown))
        names = sum(expected) + sum(_names_in(b"".join(values)) for values in kept)
        if others:
            # The names of known objects around unknown fields are counted already.
            names += _names_in(others) - sum(map(others.count, self._objects))
            # What looks like a name inside of one may have been written otherwise.
            if b"\\u00" in text and LIKE_A_NAME.search(text):
                return False
        return _names_in(text) == names and _is_utf8(text)

    def _suspects(
        self, messages: Sequence[bytes], expected: Sequence[int], kept: Sequence[Texts], unknown: Sequence[bytes | None]
    ) -> Iterator[int]:
        """Yield the numbers of messages that must be looked at, which costs more than decoding them."""
        counts = self._counts(messages)
        for values in kept:
            counts -= self._counts([bytes(value) for value in values])
        for number, others in enumerate(unknown):
            if others is None:
                # A text may look like a name; one of ours is rare inside a text.
                is_single = counts[number] == expected[number]
            else:
                one = slice(number, number + 1)
                is_single = self._are_single(messages[one], expected[one], [values[one] for values in kept], [others])
            if not is_single:
                yield number

    def _counts(self, texts: Sequence[bytes]) -> np.ndarray[Any, Any]:
        strings = pl.Series([text.decode() if _is_utf8(text) else None for text in texts], dtype=pl.String)
        return strings.str.count_matches(self._pattern).cast(pl.Int64).fill_null(-1).to_numpy(writable=True)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as names and values, names that occur twice included."""


# Numbers stay text: they may have more digits than Python converts.
_PAIRS = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=str, parse_float=str)


def _errors(
    messages: Sequence[bytes], suspects: Iterator[int], tree: Tree
) -> Iterator[tuple[int, UnreadableMessageError]]:
    for number in suspects:
        try:
            _require(_PAIRS.decode(messages[number].decode("utf-8-sig")), tree, "")
        except UnreadableMessageError as error:
            yield number, error
        except (ValueError, RecursionError) as error:
            yield number, not_json(messages[number], error)


def _require(found: Any, tree: Tree, path: str) -> None:  # noqa: ANN401 - JSON of any shape
    if not isinstance(found, _Pairs):
        return
    values: dict[str, Any] = {}
    for name, value in found:
        if name in values:
            times = sum(each == name for each, _ in found)
            raise UnreadableMessageError(f"{path}{name[:200]} occurs {times} times.")
        values[name] = value
    for name, inside in tree.items():
        if name in values and isinstance(inside, Mapping):
            _require(values[name], inside, f"{path}{name}.")


def _names_in(text: bytes | msgspec.Raw) -> int:
    """Count the names of a JSON text; what looks like one inside a string counts as well."""
    codes = np.frombuffer(text, np.uint8)
    # A quote, or white space behind one, which is less than a quote.
    return int(np.count_nonzero((codes[1:] == COLON) & (codes[:-1] <= QUOTE)))


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _names(tree: Tree) -> Iterator[str]:
    for name, inside in tree.items():
        yield name
        if isinstance(inside, Mapping):
            yield from _names(inside)


def _objects(tree: Tree) -> Iterator[str]:
    for name, inside in tree.items():
        if isinstance(inside, Mapping):
            yield name
            yield from _objects(inside)
