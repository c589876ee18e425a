"""Drift: how the columns of a file differ from those that its dataset declares.

Nothing of a file is dropped silently. A column that nobody declared is kept as JSON next to its row (`rescue`), becomes
a column of the table (`evolve`), or rejects the file (`freeze`); each of the three reports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.layout import RowsChunk, Target

SCHEMA_CHANGED = "schema_changed"
MAX_COLUMNS_SHOWN = 50
# Reasons of values that are not of the type of their column.
OTHER_TYPES = ("_not_a_", "_not_an_", "_unparseable")

Policy = Literal["rescue", "evolve", "freeze"]
FATES: Mapping[str, str] = {
    "rescue": "kept in rescued_data",
    "evolve": "added to the table",
    "freeze": "refused with the file",
}


@dataclass(frozen=True)
class Drift:
    """Differences between the columns of a file and the declared ones.

    Args:
        unknown: columns of the file that are not declared, and that its profile does not leave out on purpose.
        missing: declared columns that the file does not have, and need not have.
        retyped: columns in which more than half of the rows have values of another type.
        reordered: True if the declared columns come in another order.
        left_out: files of an archive that the profile does not choose.
        rescued: those of the unknown columns that stay in rescued_data although the dataset evolves.
    """

    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()
    reordered: bool = False
    left_out: tuple[str, ...] = ()
    rescued: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """True if anything but the order differs: columns are matched by their names."""
        return bool(self.unknown or self.missing or self.retyped)

    def __str__(self) -> str:
        """Return what differs, in words."""
        named = {"unknown": self.unknown, "missing": self.missing, "of another type": self.retyped}
        named |= {"not added but kept in rescued_data": self.rescued}
        parts = [f"{what}: {', '.join(names[:MAX_COLUMNS_SHOWN])}" for what, names in named.items() if names]
        return "; ".join([*parts, *(["the columns come in another order"] if self.reordered else [])])

    def metadata(self) -> dict[str, Any]:
        """Return what differs, for the UI; nothing where nothing does."""
        named = {"unknown_columns": self.unknown, "missing_columns": self.missing, "retyped_columns": self.retyped}
        named |= {"members_left_out": self.left_out, "rescued_columns": self.rescued}
        shown: dict[str, Any] = {name: list(columns[:MAX_COLUMNS_SHOWN]) for name, columns in named.items() if columns}
        return shown | ({"columns_reordered": True} if self.reordered else {})


NO_DRIFT = Drift()


def drift_of(
    chunk: RowsChunk, target: Target, rule_counts: Mapping[str, int], rows_read: int, rescued: tuple[str, ...]
) -> Drift:
    """Return the drift of a file.

    Args:
        chunk: the first one of the file: a header says the same in all of them.
        target: the declared columns.
        rule_counts: how often each rule was broken.
        rows_read: rows of the file.
        rescued: see `Contract.rescued`.
    """
    wrong = dict.fromkeys(target.columns, 0)
    for rule, count in rule_counts.items():
        for column in target.columns:
            if rule.startswith(tuple(f"{column}{end}" for end in OTHER_TYPES)):
                wrong[column] += count
    retyped = tuple(column for column, count in wrong.items() if 2 * count > rows_read)
    # Where profiles name all columns, one that they do not name is not missing.
    missing = chunk.missing_columns if target.by_name else ()
    return Drift(chunk.unknown_columns, missing, retyped, chunk.reordered, chunk.left_out, rescued)


def require_unchanged(drift: Drift) -> None:
    """Reject a file whose columns differ from the declared ones in more than their order.

    Raises:
        FileRejectedError: `schema_changed`.
    """
    if drift.found:
        raise FileRejectedError(
            SCHEMA_CHANGED,
            f"Its columns are not those of the frozen dataset: {drift}. Declare them, or use drift: rescue.",
        )
