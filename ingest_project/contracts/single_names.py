"""Refuse a name that occurs twice in a JSON object: parsers differ in which value they take; msgspec takes the last."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ingest_project.core.errors import UnreadableMessageError

# The names of fields; a mapping where there are more inside.
Tree = Mapping[str, Any]


class SingleNames:
    """Finds messages with a name that occurs twice.

    Args:
        tree: names that must not occur twice, at every level. Others may.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        names = "|".join(map(re.escape, sorted(set(_names(tree)))))
        # No encoder escapes ASCII letters: an object that names a field so is looked at.
        self._pattern = rf'"(?:{names})"\s*:|\\u00[2-7]'

    def problems(
        self, messages: Sequence[bytes], expected: np.ndarray[Any, Any] | int
    ) -> dict[int, UnreadableMessageError]:
        """Return what is wrong with some of the messages, by their numbers: a name occurs twice, or it is no JSON.

        Args:
            messages: JSON that was decoded.
            expected: how many of the names each has. One with as many is not looked at.
        """
        texts = pl.Series(messages, dtype=pl.Binary).cast(pl.String, strict=False)
        counts = texts.str.count_matches(self._pattern).fill_null(-1)
        found: dict[int, UnreadableMessageError] = {}
        for number in (counts != expected).arg_true().to_list():
            try:
                self._require(messages[number])
            except UnreadableMessageError as error:
                found[number] = error
        return found

    def _require(self, message: bytes) -> None:
        try:
            found = _PAIRS.decode(message.decode("utf-8-sig"))
        except RecursionError as error:
            raise UnreadableMessageError("Not JSON that can be read: nested too deeply.") from error
        except ValueError as error:
            raise UnreadableMessageError(f"Not JSON: {str(error)[:200]}.") from error
        _require(found, self._tree, "")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as names and values, names that occur twice included."""


# Numbers stay text: they may have more digits than Python converts.
_PAIRS = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=str, parse_float=str)


def _require(found: Any, tree: Tree, path: str) -> None:  # noqa: ANN401 - JSON of any shape
    if not isinstance(found, _Pairs):
        return
    names = [name for name, _ in found]
    for name, inside in tree.items():
        if (times := names.count(name)) > 1:
            raise UnreadableMessageError(f"{path}{name} occurs {times} times.")
        if times and isinstance(inside, Mapping):
            _require(found[names.index(name)][1], inside, f"{path}{name}.")


def _names(tree: Tree) -> Iterator[str]:
    for name, inside in tree.items():
        yield name
        if isinstance(inside, Mapping):
            yield from _names(inside)
