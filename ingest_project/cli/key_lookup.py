"""From what a person typed to the one file or attachment that is meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Protocol, TypeVar

from ingest_project.attachments.queue import AttachmentQueue, AttachmentRecord
from ingest_project.core.console import counted
from ingest_project.core.errors import PermanentError
from ingest_project.core.terminal_text import printable
from ingest_project.file_ingest.file_queue import FileQueue, FileRecord

SEARCHED = 1_000
SHOWN = 5
SIMILAR_ENOUGH = 0.4

Record_co = TypeVar("Record_co", covariant=True)
Record = TypeVar("Record")


class UnknownKeyError(PermanentError):
    """Nothing, or more than one thing, has a key that begins like this.

    Args:
        key: as it was asked for.
        nearest: keys that may be meant.
    """

    def __init__(self, key: str, message: str, nearest: Sequence[str]) -> None:
        self.key = key
        self.nearest = tuple(nearest)
        super().__init__(printable(message))


class _Ledger(Protocol[Record_co]):
    def get(self, key: str, /) -> Record_co | None: ...

    def list(self, *, text: str | None = None, limit: int = 100) -> Sequence[Record_co]: ...


def find_file(ledger: FileQueue, key: str) -> FileRecord:
    """The file with this key, or the only one whose key begins with it.

    Raises:
        UnknownKeyError: there is none, or more than one; the message proposes the nearest keys.
    """
    return _find(ledger, key, attrgetter("file_key"), "file", "ingest files list")


def find_attachment(ledger: AttachmentQueue, key: str) -> AttachmentRecord:
    """The attachment with this key, or the only one whose key begins with it.

    Raises:
        UnknownKeyError: there is none, or more than one; the message proposes the nearest keys.
    """
    return _find(ledger, key, attrgetter("attachment_key"), "attachment", "ingest attachments list")


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """Those of the known keys that are most like this one, by name or as a whole."""
    by_name: dict[str, str] = {}
    for known_key in known:
        # The newest version of a name stands for the others.
        by_name.setdefault(known_key.rpartition("~")[0], known_key)
    names = difflib.get_close_matches(key.rpartition("~")[0] or key, by_name, n=SHOWN, cutoff=SIMILAR_ENOUGH)
    whole = difflib.get_close_matches(key, known, n=SHOWN, cutoff=SIMILAR_ENOUGH)
    return list(dict.fromkeys([*whole, *(by_name[name] for name in names)]))[:SHOWN]


def _find(ledger: _Ledger[Record], key: str, key_of: Callable[[Record], str], noun: str, listing: str) -> Record:
    if exact := ledger.get(key):
        return exact
    containing = ledger.list(text=key, limit=SEARCHED) if key else ()
    beginning = [record for record in containing if key_of(record).startswith(key)]
    if len(beginning) == 1:
        return beginning[0]
    if beginning:
        keys = [key_of(record) for record in beginning[:SHOWN]]
        message = f"{counted(len(beginning), 'key')} begin with {key!r}: {', '.join(keys)}"
        raise UnknownKeyError(key, message + (", ..." if len(beginning) > SHOWN else "."), keys)
    nearest = [key_of(record) for record in containing[:SHOWN]] or nearest_keys(
        key, [key_of(record) for record in ledger.list(limit=SEARCHED)]
    )
    hint = f" Nearest: {', '.join(nearest)}." if nearest else f" `{listing}` shows those there are."
    raise UnknownKeyError(key, f"No {noun} has the key {key!r}.{hint}", nearest)
