"""Which commits of a Delta table may have taken rows away: a restore, a delete, an overwrite, by whatever program.

The position of a stream says how far the table came, and Delta keeps it through all of these: a restored table has the
newest position and the oldest rows. So whoever relies on a position looks at the commits since the last look as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltalake import DeltaTable

# What these leave is at least what was there. Any other operation, also one that is not known, may take rows away.
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
MOST_NAMED = 5
# Each is a file of the log to be read; of more than these it is quicker to count the rows.
MOST_LOOKED_AT = 1_000


class History:
    """The commits of a table that its log still has, read once and as far back as somebody asked."""

    def __init__(self, table: DeltaTable) -> None:
        self._table = table
        self._newest = table.version()
        self._commits: dict[int, dict[str, Any]] = {}
        self._read = 0

    def doubtful_commits(self, checked: int | None) -> tuple[str, ...]:
        """Name the commits after a version that may have removed rows, the newest first, at most a few.

        Args:
            checked: the version up to which somebody has looked; None: nobody ever did, and what the log has is all
                there is to see.
        """
        wanted = self._newest - (-1 if checked is None else checked)
        self._look_back(min(wanted, MOST_LOOKED_AT))
        oldest = min(self._commits, default=self._newest + 1) if checked is None else checked + 1
        found: list[str] = []
        for version in range(self._newest, oldest - 1, -1):
            if len(found) == MOST_NAMED:
                break
            if version not in self._commits:
                return (*found, f"version {version} and those before it were not looked at")
            if not _keeps_rows(self._commits[version]):
                found.append(f"{self._commits[version].get('operation', 'unnamed')} (version {version})")
        return tuple(found)

    def _look_back(self, entries: int) -> None:
        if entries > self._read:
            self._commits = {int(entry["version"]): entry for entry in self._table.history(entries)}
            self._read = entries


def _keeps_rows(commit: dict[str, Any]) -> bool:
    operation, parameters = commit.get("operation"), commit.get("operationParameters") or {}
    if operation in ONLY_ADDS:
        return str(parameters.get("mode") or parameters.get("outputMode")).lower() == "append"
    return operation in KEEPS_ROWS
