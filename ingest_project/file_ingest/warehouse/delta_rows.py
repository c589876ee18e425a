"""The accepted rows of a declared dataset in a Delta table.

The rows of all files of one transaction are written in one Delta commit, before the database commits their queue
entries. A process killed between the two leaves rows of files that are not finished: the next attempt at these files
replaces their rows. Files that no run has begun before have none: these are appended, which conflicts with no other
writer and reads nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import polars as pl
import pyarrow as pa

from ingest_project.core.settings import Settings
from ingest_project.platform.database.sql import in_parts
from ingest_project.platform.delta import delta_credentials
from ingest_project.platform.delta.schema import delta_schema, ready_to_append
from ingest_project.platform.delta.table import ReplaceableStore, open_replaceable, query_events
from ingest_project.readers.declaration import DatasetDeclaration

SPOOL_BYTES = 64 * 1024**2


def delta_url(declaration: DatasetDeclaration, settings: Settings) -> str:
    """Return the address of a dataset's Delta table: a plain name is a folder in delta/ of the state folder."""
    name = str(declaration.target.delta)
    is_address = "://" in name or "/" in name
    return name if is_address else str(settings.state_dir.absolute() / "delta" / name)


def delta_store(declaration: DatasetDeclaration, settings: Settings) -> ReplaceableStore:
    """Return the store of a dataset's Delta table."""
    url = delta_url(declaration, settings)
    credentials = None if "://" not in url else delta_credentials(settings)
    return open_replaceable(url, credentials, partition_by=declaration.target.partition_by)


@dataclass(frozen=True)
class DeltaRows:
    """The accepted rows of a dataset in its Delta table, written in one commit before the database's own."""

    store: ReplaceableStore

    def fitted_columns(self, schema: Mapping[str, Any]) -> pa.Schema:
        """Return the columns of the table, which take rows of this schema of polars; none where there is no table.

        Raises:
            SchemaConflictError, StoreUnavailableError: see `ReplaceableStore.fitted_columns`.
        """
        return self.store.fitted_columns(_as_delta(pl.DataFrame(schema=schema), self.store.url).schema)

    @contextmanager
    def session(self) -> Iterator[DeltaSession]:
        """Collect the changes of one transaction in memory, and on disk where they are many."""
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            yield DeltaSession(self.store, spool)

    def counts(self, file_keys: Sequence[str] | None) -> dict[str, int]:
        """Count the stored rows of each of these files, or of all; files without rows are left out."""
        found: dict[str, int] = {}
        for where in ["true"] if file_keys is None else map(_rows_of, in_parts(file_keys)):
            query = f"SELECT file_key, COUNT(*) AS number FROM events WHERE {where} GROUP BY file_key"
            for batch in query_events(self.store, query):
                found |= {row["file_key"]: row["number"] for row in batch.to_pylist()}
        return found

    def rows_of(self, file_key: str) -> Iterator[pl.DataFrame]:
        """Yield the file's stored rows in parts of bounded size, in no particular order."""
        for batch in query_events(self.store, f"SELECT * FROM events WHERE {_rows_of([file_key])}"):
            yield pl.DataFrame(pl.from_arrow(batch)).drop("file_key")

    def rows_before(self, file_keys: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield the rows that these files had before the last commit that deleted any.

        Retention may have removed them: then nothing is yielded for the file.
        """
        for key in file_keys:
            query, found = f"SELECT * FROM events WHERE {_rows_of([key])}", False
            # A commit that was tried again names the file as well, and had nothing left to delete.
            for version in self.store.versions_before(_literal(key)):
                for batch in query_events(self.store, query, version):
                    found = True
                    yield pl.DataFrame(pl.from_arrow(batch))
                if found:
                    break

    def changed_since(self, versions: Mapping[str, int]) -> tuple[set[str], int]:
        """Return the files that were written after a version of each, and the present version."""
        predicates, present = self.store.predicates_since(min(versions.values()))
        named = [
            key
            for version, predicate in predicates.items()
            for key in versions
            if version > versions[key] and _literal(key) in predicate
        ]
        return set(named), present

    def rows_at(self, versions: Mapping[str, int]) -> Iterator[pl.DataFrame]:
        """Yield the rows that these files had in a version of each."""
        for key, version in versions.items():
            for batch in query_events(self.store, f"SELECT * FROM events WHERE {_rows_of([key])}", version):
                yield pl.DataFrame(pl.from_arrow(batch))

    def page_of(self, file_key: str, names: Sequence[str], first: int, limit: int) -> list[tuple[Any, ...]]:
        """Return up to `limit` stored rows of the file after the first `first`, in the order of their lines."""
        table = self.store.opened()
        present = set() if table is None else {one.name for one in table.schema().fields}
        columns = ", ".join(f'"{name}"' if name in present else f'NULL AS "{name}"' for name in names)
        query = f"SELECT {columns} FROM events WHERE {_rows_of([file_key])} ORDER BY line_number"
        batches = query_events(self.store, f"{query} LIMIT {limit} OFFSET {first}")
        return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


@dataclass
class DeltaSession:
    """Changes of rows in one transaction."""

    store: ReplaceableStore
    spool: IO[bytes]
    _replaced: set[str] = field(default_factory=set)
    _stored: set[str] = field(default_factory=set)
    _writer: Any = None

    def replace(self, file_keys: Collection[str]) -> None:
        """Delete the rows that are stored of these files."""
        self._replaced.update(file_keys)

    def append(self, rows: pl.DataFrame) -> None:
        """Add rows, in the columns of the table."""
        if rows.is_empty():
            return
        table = _as_delta(rows, self.store.url)
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self.spool, table.schema)
        self._writer.write_table(table)
        self._stored.update(rows["file_key"].unique())

    @property
    def file_keys(self) -> AbstractSet[str]:
        """The files whose rows change."""
        return self._replaced | self._stored

    def commit(self) -> int | None:
        """Write all changes in one commit; returns its version, None without any."""
        # What is written must match the predicate.
        where = _rows_of([*self.file_keys]) if self._replaced else ""
        if self._writer is None:
            return self.store.delete(where) if where else None
        self._writer.close()
        return self.store.replace(self._writer_schema(), self._batches, where)

    def _writer_schema(self) -> pa.Schema:
        self.spool.seek(0)
        return pa.ipc.open_stream(self.spool).schema

    def _batches(self) -> Iterator[pa.RecordBatch]:
        self.spool.seek(0)
        yield from pa.ipc.open_stream(self.spool)


def _as_delta(rows: pl.DataFrame, url: str) -> pa.Table:
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    return ready_to_append(table, delta_schema(table.schema, url))


def _rows_of(file_keys: Sequence[str]) -> str:
    keys = ", ".join(map(_literal, sorted(set(file_keys))))
    return f"file_key IN ({keys})" if keys else "false"


def _literal(key: str) -> str:
    return "'" + key.replace("'", "''") + "'"
