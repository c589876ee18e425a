"""The warehouse: readings, metrics and refused rows of every file, and the end of its queue entry, in one transaction.

Whatever happens in the middle of a transaction (an exception, a killed process, a cut connection), the files of its
group are as they were before. A file that is stored again replaces its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ingest_project.platform.database.engine import database_address

if TYPE_CHECKING:
    import polars as pl

# Of versions that a newer one replaces; one that a run or a queue holds finds its successor there.
REPLACEABLE_STATES = ("ingested", "quarantined", "duplicate", "failed")


class StoredCounts(NamedTuple):
    """What is stored of one file, counted in the tables."""

    readings: int = 0
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
    """One refused row of a file, its text as it was, and why it was refused."""

    line_number: int
    raw_text: str
    reasons: tuple[str, ...]


class VersionRow(NamedTuple):
    """One version of a location, as the ledger has it; the last six say where it stands among the others."""

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

    Readings of an earlier time are known by the file's metrics or its ledger entry: a transaction that appends readings
    of a file also puts its metrics or finishes it.

    Raises:
        DatabaseUnavailableError: the database went away; run the transaction again later.
        TransactionConflictError: another transaction was in the way; run the transaction again.
    """

    def lock_locations(self, location_keys: Sequence[str], *, wait: bool) -> set[str]:
        """Keep other transactions from deciding about the versions of these locations until this one ends.

        Args:
            location_keys: hashes of the locations.
            wait: for whoever decides now; otherwise those locations are left out.

        Returns:
            the locations that are held.
        """

    def versions_at(self, location_keys: Sequence[str]) -> list[VersionRow]:
        """The versions of these locations that are not replaced, those in this transaction's hands among them."""

    def replace_versions(self, successors: Mapping[str, str], run_id: str) -> tuple[str, ...]:
        """Mark versions as replaced and held by this run until it has reported that; their rows are not touched.

        A version that a run or a queue holds only stands no more: whoever holds it finds its successor.

        Args:
            successors: key of each version to the key of the one that counts in its place.
            run_id: of the run that stores the successors.

        Returns:
            keys of those that were marked.
        """

    def pin_versions(self, versions: pl.DataFrame) -> None:
        """Record which versions were read of files whose events named none.

        Args:
            versions: file_key, size_bytes, modified_at, etag, version_at.
        """

    def replace_files(self, file_keys: Sequence[str]) -> None:
        """Delete what is stored of these files, and keep other transactions away from them until this one ends."""

    def append_readings(self, readings: pl.DataFrame) -> None:
        """Store readings: timestamp (Datetime us UTC), device_id, sensor_type, value, unit, file_key, line_number."""

    def append_quarantined(self, rows: pl.DataFrame) -> None:
        """Store refused rows: file_key, line_number, raw_text, reasons (list of strings)."""

    def put_metrics(self, metrics: pl.DataFrame) -> None:
        """Store metrics of replaced files: file_key, device_id, sensor_type, min, max, mean, count, stddev."""

    def claim_contents(self, claims: pl.DataFrame) -> dict[str, str]:
        """Ask which file stands for each content; the first that asks does, for good.

        Args:
            claims: file_key, sha256, meaning.

        Returns:
            for each file the key of the one that stands for its content: itself, or the file it is a duplicate of.
        """

    def release_contents(self, file_keys: Sequence[str]) -> tuple[str, ...]:
        """These files no longer stand for any content, being refused now.

        Returns:
            keys of their duplicates, which are pending again: one of them will stand for the content.
        """

    def finish_files(self, files: pl.DataFrame) -> None:
        """End the ledger entries of these files.

        Args:
            files: file_key, state, reason, error_class, run_id, sha256, profile, duplicate_of, replaced_by, rows_read,
                rows_accepted, rows_quarantined, rule_counts (JSON text: rule to number of rows).
        """


class Warehouse(Protocol):
    """Stores rows, and counts what is stored."""

    def transaction(self) -> AbstractContextManager[WarehouseTransaction]:
        """One database transaction: committed at the end, rolled back when anything is raised."""

    def file_counts(self, file_keys: Sequence[str]) -> dict[str, StoredCounts]:
        """What is stored of each of these files, counted in the tables; zeros where there is nothing."""

    def readings_of(self, file_key: str) -> Iterator[pl.DataFrame]:
        """The file's stored readings in parts of bounded size, in no particular order.

        Returns:
            frames of line_number, timestamp (UTC), device_id, sensor_type, value, unit.
        """

    def totals(self) -> StoredCounts:
        """What is stored of all files. Counts every row: for checks, not for every tick."""

    def metrics_of(self, file_key: str) -> tuple[DeviceMetric, ...]:
        """The file's metrics by device and sensor type."""

    def metrics_of_files(self, file_keys: Sequence[str]) -> Mapping[str, tuple[DeviceMetric, ...]]:
        """The same for many files; files without metrics are left out."""

    def device_metrics(self) -> tuple[DeviceMetric, ...]:
        """Merged over all files, by device and sensor type."""

    def quarantined_rows_of(self, file_key: str, limit: int = 100) -> tuple[QuarantinedRow, ...]:
        """The file's refused rows, the first lines first."""

    def close(self) -> None:
        """Give the connections back. The warehouse opens new ones when it is used again."""


def open_warehouse(database_url: str, connect_timeout_seconds: float = 10) -> Warehouse:
    """Return the warehouse at a SQLAlchemy URL; nothing is connected yet.

    PostgreSQL is loaded by binary COPY; every other database by ordinary inserts.

    Raises:
        SettingsError: the URL is empty or cannot be understood.
    """
    if database_address(database_url).get_backend_name() == "postgresql":
        from ingest_project.file_ingest.warehouse.postgres import PostgresWarehouse  # noqa: PLC0415 - loads the driver

        return PostgresWarehouse(database_url, connect_timeout_seconds)
    from ingest_project.file_ingest.warehouse.sql import SqlWarehouse  # noqa: PLC0415 - one of the two is used

    return SqlWarehouse(database_url, connect_timeout_seconds)
