"""The warehouse: accepted rows, metrics and rejected rows of every file, and its queue entry, in one transaction.

If a transaction is interrupted (an exception, a killed process, a lost connection), the files of its group stay
unchanged. A file that is stored again replaces its own rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

import polars as pl

# States of versions that a newer one may replace. A leased version finds its successor when it is stored.
REPLACEABLE_STATES = ("ingested", "quarantined", "duplicate", "failed")


class StoredCounts(NamedTuple):
    """Counts of the stored rows of one file."""

    rows: int = 0
    quarantined: int = 0
    metrics: int = 0


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
            run_id: id of the run that stores the successors.

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
            file_keys: keys of the files.
            unstored: files that no run has started before; a table without an index is not searched for them.
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
