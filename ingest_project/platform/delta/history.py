"""Read the figures of a Delta table and its history: the commits that may have removed rows.

A restore, a delete or an overwrite, by whatever program, may remove rows. Delta keeps the position of a stream through
all of these, so the owner of a position checks the commits too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltalake import DeltaTable


# These keep every row. Any other operation, also an unknown one, may remove rows.
ONLY_ADDS = frozenset({"WRITE", "STREAMING UPDATE"})
KEEPS_ROWS = frozenset(
    {
        "CREATE TABLE",
        "OPTIMIZE",
        "VACUUM START",
        "VACUUM END",
        "SET TBLPROPERTIES",
        "UNSET TBLPROPERTIES",
        "ADD COLUMN",
        "ADD COLUMNS",
        "ADD CONSTRAINT",
        "DROP CONSTRAINT",
        "ADD FEATURE",
        "UPDATE TABLE METADATA",
        "UPDATE FIELD METADATA",
    }
)
MAX_NAMED = 5
# Each is a file of the log to be read; of more than these it is quicker to count the rows.
MAX_CHECKED = 1_000


class History:
    """The commits of a table that its log still has, read once and as far back as needed."""

    def __init__(self, table: DeltaTable) -> None:
        self._table = table
        self._newest = table.version()
        self._commits: dict[int, dict[str, Any]] = {}
        self._read = 0

    def doubtful_commits(self, checked: int | None) -> tuple[str, ...]:
        """Name the commits after a version that may have removed rows, the newest first, at most a few.

        Args:
            checked: the version up to which the commits were checked; None: they never were, and the whole log is
                checked.
        """
        wanted = self._newest - (-1 if checked is None else checked)
        self._read_back(min(wanted, MAX_CHECKED))
        oldest = min(self._commits, default=self._newest + 1) if checked is None else checked + 1
        found: list[str] = []
        for version in range(self._newest, oldest - 1, -1):
            if len(found) == MAX_NAMED:
                break
            if version not in self._commits:
                return (*found, f"version {version} and those before it were not checked")
            if not _keeps_rows(self._commits[version]):
                found.append(f"{self._commits[version].get('operation', 'unnamed')} (version {version})")
        return tuple(found)

    def _read_back(self, entries: int) -> None:
        if entries > self._read:
            self._commits = {int(entry["version"]): entry for entry in self._table.history(entries)}
            self._read = entries


def _keeps_rows(commit: dict[str, Any]) -> bool:
    operation, parameters = commit.get("operation"), commit.get("operationParameters") or {}
    if operation in ONLY_ADDS:
        return str(parameters.get("mode") or parameters.get("outputMode")).lower() == "append"
    return operation in KEEPS_ROWS


@dataclass(frozen=True)
class TableFigures:
    """A table at one version. `rows` is None when a writer left its files uncounted."""

    table_version: int
    files: int
    rows: int | None
    size_bytes: int


def figures_of(table: DeltaTable) -> TableFigures:
    """Return the figures of an open handle; reads nothing from the store."""
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.compute as pc  # noqa: PLC0415

    adds = pa.table(table.get_add_actions(flatten=True))
    counts = adds["num_records"]
    rows = None if counts.null_count else pc.sum(counts).as_py() or 0
    return TableFigures(table.version(), adds.num_rows, rows, pc.sum(adds["size_bytes"]).as_py() or 0)
