"""Write Delta tables so that each position is committed exactly once.

A commit carries a Delta transaction: `app_id`, the name of one ordered stream of data, and `version`, how far into it
the table is after the commit. The table remembers the last version of each stream, and the guarantee comes of two
things together:

- a version that the table has reached already is not written again;
- delta-rs refuses a commit when another one with the same `app_id` landed after the state it was prepared from.

So a writer that was killed, one whose commit landed while the answer was lost, and two writers with the same position
at the same time all end in one commit. None of that needs a lock, and readers see whole commits only.
In return, the versions of a stream only grow, and a version stands for the same rows whenever it is written.

`ReplaceableStore` replaces rows that match a predicate, such as those of one file, in one commit.

A table can go back in time, by a restore, a removed log entry, or a dropped folder: `standings` returns the position of
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
# A commit costs more with every entry that the log still has. Positions live in the checkpoints and never expire; what
# a shorter log takes away is looking back, and readers of the table as a stream that stay away for longer.
LOG_RETENTION = "interval 1 day"
# Each version that a handle follows makes its next commits dearer, by 0.2 ms here: after so many, opening is cheaper.
MAX_FOLLOWED_VERSIONS = 50


# Of Bloom filters: one value in a hundred leads to a file that does not have it, for about 10 bits a value.
FALSE_POSITIVES = 0.01
FEWEST_DISTINCT, ROWS_OF_GROUP = 1_000, 1_000_000
# Stands for every stream of a table where all of them were checked.
EVERY_STREAM = "ingest_project"


class Position(Enum):
    """Where a stream may be in the table when rows are appended to it."""

    ANY = "any"


@dataclass(frozen=True)
class Committed:
    """Rows were written.

    Args:
        table_version: the version of the table that holds them.
    """

    table_version: int
    rows: int


@dataclass(frozen=True)
class AlreadyCommitted:
    """Nothing was written: the table had this position, or one beyond it.

    Args:
        committed_version: the position of the stream in the table.
    """

    committed_version: int


@dataclass(frozen=True)
class Standing:
    """Position of the table in one stream, and doubts about the rows below it.

    Args:
        position: of the stream; None: nothing of it was committed, or the table does not exist.
        table_version: at which this was seen; -1: the table does not exist.
        doubts: commits since the stream was last checked that may have removed rows, e.g. `RESTORE (version 12)`.
    """

    position: int | None
    table_version: int
    doubts: tuple[str, ...] = ()


class DeltaStore:
    """One table, with its handle kept for a while: following its log costs what is new in it, opening costs the whole.

    Threads may share a store. A process forked after its first use must not use deltalake any more: spawn instead.
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
        """Append rows in one commit, unless the table has this position; a second time is the same state.

        Creates the table when it is not there. New columns are added, columns that are missing are null. No rows at all
        still move the position. Takes about as much memory again as the rows do: a million rich ones are a lot.

        Args:
            data: nested columns, any zone of time, and polars' own string types are welcome.
            app_id: the ordered stream of data that the rows come from, e.g. one partition of one topic.
            version: the stream's position after these rows, growing.
            after: the `committed_version` when these rows were planned. Rows are written only if the table is
                still there, so that ranges which overlap or come out of order neither double rows nor skip any.
            checked: the version of the table at which the stream's rows were known to be complete, see `standings`.

        Raises:
            SchemaConflictError: a column's type is another than the table's, or none of Delta's; or the partitions are.
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
        """Return the table's position in a stream; None: nothing of it was committed, or the table does not exist yet.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        with self._lock:
            table = self._refreshed()
            return None if table is None else self._position_in(table, app_id)

    def standings(self, app_ids: Sequence[str]) -> dict[str, Standing]:
        """Return positions in some streams, and the commits since the last check that may have removed their rows.

        Opens the table again: a handle that is kept does not always notice that its table went back.

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
        """Return version, files, rows and bytes; None: the table does not exist yet.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        with self._lock:
            table = self._refreshed()
            return None if table is None else figures_of(table)

    def writer_properties(self, rows: int) -> WriterProperties:
        """Return how files of about so many rows are written: with Bloom filters of the columns for look-ups.

        A query for one value then reads the files that have it, and of all others a few kilobytes.
        """
        in_group = max(FEWEST_DISTINCT, min(rows, ROWS_OF_GROUP))
        bloom = ColumnProperties(bloom_filter_properties=BloomFilterProperties(True, FALSE_POSITIVES, in_group))
        # The default, which properties of any kind switch off.
        return WriterProperties(compression="SNAPPY", column_properties=dict.fromkeys(self._looked_up_by, bloom))

    def opened(self) -> DeltaTable | None:
        """Return a new handle at the newest version, for reads and maintenance; None: the table does not exist yet.

        Read with its `scan`, or with deltalake's `QueryBuilder`: a process that used `to_pyarrow_table` or
        `to_pyarrow_dataset` at times aborts when it ends.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        return _open(self._location, storage_options(self._location))

    def _refreshed(self) -> DeltaTable | None:
        """Return the kept handle at the newest version, or a new one where it cannot follow any more."""
        if self._table is None or self._options.ended or self._log_identity != self._identity_now():
            return self._reopened()
        with delta_errors(self._location):
            try:
                self._table.update_incremental()
            except DeltaError:
                # The log between its version and the newest was cleaned away.
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
            the identities of the log and of its entry for the version of the handle.
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
                    # Without further tries, a second creator cannot put its own schema over the first one's.
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except DeltaError:
                # Another writer was faster; if not, the store fails, and this error has the reason.
                if self._reopened() is None:
                    raise
            table = self._reopened()
        if table is None:
            raise StoreUnavailableError(self.url, "the table that was just created is not there")
        return table

    def _require_partitions(self, table: DeltaTable) -> None:
        """Refuse a table with other partitions: a table keeps those that it was created with.

        Raises:
            SchemaConflictError: names them, and the way out.
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
        """Try once; returns a conflict when the same attempt may succeed next, and raises it when it cannot."""
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
    """Return the name of the stream whose position is the table version up to which another one was checked."""
    return f"{app_id}/checked"


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # Of a folder, the time changes with each entry.
    return found.st_ino, 0 if path.suffix != ".json" else found.st_mtime_ns


@cache
def open_delta_table(
    url: str,
    credentials: DeltaCredentials | None = None,
    *,
    partition_by: tuple[str, ...] = (),
    looked_up_by: tuple[str, ...] = (),
) -> DeltaStore:
    """Return the table's store: one per process and set of arguments, with its handle kept. Touches no storage yet.

    Args:
        url: a folder, or see `location`.
        credentials: for S3 and Azure; the same object each time, because it identifies the store.
        partition_by: columns whose values make the folders of the table; counts when the table is created.
        looked_up_by: columns with ids, which get Bloom filters.

    Raises:
        SettingsError: no address of a table, or credentials that do not go with it.
    """
    return DeltaStore(delta_location(url, credentials), partition_by, looked_up_by)


def _open(location: DeltaLocation, options: StorageOptions) -> DeltaTable | None:
    with delta_errors(location):
        try:
            return DeltaTable(location.url, storage_options=options.values)
        except TableNotFoundError:
            return None


def commit_pauses() -> Iterator[float]:
    """Yield the seconds between the attempts of one commit: growing, and never the same in two writers."""
    for attempt in range(COMMIT_RETRIES):
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
        yield random.uniform(longest / 2, longest)  # noqa: S311 - no secret


def query_events(store: DeltaStore, query: str, version: int | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the answer to a query over `events`, a few thousand rows at a time; nothing before the table exists.

    Args:
        store: of the table.
        query: in SQL.
        version: of the table; the newest one by default.

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
    """Return a session for several queries for single ids, which keeps what it reads of each file.

    Most files have none of them. Of one that a Bloom filter names by mistake, only the column of the ids is read; of
    the others, no index of their pages.
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
        # The query engine has no class of its own for what goes wrong in it.
        if type(error) is not Exception:
            raise
        raise StoreUnavailableError(store.url, reason_of(error)) from error


Result = TypeVar("Result")
Batches = Callable[[], Iterator[pa.RecordBatch]]


class ReplaceableStore(DeltaStore):
    """One table; rows that match a predicate are replaced by others in one commit."""

    def replace(self, schema: pa.Schema, batches: Batches, where: str) -> int:
        """Delete the rows that match a predicate and add others, in one commit; a second time is the same state.

        Returns the version of the table that has them.

        Creates the table when it is not there. New columns are added, columns that are missing are null.

        Args:
            schema: of the rows.
            batches: yields the rows, all of which match the predicate, again at each attempt.
            where: an SQL predicate; empty to delete nothing, which never conflicts with other writers.

        Raises:
            SchemaConflictError: a column's type is another than the table's, or none of Delta's; or the partitions are.
            TransactionConflictError: other writers conflicted at every attempt.
            StoreUnavailableError: the store does not answer or refused. The commit may have landed: replace again.
        """
        with self._lock:
            return self._retrying(
                lambda: self._write(self._refreshed() or self._created(schema.empty_table()), schema, batches, where)
            )

    def fitted_columns(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of the table, which take rows of this schema; none where there is no table yet.

        Raises:
            SchemaConflictError: they do not take them.
            StoreUnavailableError: the store does not answer or refused.
        """
        with self._lock, delta_errors(self._location):
            if (table := self._refreshed()) is None:
                return pa.schema([])
            self._require_partitions(table)
            rows_to_append(schema.empty_table(), table.schema(), self.url)
            return pa.schema(table.schema())

    def delete(self, where: str) -> int | None:
        """Delete the rows that match a predicate; nothing is done without a table.

        Returns the version of the table without them.

        Raises:
            TransactionConflictError, StoreUnavailableError: as of `replace`.
        """

        def delete() -> int | None:
            if (table := self._refreshed()) is None:
                return None
            table.delete(where)
            return table.version()

        with self._lock:
            return self._retrying(delete)

    def predicates_since(self, version: int) -> tuple[dict[int, str], int]:
        """Return the predicates of the replacements and deletions after a version, and the present version.

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
        """Return the versions before each replacement or deletion whose predicate has this part, the last one first.

        Raises:
            StoreUnavailableError: the store does not answer or refused.
        """
        table = self.opened()
        with delta_errors(self._location):
            history = [] if table is None else table.history()
        predicates = (
            (entry["version"], entry.get("operationParameters", {}).get("predicate", "")) for entry in history
        )
        return [int(version) - 1 for version, predicate in predicates if part_of_predicate in predicate]

    def _retrying(self, change: Callable[[], Result]) -> Result:
        """Make a change at the newest version, and again where another writer was faster."""
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
    """Return the table's store, see `table.open_delta_table`."""
    return ReplaceableStore(delta_location(url, credentials), partition_by)
