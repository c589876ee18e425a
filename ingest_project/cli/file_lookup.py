"""From what a person typed to the one file that is meant."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from ingest_project.cli.output import counted, printable
from ingest_project.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest_project.ledger.file_record import FileRecord
    from ingest_project.ledger.files import FileLedger

SEARCHED = 1_000
SHOWN = 5
SIMILAR_ENOUGH = 0.4


class NoSuchFile(PermanentError):  # noqa: N818 - the domain's word
    """No file, or more than one, has a key that begins like this.

    Args:
        key: as it was asked for.
        nearest: keys that may be meant.
    """

    def __init__(self, key: str, message: str, nearest: Sequence[str]) -> None:
        self.key = key
        self.nearest = tuple(nearest)
        super().__init__(printable(message))


def find_file(ledger: FileLedger, key: str) -> FileRecord:
    """The file with this key, or the only one whose key begins with it.

    Raises:
        NoSuchFile: there is none, or more than one; the message proposes the nearest keys.
    """
    if exact := ledger.get(key):
        return exact
    containing = ledger.list(text=key, limit=SEARCHED) if key else ()
    beginning = [record for record in containing if record.file_key.startswith(key)]
    if len(beginning) == 1:
        return beginning[0]
    if beginning:
        keys = [record.file_key for record in beginning[:SHOWN]]
        message = f"{counted(len(beginning), 'key')} begin with {key!r}: {', '.join(keys)}"
        raise NoSuchFile(key, message + (", ..." if len(beginning) > SHOWN else "."), keys)
    nearest = [record.file_key for record in containing[:SHOWN]] or nearest_keys(
        key, [record.file_key for record in ledger.list(limit=SEARCHED)]
    )
    hint = f" Nearest: {', '.join(nearest)}." if nearest else " `ingest files list` shows those there are."
    raise NoSuchFile(key, f"No file has the key {key!r}.{hint}", nearest)


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """Those of the known keys that are most like this one, by name or as a whole."""
    by_name: dict[str, str] = {}
    for known_key in known:
        # The newest version of a name stands for the others.
        by_name.setdefault(known_key.rpartition("~")[0], known_key)
    names = difflib.get_close_matches(key.rpartition("~")[0] or key, by_name, n=SHOWN, cutoff=SIMILAR_ENOUGH)
    whole = difflib.get_close_matches(key, known, n=SHOWN, cutoff=SIMILAR_ENOUGH)
    return list(dict.fromkeys([*whole, *(by_name[name] for name in names)]))[:SHOWN]
