"""Delta table maintenance: compaction, log checkpointing and vacuum.

Every commit adds files and one entry to the log, and each of them makes later commits slower. Maintenance may run
concurrently with appends: compaction does not conflict with appending. If two maintenance runs meet, one stops.

This module guarantees the latter, because delta-rs lets two compactions of the same files both commit, which doubles
every row. But delta-rs refuses a compaction if the table's metadata changed after the state that it started from. So
each run first writes its own claim into the table's properties, and never compacts a state with another run's claim: a
later claim stops all unfinished work of an earlier run. A writer retries an append that conflicts with a claim.

Compaction by another program (Spark's or Fabric's OPTIMIZE) makes no claim: let only one program maintain a table.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, PostCommitHookProperties

from ingest_project.core.errors import TransactionConflictError
from ingest_project.core.settings import DeltaSettings
from ingest_project.platform.delta import TableFigures, delta_errors
from ingest_project.platform.delta.schema import figures_of
from ingest_project.platform.delta.table import ROWS_OF_GROUP, DeltaStore

CLAIM_PROPERTY = "ingest_project.maintenance"


@dataclass(frozen=True)
class Maintenance:
    """Result of one maintenance run.

    Args:
        compacted: compacted partitions, as `column=value/...`; an empty text is the whole table.
        conflicted: partitions not compacted because another maintenance run, or a new column, changed the table.
        postponed: partitions skipped for lack of time.
        removed: files deleted, relative to the table.
    """

    before: TableFigures
    after: TableFigures
    compacted: list[str]
    conflicted: list[str]
    postponed: list[str]
    removed: list[str]


def summary(maintenance: Maintenance | None) -> str:
    """Return one line about a maintenance run, or about a table that does not exist yet."""
    if maintenance is None:
        return "There is no table yet."
    return (
        f"{maintenance.before.files} files became {maintenance.after.files}; {len(maintenance.removed)} were removed."
    )


@dataclass(frozen=True)
class _Partition:
    values: tuple[tuple[str, str | None], ...]

    @property
    def name(self) -> str:
        return "/".join(f"{column}={value}" for column, value in self.values)

    @property
    def filters(self) -> list[tuple[str, str, str]] | None:
        # delta-rs writes a missing value as an empty text.
        return [(column, "=", value or "") for column, value in self.values] or None


def optimize_and_vacuum(store: DeltaStore, limits: DeltaSettings | None = None) -> Maintenance | None:
    """Compact small files, write a checkpoint, clean the log, delete expired files. Idempotent.

    Args:
        store: store of the table; appends can continue during maintenance.
        limits: limits of the work. Files of at least half the target size do not count as small.

    Returns:
        None if the table does not exist yet.

    Raises:
        StoreUnavailableError: the store does not answer or refused; completed compactions remain.
        TransactionConflictError: another maintenance run deleted files at the same time.
    """
    table = store.opened()
    if table is None:
        return None
    limits = limits or DeltaSettings()
    with delta_errors(store.location):
        before = figures_of(table)
        partitions = _partitions_to_compact(table, limits)
    compacted, conflicted, postponed = _compact_all(store, table, partitions, limits)
    with delta_errors(store.location):
        table.update_incremental()
        # This also deletes the files of killed writers, which no version refers to.
        removed = table.vacuum(retention_hours=limits.retention_hours, dry_run=False, full=True)
        table.create_checkpoint()
        table.cleanup_metadata()
        return Maintenance(before, figures_of(table), compacted, conflicted, postponed, removed)


def _partitions_to_compact(table: DeltaTable, limits: DeltaSettings) -> list[_Partition]:
    """Return the partitions with many small files, those with the most first."""
    columns = list(table.metadata().partition_columns)
    adds = pa.table(table.get_add_actions(flatten=True))
    small = adds.filter(pc.less(adds["size_bytes"], limits.target_file_bytes // 2))
    keys = [f"partition.{column}" for column in columns]
    counted = small.group_by(keys).aggregate([("path", "count")]).sort_by([("path_count", "descending")])
    return [
        _Partition(tuple((column, _as_written(row[f"partition.{column}"])) for column in columns))
        for row in counted.to_pylist()
        if row["path_count"] >= limits.min_small_files
    ]


def _as_written(value: object) -> str | None:
    """Return a partition's value as the log writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return None if value is None else str(value)


def _compact_all(
    store: DeltaStore, table: DeltaTable, partitions: list[_Partition], limits: DeltaSettings
) -> tuple[list[str], list[str], list[str]]:
    """Compact partitions; return the names of those that were compacted, conflicted, and postponed."""
    names = [partition.name for partition in partitions]
    deadline = time.monotonic() + limits.time_limit_seconds
    done = 0
    try:
        with delta_errors(store.location):
            claim = _claimed(table) if partitions else ""
            for partition in partitions:
                if time.monotonic() > deadline:
                    break
                _compact(store, table, partition, claim, limits)
                done += 1
    except TransactionConflictError:
        return names[:done], names[done:], []
    return names[:done], [], names[done:]


def _claimed(table: DeltaTable) -> str:
    """Write a new claim into the table's properties and return it."""
    claim = uuid.uuid4().hex
    table.update_incremental()
    table.alter.set_table_properties({CLAIM_PROPERTY: claim}, raise_if_not_exists=False)
    return claim


def _compact(store: DeltaStore, table: DeltaTable, partition: _Partition, claim: str, limits: DeltaSettings) -> None:
    table.update_incremental()
    if table.metadata().configuration.get(CLAIM_PROPERTY) != claim:
        raise TransactionConflictError(store.url, "another maintenance has begun")
    table.optimize.compact(
        partition_filters=partition.filters,
        target_size=limits.target_file_bytes,
        max_concurrent_tasks=1,
        writer_properties=store.writer_properties(ROWS_OF_GROUP),
        # One checkpoint at the end of the maintenance is enough.
        post_commithook_properties=PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False),
    )
