"""Write Delta tables so that each position is committed exactly once.

A commit carries a Delta transaction: `app_id`, the name of one ordered stream of data, and `version`, the stream's
position after the commit. The table stores the last version of each stream. Two rules together give the guarantee:

- a version that the table has already reached is not written again;
- delta-rs refuses a commit if another one with the same `app_id` landed after the state it was prepared from.

So a killed writer's retry, a commit that landed although the answer was lost, and two concurrent writers at the same
position all result in one commit. This needs no lock, and readers see only whole commits.
In return, the versions of a stream must only grow, and a version must always stand for the same rows.

`ReplaceableStore` replaces rows that match a predicate, such as those of one file, in one commit.

A table can go back in time: by a restore, a removed log entry, or a deleted folder. `standings` returns the position of
a stream and the commits that may have removed rows below it. The table also records the version up to which a stream
was checked.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa
from deltalake import (
    BloomFilterProperties,
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    QueryBuilder,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import DeltaError, TableNotFoundError

from ingest_project.core.errors import SchemaConflictError, StoreUnavailableError, TransactionConflictError
from ingest_project.platform.delta import (
    DeltaCredentials,
    DeltaLocation,
    StorageOptions,
    TableFigures,
    delta_errors,
    delta_location,
    reason_of,
    storage_options,
)
from ingest_project.platform.delta.schema import History, delta_schema, figures_of, rows_to_append

COMMIT_RETRIES = 8
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
# Every entry in the log makes commits slower. Positions live in the checkpoints and never expire; a shorter log only
# limits time travel, and how long streaming readers of the table may pause.
LOG_RETENTION = "interval 1 day"
# Each version that a handle follows slows its next commits, by 0.2 ms here: beyond this number, reopening is cheaper.
MAX_FOLLOWED_VERSIONS = 50


# False-positive rate of Bloom filters: 1 % costs about 10 bits per value.
FALSE_POSITIVES = 0.01
FEWEST_DISTINCT, ROWS_OF_GROUP = 1_000, 1_000_000
# Represents all streams of a table when all of them were checked.
EVERY_STREAM = "ingest_project"


class Position(Enum):
    """Special values of the position that a stream must have before rows are appended."""

    ANY = "any"


@dataclass(frozen=True)
class Committed:
    """Rows were written.

    Args:
        table_version: version of the table that contains them.
    """

    table_version: int
    rows: int


@dataclass(frozen=True)
class AlreadyCommitted:
    """Nothing was written: the table had already reached this position.

    Args:
        committed_version: position of the stream in the table.
    """

    committed_version: int


@dataclass(frozen=True)
class Standing:
    """Position of a stream in the table, and commits that may have removed rows below it.

    Args:
        position: position of the stream; None if nothing of it was committed, or the table does not exist.
        table_version: version of the table at which this was read; -1 if the table does not exist.
        doubts: commits since the stream was last checked that may have removed rows, e.g. `RESTORE (version 12)`.
    """

    position: int | None
    table_version: int
    doubts: tuple[str, ...] = ()


class DeltaStore:
    """One table with a cached handle: updating it reads only new log entries, opening a new one reads the whole log.

    Threads may share a store. A process forked after the first use must not use deltalake: spawn instead.
    """

    def __init__(
        self, location: DeltaLocation, partition_by: Sequence[str] = (), looked_up_by: Sequence[str] = ()
    ) -> None:
        self._location = location
        self._partition_by = list(partition_by)
        self._looked_up_by = tuple(looked_up_by)
        self._lock = threading.Lock()
        self._table: DeltaTable | None = None
        self._options = StorageOptions({})
        self._log_identity: tuple[object, ...] = ()
        self._opened_version = 0

    @property
    def url(self) -> str:
        """Return the table's address."""
        return self._location.url

    @property
    def location(self) -> DeltaLocation:
        """Return the table's address and credentials."""
        return self._location

    def append(
        self,
        data: pa.Table,
        *,
        app_id: str,
        version: int,
        after: int | Position | None = Position.ANY,
        checked: int | None = None,
    ) -> Committed | AlreadyCommitted:
        """Append rows in one commit, unless the table has already reached this position. Idempotent.

        Creates the table if it does not exist. New columns are added, missing columns are null. Data without rows still
        move the position. Needs about as much memory again as the rows: a million rich rows are a lot.

        Args:
            data: the rows; nested columns, any time zone, and polars' own string types are accepted.
            app_id: the ordered stream of data that the rows come from, e.g. one partition of one topic.
            version: the stream's position after these rows; it only grows.
            after: the `committed_version` when these rows were planned. Rows are written only if the table still has
                this position, so that overlapping or out-of-order ranges neither double nor skip rows.
            checked: the version of the table at which the stream's rows were known to be complete, see `standings`.

        Raises:
            SchemaConflictError: a column's type differs from the table's or does not exist in Delta, or the table has
                other partition columns.
            TransactionConflictError: other writers conflicted at every attempt, or the table is not at `after`.
            StoreUnavailableError: the store does not answer or refused. The commit may have landed: append again.
        """
        with self._lock:
            transactions = {app_id: version} | ({} if checked is None else {checked_by(app_id): checked})
            outcome = self._tried_to_append(data, app_id, after, transactions)
            for pause in commit_pauses():
                if not isinstance(outcome, TransactionConflictError):
                    return outcome
                time.sleep(pause)
                outcome = self._tried_to_append(data, app_id, after, transactions)
        if isinstance(outcome, TransactionConflictError):
            raise outcome
        return outcome

    def committed_version(self, app_id: str) -> int | None:
        """Return the position of a stream; None if nothing of it was committed, or the table does not exist yet.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        with self._lock:
            table = self._refreshed()
            return None if table is None else self._position_in(table, app_id)

    def standings(self, app_ids: Sequence[str]) -> dict[str, Standing]:
        """Return positions of streams, with the commits since their last check that may have removed their rows.

        Reopens the table: a cached handle does not always notice that its table went back in time.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        with self._lock:
            table = self._reopened()
            if table is None:
                return dict.fromkeys(app_ids, Standing(None, -1))
            with delta_errors(self._location):
                history, of_all = History(table), table.transaction_version(checked_by(EVERY_STREAM))
                found = {}
                for app_id in app_ids:
                    checks = (of_all, table.transaction_version(checked_by(app_id)))
                    checked = max((version for version in checks if version is not None), default=None)
                    position = table.transaction_version(app_id)
                    doubts = () if position is None else history.doubtful_commits(checked)
                    found[app_id] = Standing(position, table.version(), doubts)
                return found

    def mark_checked(self, version: int, app_id: str = EVERY_STREAM) -> None:
        """Record that the rows of a stream, or of all, were complete at a version of the table.

        Raises:
            TransactionConflictError: other writers conflicted at every attempt.
            StoreUnavailableError: the store does not answer or refused.
        """
        with self._lock:
            table = self._refreshed()
        if table is not None:
            no_rows = pa.schema(table.schema()).empty_table()
            self.append(no_rows, app_id=checked_by(app_id), version=version)

    def figures(self) -> TableFigures | None:
        """Return version, files, rows and bytes; None if the table does not exist yet.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        with self._lock:
            table = self._refreshed()
            return None if table is None else figures_of(table)

    def writer_properties(self, rows: int) -> WriterProperties:
        """Return the properties for files of about `rows` rows: Bloom filters for the look-up columns.

        A query for one value then reads the files that contain it, and only a few kilobytes of all others.
        """
        in_group = max(FEWEST_DISTINCT, min(rows, ROWS_OF_GROUP))
        bloom = ColumnProperties(bloom_filter_properties=BloomFilterProperties(True, FALSE_POSITIVES, in_group))
        # delta-rs's default, which it drops once any property is set.
        return WriterProperties(compression="SNAPPY", column_properties=dict.fromkeys(self._looked_up_by, bloom))

    def opened(self) -> DeltaTable | None:
        """Return a new handle at the newest version, for reads and maintenance; None if the table does not exist yet.

        Read with its `scan`, or with deltalake's `QueryBuilder`: a process that used `to_pyarrow_table` or
        `to_pyarrow_dataset` sometimes aborts when it exits.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        return _open(self._location, storage_options(self._location))

    def _refreshed(self) -> DeltaTable | None:
        """Return the cached handle at the newest version, or a new handle if the cached one cannot be updated."""
        if self._table is None or self._options.ended or self._log_identity != self._identity_now():
            return self._reopened()
        with delta_errors(self._location):
            try:
                self._table.update_incremental()
            except DeltaError:
                # The log between the handle's version and the newest one has been cleaned up.
                return self._reopened()
        if self._table.version() - self._opened_version >= MAX_FOLLOWED_VERSIONS:
            return self._reopened()
        self._log_identity = self._identity_now()
        return self._table

    def _reopened(self) -> DeltaTable | None:
        self._options = storage_options(self._location)
        self._table = _open(self._location, self._options)
        self._opened_version = 0 if self._table is None else self._table.version()
        self._log_identity = self._identity_now()
        return self._table

    def _identity_now(self) -> tuple[object, ...]:
        """Identify a local table and its state: a handle does not notice that its table was removed or replaced.

        Returns:
            the identities of the log folder and of the entry for the handle's version.
        """
        if not self._location.is_local:
            return ()
        log = Path(self.url) / "_delta_log"
        entry = log / f"{-1 if self._table is None else self._table.version():020}.json"
        return tuple(_identity_of(path) for path in (log, entry))

    def _created(self, data: pa.Table) -> DeltaTable:
        schema = delta_schema(data.schema, self.url)
        with delta_errors(self._location):
            try:
                DeltaTable.create(
                    self.url,
                    schema,
                    partition_by=self._partition_by,
                    configuration={"delta.logRetentionDuration": LOG_RETENTION},
                    storage_options=storage_options(self._location).values,
                    # Without retries, a second creator cannot replace the first one's schema.
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except DeltaError:
                # Usually another writer was faster. If there is still no table, the store failed for this reason.
                if self._reopened() is None:
                    raise
            table = self._reopened()
        if table is None:
            raise StoreUnavailableError(self.url, "the table that was just created is not there")
        return table

    def _require_partitions(self, table: DeltaTable) -> None:
        """Refuse a table with other partition columns: they are fixed when a table is created.

        Raises:
            SchemaConflictError: the columns differ; names them and the remedy.
        """
        there = table.metadata().partition_columns
        if there != self._partition_by:
            name = (sorted({*there} ^ {*self._partition_by}) or there)[0]
            asked = (
                f"the table is partitioned by {_listed(there)}, and partition_by asks for {_listed(self._partition_by)}"
            )
            remedy = "put partition_by back, or name another Delta table in the declaration"
            raise SchemaConflictError(self.url, name, f"{asked}; {remedy}")

    def _position_in(self, table: DeltaTable, app_id: str) -> int | None:
        with delta_errors(self._location):
            return table.transaction_version(app_id)

    def _tried_to_append(
        self, data: pa.Table, app_id: str, after: int | Position | None, transactions: Mapping[str, int]
    ) -> Committed | AlreadyCommitted | TransactionConflictError:
        """Try once; return a conflict that a retry may resolve, and raise one that it cannot."""
        table = self._refreshed() or self._created(data)
        if self._partition_by:
            self._require_partitions(table)
        reached = self._position_in(table, app_id)
        if reached is not None and reached >= transactions[app_id]:
            return AlreadyCommitted(reached)
        if after is not Position.ANY and reached != after:
            raise TransactionConflictError(self.url, f"{app_id} is at {reached}, and not at {after} as was planned")
        try:
            self._commit(table, data, transactions)
        except TransactionConflictError as conflict:
            return conflict
        self._log_identity = self._identity_now()
        return Committed(table.version(), data.num_rows)

    def _commit(self, table: DeltaTable, data: pa.Table, transactions: Mapping[str, int]) -> None:
        rows, other_columns = rows_to_append(data, table.schema(), self.url)
        now_ms = int(time.time() * 1000)
        carried = [Transaction(name, version, now_ms) for name, version in transactions.items()]
        with delta_errors(self._location):
            write_deltalake(
                table,
                rows,
                mode="append",
                schema_mode="merge" if other_columns else None,
                commit_properties=CommitProperties(app_transactions=carried),
                writer_properties=self.writer_properties(data.num_rows),
            )


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(columns) or "nothing"


def checked_by(app_id: str) -> str:
    """Return the `app_id` under which the table records the version up to which a stream was checked."""
    return f"{app_id}/checked"


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # A folder's time changes with each entry, so ignore it.
    return found.st_ino, 0 if path.suffix != ".json" else found.st_mtime_ns


@cache
def open_delta_table(
    url: str,
    credentials: DeltaCredentials | None = None,
    *,
    partition_by: tuple[str, ...] = (),
    looked_up_by: tuple[str, ...] = (),
) -> DeltaStore:
    """Return the table's store, one per process and set of arguments. Does not access the storage yet.

    Args:
        url: folder or address, see the module `delta`.
        credentials: credentials for S3 and Azure; pass the same object each time, because it identifies the store.
        partition_by: partition columns, used when the table is created.
        looked_up_by: id columns, which get Bloom filters.

    Raises:
        SettingsError: the address is not that of a table, or the credentials do not suit it.
    """
    return DeltaStore(delta_location(url, credentials), partition_by, looked_up_by)


def _open(location: DeltaLocation, options: StorageOptions) -> DeltaTable | None:
    with delta_errors(location):
        try:
            return DeltaTable(location.url, storage_options=options.values)
        except TableNotFoundError:
            return None


def commit_pauses() -> Iterator[float]:
    """Yield the seconds between the attempts of one commit: growing, with random jitter."""
    for attempt in range(COMMIT_RETRIES):
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
        yield random.uniform(longest / 2, longest)  # noqa: S311 - no secret


def query_events(store: DeltaStore, query: str, version: int | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the result of a query over `events`, a few thousand rows at a time; nothing if the table does not exist.

    Args:
        store: store of the table.
        query: SQL query.
        version: version of the table; the newest one by default.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    table = store.opened()
    if table is not None:
        if version is not None:
            with delta_errors(store.location):
                table.load_as_version(version)
        yield from query_version(store, table, query)


def look_ups(table: DeltaTable) -> QueryBuilder:
    """Return a session for several look-ups of single ids, which caches the metadata of each file.

    Most files contain none of the ids. If a Bloom filter matches a file by mistake, only its id column is read; of the
    other files, not even the page index is.
    """
    options = {"pushdown_filters": "true", "enable_page_index": "false"}
    return QueryBuilder({f"datafusion.execution.parquet.{name}": value for name, value in options.items()}).register(
        "events", table
    )


def query_version(
    store: DeltaStore, table: DeltaTable, query: str, session: QueryBuilder | None = None
) -> Iterator[pa.RecordBatch]:
    """Query one version of the table, registered as `events`, in its own session by default.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    try:
        with delta_errors(store.location):
            for batch in (session or QueryBuilder().register("events", table)).execute(query):
                yield pa.record_batch(batch)
    except Exception as error:
        # The query engine raises no exception class of its own.
        if type(error) is not Exception:
            raise
        raise StoreUnavailableError(store.url, reason_of(error)) from error


Result = TypeVar("Result")
Batches = Callable[[], Iterator[pa.RecordBatch]]


class ReplaceableStore(DeltaStore):
    """One table in which one commit can replace the rows that match a predicate."""

    def replace(self, schema: pa.Schema, batches: Batches, where: str) -> int:
        """Delete the rows that match a predicate and add others, in one commit. Idempotent.

        Returns the version of the table that contains them.

        Creates the table if it does not exist. New columns are added, missing columns are null.

        Args:
            schema: schema of the rows.
            batches: yields the rows, all of which must match the predicate; called once per attempt.
            where: SQL predicate; empty to delete nothing, which never conflicts with other writers.

        Raises:
            SchemaConflictError: see `append`.
            TransactionConflictError: other writers conflicted at every attempt.
            StoreUnavailableError: the store does not answer or refused. The commit may have landed: replace again.
        """
        with self._lock:
            return self._retrying(
                lambda: self._write(self._refreshed() or self._created(schema.empty_table()), schema, batches, where)
            )

    def fitted_columns(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of the table if rows of this schema fit them; none if the table does not exist yet.

        Raises:
            SchemaConflictError: the rows do not fit.
            StoreUnavailableError: the store does not answer or refused.
        """
        with self._lock, delta_errors(self._location):
            if (table := self._refreshed()) is None:
                return pa.schema([])
            self._require_partitions(table)
            rows_to_append(schema.empty_table(), table.schema(), self.url)
            return pa.schema(table.schema())

    def delete(self, where: str) -> int | None:
        """Delete the rows that match a predicate; do nothing if the table does not exist.

        Returns the version of the table without them.

        Raises:
            TransactionConflictError, StoreUnavailableError: see `replace`.
        """

        def delete() -> int | None:
            if (table := self._refreshed()) is None:
                return None
            table.delete(where)
            return table.version()

        with self._lock:
            return self._retrying(delete)

    def predicates_since(self, version: int) -> tuple[dict[int, str], int]:
        """Return the predicates of the replacements and deletions after a version, and the current version.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        table = self.opened()
        if table is None:
            return {}, version
        with delta_errors(self._location):
            present = table.version()
            history = table.history(present - version) if present > version else []
        found = {entry["version"]: entry.get("operationParameters", {}).get("predicate", "") for entry in history}
        return found, present

    def versions_before(self, part_of_predicate: str) -> list[int]:
        """Return the version before each replacement or deletion whose predicate contains this text, latest first.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        found, _ = self.predicates_since(-1)
        return [version - 1 for version, predicate in found.items() if part_of_predicate in predicate]

    def _retrying(self, change: Callable[[], Result]) -> Result:
        """Make a change at the newest version, and retry it if another writer was faster."""
        for pause in (*commit_pauses(), None):
            try:
                with delta_errors(self._location):
                    result = change()
            except TransactionConflictError:
                if pause is None:
                    raise
                time.sleep(pause)
            else:
                self._log_identity = self._identity_now()
                return result
        raise AssertionError

    def _write(self, table: DeltaTable, schema: pa.Schema, batches: Batches, where: str) -> int:
        self._require_partitions(table)
        _, other_columns = rows_to_append(schema.empty_table(), table.schema(), self.url)
        rows = pa.RecordBatchReader.from_batches(schema, batches())
        merge: Literal["merge"] | None = "merge" if other_columns else None
        if where:
            write_deltalake(table, rows, mode="overwrite", predicate=where, schema_mode=merge)
        else:
            write_deltalake(table, rows, mode="append", schema_mode=merge)
        return table.version()


@cache
def open_replaceable(
    url: str, credentials: DeltaCredentials | None = None, *, partition_by: tuple[str, ...] = ()
) -> ReplaceableStore:
    """Return the table's store, see `open_delta_table`."""
    return ReplaceableStore(delta_location(url, credentials), partition_by)
