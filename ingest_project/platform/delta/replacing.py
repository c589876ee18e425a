"""Delta tables whose rows are replaced file by file, each time in one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal, TypeVar

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from ingest_project.core.errors import TransactionConflictError
from ingest_project.platform.delta import DeltaCredentials, delta_errors, delta_location
from ingest_project.platform.delta.schema import rows_to_append
from ingest_project.platform.delta.table import DeltaStore, commit_pauses

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
            batches: yields the rows, all of which match the predicate, at each attempt anew.
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
