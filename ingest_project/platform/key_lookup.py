"""Find the one entry of a work queue whose key, or the beginning of it, a person typed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ingest_project.core.console import counted
from ingest_project.core.errors import PermanentError
from ingest_project.core.terminal_text import printable

MAX_SEARCHED = 1_000
SHOWN = 5
MIN_SIMILARITY = 0.4

Record_co = TypeVar("Record_co", covariant=True)
Record = TypeVar("Record")


class UnknownKeyError(PermanentError):
    """No key, or more than one, begins like this.

    Args:
        key: as it was typed.
        nearest: keys that may be meant.
    """

    def __init__(self, key: str, message: str, nearest: Sequence[str]) -> None:
        self.key = key
        self.nearest = tuple(nearest)
        super().__init__(printable(message))


class SearchableQueue(Protocol[Record_co]):
    """What a work queue offers for it."""

    def get(self, key: str, /) -> Record_co | None:
        """Return the entry with this key."""
        ...

    def list(self, *, text: str | None = None, limit: int = 100) -> Sequence[Record_co]:
        """Return entries that contain the text."""
        ...


def find_by_key(
    queue: SearchableQueue[Record], key: str, key_of: Callable[[Record], str], noun: str, listing: str
) -> Record:
    """Return the entry with this key, or the only one whose key begins with it.

    Args:
        queue: that is searched.
        key: as it was typed.
        key_of: returns the key of an entry.
        noun: of an entry, for people.
        listing: command that lists the entries.

    Raises:
        UnknownKeyError: there is none, or more than one; the message proposes the nearest keys.
    """
    if exact := queue.get(key):
        return exact
    containing = queue.list(text=key, limit=MAX_SEARCHED) if key else ()
    beginning = [record for record in containing if key_of(record).startswith(key)]
    if len(beginning) == 1:
        return beginning[0]
    if beginning:
        keys = [key_of(record) for record in beginning[:SHOWN]]
        message = f"{counted(len(beginning), 'key')} begin with {key!r}: {', '.join(keys)}"
        raise UnknownKeyError(key, message + (", ..." if len(beginning) > SHOWN else "."), keys)
    nearest = [key_of(record) for record in containing[:SHOWN]] or nearest_keys(
        key, [key_of(record) for record in queue.list(limit=MAX_SEARCHED)]
    )
    hint = f" Nearest: {', '.join(nearest)}." if nearest else f" `{listing}` shows those there are."
    raise UnknownKeyError(key, f"No {noun} has the key {key!r}.{hint}", nearest)


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """Return the known keys that are most like this one, by name or as a whole."""
    by_name: dict[str, str] = {}
    for known_key in known:
        # The newest version of a name stands for the others.
        by_name.setdefault(known_key.rpartition("~")[0], known_key)
    names = difflib.get_close_matches(key.rpartition("~")[0] or key, by_name, n=SHOWN, cutoff=MIN_SIMILARITY)
    whole = difflib.get_close_matches(key, known, n=SHOWN, cutoff=MIN_SIMILARITY)
    return list(dict.fromkeys([*whole, *(by_name[name] for name in names)]))[:SHOWN]
