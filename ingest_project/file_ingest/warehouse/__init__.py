"""The warehouse: accepted rows, metrics and rejected rows of every file, and its queue entry, in one transaction.

If a transaction is interrupted (an exception, a killed process, a lost connection), the files of its group stay
unchanged. A file that is stored again replaces its own rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import polars as pl

# Of versions that a newer one replaces; a version that is leased finds its successor when it is stored.
REPLACEABLE_STATES = ("ingested", "quarantined", "duplicate", "failed")


class StoredCounts(NamedTuple):
    """Counts of the stored rows of one file."""

    rows: int = 0
    quarantined: int = 0
    metrics: int = 0


class DeviceMetric(NamedTuple):
    """Readings of one device and sensor type, of one file or of all, summarised.

    Args:
        mean: None over all files where readings are too large to be summed.
        stddev: of the sample; None for a single reading, and over all files where readings are too large to be squared.
    """

    device_id: str
    sensor_type: str
    min: float
    max: float
    mean: float | None
    count: int  # type: ignore[assignment]  # tuple.count is not used, and the column is named so
    stddev: float | None


class QuarantinedRow(NamedTuple):
    """One rejected row of a file, its text as written, and the reasons."""

    line_number: int
    raw_text: str
    reasons: tuple[str, ...]


class VersionRow(NamedTuple):
    """One version of a location in the work queue; the last six order it among the others."""

    location_key: str
    state: str
    stands: bool
    version_at: datetime
    announced_at: datetime
    topic: str
    partition: int
    offset: int
    file_key: str


class WarehouseTransaction(Protocol):
    """One group of files, or one large file in many chunks. Frames are polars; NUL characters become U+FFFD.

    Rows stored earlier are known by the file's metrics or its queue entry: a transaction that appends rows
    of a file also puts its metrics or finishes it.

    Raises:
        DatabaseUnavailableError: the database went away; run the transaction again later.
        TransactionConflictError: another transaction was in the way; run the transaction again.
    """

    def lock_locations(self, location_keys: Sequence[str], *, wait: bool) -> set[str]:
        """Keep other transactions from deciding about the versions of these locations until this one ends.

        Args:
            location_keys: hashes of the locations.
            wait: for the transaction that decides now; otherwise those locations are left out.

        Returns:
            the locations that are locked.
        """

    def versions_at(self, location_keys: Sequence[str]) -> list[VersionRow]:
        """Return the versions of these locations that are not replaced, this transaction's own included."""

    def replace_versions(self, successors: Mapping[str, str], run_id: str) -> tuple[str, ...]:
        """Mark versions as replaced and leased by this run until it has reported that; their rows are not touched.

        A version that a run or a queue has leased is only marked as not current: its run finds the successor.

        Args:
            successors: key of each version to the key of the one that counts instead.
            run_id: of the run that stores the successors.

        Returns:
            keys of those that were marked.
        """

    def pin_versions(self, versions: pl.DataFrame) -> None:
        """Record which versions were read of files whose events named none.

        Args:
            versions: file_key, size_bytes, modified_at, etag, version_at.
        """

    def replace_files(self, file_keys: Sequence[str], unstored: Collection[str] = ()) -> None:
        """Delete what is stored of these files, and keep other transactions away from them until this one ends.

        Args:
            file_keys: of the files.
            unstored: those of them that no run has begun before: a table without an index is not searched for them.
        """

    def append_rows(self, rows: pl.DataFrame) -> None:
        """Store accepted rows, with the columns of the dataset's table of rows."""

    def append_quarantined(self, rows: pl.DataFrame) -> None:
        """Store rejected rows: file_key, line_number, raw_text, reasons (list of strings)."""

    def put_metrics(self, metrics: pl.DataFrame) -> None:
        """Store metrics of replaced files, with the columns of the dataset's table of metrics."""

    def claim_contents(self, claims: pl.DataFrame) -> dict[str, str]:
        """Claim contents for files; the first file that claims a content represents it permanently.

        Args:
            claims: file_key, sha256, meaning.

        Returns:
            for each file the key of the one that represents its content: itself, or the file it is a duplicate of.
        """

    def release_contents(self, file_keys: Sequence[str]) -> tuple[str, ...]:
        """Release the contents that these files, which are rejected now, represent.

        Returns:
            keys of their duplicates, which are pending again: one of them will represent the content.
        """

    def finish_files(self, files: pl.DataFrame) -> None:
        """Finish the queue entries of these files.

        Args:
            files: file_key, state, reason, error_class, run_id, sha256, profile, duplicate_of, replaced_by, rows_read,
                rows_accepted, rows_quarantined, rule_counts (JSON text: rule to number of rows), drifted.
        """

    def put_statistics(self, statistics: pl.DataFrame, without: Sequence[str]) -> None:
        """Store the statistics of ingested files, which replace those of an earlier attempt.

        Args:
            statistics: the columns of `file_statistics`, `null_counts` as JSON text.
            without: keys of files that are not ingested: they have none.
        """


class RowsElsewhere(Protocol):
    """The accepted rows of a dataset outside the database, written in one commit before the database's own."""

    def session(self) -> AbstractContextManager[RowsSession]:
        """Collect the changes of one transaction, and drop them at the end."""

    def counts(self, file_keys: Sequence[str] | None) -> dict[str, int]:
        """Count the stored rows of each of these files, or of all; files without rows are left out."""

    def rows_of(self, file_key: str) -> Iterator[pl.DataFrame]:
        """Yield the file's stored rows in parts of bounded size, in no particular order."""

    def rows_before(self, file_keys: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield the rows that these files had before the last commit that deleted any.

        Of a file whose commit is out of retention there are none.
        """

    def changed_since(self, versions: Mapping[str, int]) -> tuple[set[str], int]:
        """Return which of these files were written after a version of each, and the present version."""

    def rows_at(self, versions: Mapping[str, int]) -> Iterator[pl.DataFrame]:
        """Yield the rows that these files had in a version of each."""

    def page_of(self, file_key: str, names: Sequence[str], first: int, limit: int) -> Sequence[tuple[Any, ...]]:
        """Return so many of the file's stored rows after the first so many, in the order of their lines."""


class RowsSession(Protocol):
    """Changes of rows outside the database."""

    def replace(self, file_keys: Collection[str]) -> None:
        """Delete the rows that are stored of these files."""

    def append(self, rows: pl.DataFrame) -> None:
        """Add rows."""

    @property
    def file_keys(self) -> AbstractSet[str]:
        """The files whose rows change."""

    def commit(self) -> int | None:
        """Write all changes at once; returns the version that has them, None without any."""


class Warehouse(Protocol):
    """Stores the rows of one dataset, and counts what is stored."""

    def transaction(self) -> AbstractContextManager[WarehouseTransaction]:
        """Open a database transaction: committed at the end, rolled back when anything is raised."""

    def file_counts(self, file_keys: Sequence[str]) -> dict[str, StoredCounts]:
        """Count the stored rows of each of these files in the tables."""

    def rows_of(self, file_key: str) -> Iterator[pl.DataFrame]:
        """Yield the file's stored rows in parts of bounded size, in no particular order, without their file_key."""

    def undo_unrecorded(self) -> tuple[str, ...]:
        """Delete rows outside the database of files that it does not record as stored, and restore what they replaced.

        Rows outside are committed first, and the commit of the database may fail for good. The second time nothing
        is left to do.

        Returns:
            keys of the files whose rows were deleted.
        """

    def totals(self) -> StoredCounts:
        """Count what is stored of all files. Reads every row: for checks, not for every tick."""

    def summaries_of(self, file_key: str) -> list[dict[str, Any]]:
        """Return the rows of the dataset's table of metrics for a file, by its group columns; empty without a table."""

    def metrics_of(self, file_key: str) -> tuple[DeviceMetric, ...]:
        """Return the file's metrics by device and sensor type."""

    def metrics_of_files(self, file_keys: Sequence[str]) -> Mapping[str, tuple[DeviceMetric, ...]]:
        """Return the metrics of many files; files without metrics are left out."""

    def device_metrics(self) -> tuple[DeviceMetric, ...]:
        """Return the metrics merged over all files, by device and sensor type."""

    def quarantined_rows_of(self, file_key: str, limit: int = 100) -> tuple[QuarantinedRow, ...]:
        """Return the file's rejected rows, the first lines first."""

    def close(self) -> None:
        """Close the connections. The warehouse opens new ones when it is used again."""
