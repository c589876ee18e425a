"""The warehouse on SQLite, and the queries that it shares with PostgreSQL.

Frames are fitted to their tables here: exactly the columns of the table, in order and type, without NUL in any text.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, cast

import polars as pl
import polars.selectors as cs
import sqlalchemy as sa
from pydantic import SecretStr

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.logging import get_logger
from ingest_project.file_ingest.aggregation import NO_INSTANTS
from ingest_project.file_ingest.tables import (
    KEPT,
    aggregated_metrics,
    contents,
    file_statistics,
    quarantined_rows,
    raw_sensor_data,
)
from ingest_project.file_ingest.tables import files as files_table
from ingest_project.file_ingest.warehouse import (
    REPLACEABLE_STATES,
    QuarantinedRow,
    StoredCounts,
    VersionRow,
    WarehouseTransaction,
)
from ingest_project.file_ingest.warehouse.delta_rows import DeltaRows, DeltaSession
from ingest_project.platform.database import open_engine, reading, writing
from ingest_project.platform.database.declared_tables import View
from ingest_project.platform.database.sql import in_parts, insert_into, require_all, rows_in
from ingest_project.platform.items import RowPage
from ingest_project.readers import RESCUED

logger = get_logger(__name__)

ROWS_READ_AT_A_TIME = 50_000
ROWS_AT_A_TIME = 20_000
# A page reads lines up to twice its last row number plus this: most rows of a file are accepted.
LINES_BEYOND = 1_000

Schema = Mapping[str, pl.DataType | type[pl.DataType]]

READINGS: Schema = {
    "timestamp": pl.Datetime("us", "UTC"),
    "device_id": pl.String,
    "sensor_type": pl.String,
    "value": pl.Float64,
    "unit": pl.String,
    "file_key": pl.String,
    "line_number": pl.Int64,
    RESCUED: pl.String,
}
QUARANTINED: Schema = {
    "file_key": pl.String,
    "line_number": pl.Int64,
    "raw_text": pl.String,
    "reasons": pl.List(pl.String),
}
METRICS: Schema = {
    **dict.fromkeys(("file_key", "device_id", "sensor_type"), pl.String),
    **dict.fromkeys(("min", "max", "mean", "stddev"), pl.Float64),
    "count": pl.Int64,
}
CLAIMS: Schema = {"file_key": pl.String, "sha256": pl.String, "meaning": pl.String}
# Facts about versions that were unknown until the file was read.
VERSIONS: Schema = {
    "file_key": pl.String,
    "size_bytes": pl.Int64,
    "modified_at": pl.Datetime("us", "UTC"),
    "etag": pl.String,
    "version_at": pl.Datetime("us", "UTC"),
}
FINISHED: Schema = {
    **dict.fromkeys(("file_key", "state", "reason", "error_class", "run_id", "sha256", "profile"), pl.String),
    **dict.fromkeys(("duplicate_of", "replaced_by", "rule_counts"), pl.String),
    **dict.fromkeys(("landed_bytes", "rows_read", "rows_accepted", "rows_quarantined"), pl.Int64),
    "drifted": pl.Boolean,
}

# Statistics of ingested files; `null_counts` is JSON.
STATISTICS: Schema = {
    "file_key": pl.String,
    "dataset": pl.String,
    "source": pl.String,
    "sample_order": pl.Int64,
    "arrived_at": pl.Datetime("us", "UTC"),
    "rows_read": pl.Int64,
    "rows_quarantined": pl.Int64,
    "null_counts": pl.String,
    "lateness_seconds": pl.Float64,
}
# Columns to update when a file is ingested again; its arrival and lateness do not change.
RENEWED = ("rows_read", "rows_quarantined", "null_counts")

# States of files that a run may have begun to store without finishing.
UNRECORDED_STATES = ("pending", "failed")
# Reason of a former duplicate, around the key of the original, until it is ingested itself.
WAS_DUPLICATE, NO_MORE = "It was a duplicate of ", ", which does not represent it any more. It is ingested itself."
NUL = "\x00"
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class DatasetTables:
    """The tables of one dataset.

    Args:
        dataset: its name.
        rows: table of the accepted rows; None where they are outside the database.
        metrics: table of the summaries of each file; None where nothing is summarised.
        row_schema, metric_schema: the columns of their frames.
        elsewhere: the accepted rows outside the database.
        view: over the metrics of all files; that of the shipped dataset is made by migrations.
    """

    dataset: str
    rows: sa.Table | None
    metrics: sa.Table | None
    row_schema: Schema
    metric_schema: Schema
    elsewhere: DeltaRows | None = None
    view: View | None = None

    @property
    def stored(self) -> tuple[sa.Table, ...]:
        """The tables in the database."""
        return tuple(table for table in (self.rows, self.metrics) if table is not None)


SENSOR_TABLES = DatasetTables(SENSOR_READINGS, raw_sensor_data, aggregated_metrics, READINGS, METRICS)


class SqlWarehouse:
    """Stores the rows of one dataset, and counts what is stored; connects when it is first used."""

    def __init__(self, database_url: str | SecretStr, connect_timeout_seconds: float = 10) -> None:
        self._engine = open_engine(database_url, connect_timeout_seconds)
        self._tables = SENSOR_TABLES

    def of(self, tables: DatasetTables) -> Self:
        """Return the warehouse of another dataset, with the same connections."""
        other = copy.copy(self)
        other._tables = tables  # noqa: SLF001 - its own copy
        return other

    @contextmanager
    def transaction(self) -> Iterator[WarehouseTransaction]:
        """Open a database transaction: committed at the end, rolled back when anything is raised.

        SQLite has one writer at a time; another one waits for it.
        """
        with writing(self._engine) as connection, self._outside() as outside:
            yield SqlTransaction(connection, self._tables, outside)
            if outside is not None:
                _record_version(connection, outside.file_keys, outside.commit())

    @contextmanager
    def _outside(self) -> Iterator[DeltaSession | None]:
        with ExitStack() as opened:
            elsewhere = self._tables.elsewhere
            yield opened.enter_context(elsewhere.session()) if elsewhere is not None else None

    def file_counts(self, file_keys: Sequence[str]) -> dict[str, StoredCounts]:
        """Count the stored rows of each of these files in the tables."""
        counts: dict[str, list[int]] = {key: [0, 0, 0] for key in file_keys}
        if self._tables.elsewhere is not None:
            for found, number in self._tables.elsewhere.counts(file_keys).items():
                counts[found][0] = number
        with self._by_index() as connection:
            for position, table in enumerate((self._tables.rows, quarantined_rows, self._tables.metrics)):
                if table is not None:
                    key = table.c.file_key
                    query = sa.select(key, sa.func.count()).group_by(key)
                    for found, number in rows_in(connection, query, key, file_keys):
                        counts[found][position] = number
        return {key: StoredCounts(*numbers) for key, numbers in counts.items()}

    def rows_of(self, file_key: str) -> Iterator[pl.DataFrame]:
        """Yield the file's stored rows in parts of bounded size, in no particular order."""
        table = self._tables.rows
        if table is None:
            if self._tables.elsewhere is not None:
                yield from self._tables.elsewhere.rows_of(file_key)
            return
        schema = {name: dtype for name, dtype in self._tables.row_schema.items() if name != "file_key"}
        yield from self._stored_rows(table, schema, file_key)

    def _stored_rows(self, table: sa.Table, schema: Schema, file_key: str) -> Iterator[pl.DataFrame]:
        """Yield these columns of the file's rows in a table."""
        query = sa.select(*(_as_read(table.c[name]) for name in schema)).where(table.c.file_key == file_key)
        with self._by_index() as connection:
            rows = connection.execution_options(stream_results=True).execute(query)
            for part in rows.partitions(ROWS_READ_AT_A_TIME):
                yield pl.DataFrame(list(map(tuple, part)), schema=schema, orient="row")

    def shared_instants(self, file_key: str) -> pl.DataFrame:
        """Find the instants of a file's readings with several, see `aggregation.aggregate_files`."""
        names = ("file_key", "device_id", "sensor_type", "timestamp")
        columns, readings = [raw_sensor_data.c[name] for name in names], sa.func.count()
        query = sa.select(*columns, readings).where(raw_sensor_data.c.file_key == file_key)
        with self._by_index() as connection:
            rows = connection.execute(query.group_by(*columns).having(readings > 1))
            return pl.DataFrame(list(map(tuple, rows)), schema=NO_INSTANTS.schema, orient="row")

    def page_of(self, file_key: str, first: int, limit: int) -> RowPage:
        """Return up to `limit` stored rows of the file after the first `first`, in the order of their lines."""
        names = tuple(name for name in self._tables.row_schema if name != "file_key")
        table = self._tables.rows
        if table is None:
            elsewhere = self._tables.elsewhere
            rows = [] if elsewhere is None else elsewhere.page_of(file_key, names, first, limit + 1)
            return RowPage(names, tuple(rows[:limit]), more=len(rows) > limit)
        query = sa.select(*(_as_read(table.c[name]) for name in names)).where(table.c.file_key == file_key)
        query = query.order_by(table.c.line_number).offset(first).limit(limit + 1)
        with self._by_index() as connection:
            # This nearly always suffices, without reading the rest of a large file.
            found = connection.execute(query.where(table.c.line_number <= 2 * (first + limit) + LINES_BEYOND)).all()
            if len(found) <= limit:
                found = connection.execute(query).all()
        return RowPage(names, tuple(map(tuple, found[:limit])), more=len(found) > limit)

    def undo_unrecorded(self) -> tuple[str, ...]:
        """Delete rows outside the database of files that it does not record as stored, and restore what they replaced.

        Rows outside are committed first, and the commit of the database may fail for good. The second time nothing
        is left to do.

        Returns:
            keys of the files whose rows were deleted, or are those of an earlier attempt again.
        """
        elsewhere, c = self._tables.elsewhere, files_table.c
        if elsewhere is None:
            return ()
        # A run that is storing one of them has locked it.
        begun = sa.and_(c.begun > 0, ~c.stands, c.state.in_(UNRECORDED_STATES))
        unrecorded = sa.select(c.file_key, c.location_key, c.stands, c.delta_version).where(
            c.dataset == self._tables.dataset, sa.or_(begun, sa.text(KEPT))
        )
        with writing(self._engine) as connection, elsewhere.session() as session:
            found = connection.execute(unrecorded.with_for_update(skip_locked=True)).all()
            places = {row.file_key: row.location_key for row in found if not row.stands}
            written = elsewhere.counts([*places]) if places else {}
            kept = {row.file_key: row.delta_version for row in found if row.stands}
            changed, version = elsewhere.changed_since(kept) if kept else (set[str](), None)
            if not written and not changed:
                # The next search can start at this version.
                _record_version(connection, kept, version)
                return ()
            current = sa.select(c.file_key).where(
                c.location_key.in_({places[key] for key in written}), c.stands, c.rows_accepted > 0
            )
            stored = connection.execute(current.where(c.duplicate_of.is_(None))).scalars().all()
            present = elsewhere.counts(stored) if stored else {}
            lost = [key for key in stored if key not in present]
            session.replace([*written, *lost, *changed])
            for rows in elsewhere.rows_before(lost):
                session.append(rows)
            for rows in elsewhere.rows_at({key: kept[key] for key in changed}):
                session.append(rows)
            _record_version(connection, {*kept, *lost}, session.commit())
        restored = [*lost, *sorted(changed)]
        logger.warning("unrecorded_rows_deleted", dataset=self._tables.dataset, files=[*written], restored=restored)
        return (*written, *sorted(changed))

    def totals(self) -> StoredCounts:
        """Count the stored rows of all files. Reads every row: for checks, not for every tick."""
        own = sa.select(files_table.c.file_key).where(files_table.c.dataset == self._tables.dataset)
        rejected = sa.select(sa.func.count()).where(quarantined_rows.c.file_key.in_(own))
        with reading(self._engine) as connection:
            rows, metrics = (
                0 if table is None else connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in (self._tables.rows, self._tables.metrics)
            )
            quarantined = connection.execute(rejected).scalar_one()
        if self._tables.elsewhere is not None:
            rows = sum(self._tables.elsewhere.counts(None).values())
        return StoredCounts(rows, quarantined, metrics)

    def summaries_of(self, file_key: str) -> list[dict[str, Any]]:
        """Return the rows of the dataset's table of metrics for a file, by its group columns; empty without a table."""
        table = self._tables.metrics
        if table is None:
            return []
        columns = [column for column in table.columns if column.name != "file_key"]
        query = sa.select(*columns).where(table.c.file_key == file_key).order_by(*columns[:-5])
        with reading(self._engine) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def quarantined_rows_of(self, file_key: str, limit: int = 100, first: int = 0) -> tuple[QuarantinedRow, ...]:
        """Return up to `limit` rejected rows of the file after the first `first`, in the order of their lines."""
        c = quarantined_rows.c
        query = sa.select(c.line_number, c.raw_text, c.reasons).where(c.file_key == file_key)
        query = query.order_by(c.line_number).offset(first).limit(limit)
        with reading(self._engine) as connection:
            return tuple(QuarantinedRow(line, text, tuple(why)) for line, text, why in connection.execute(query))

    def close(self) -> None:
        """Close the connections. The warehouse opens new ones when it is used again."""
        self._engine.dispose()

    @contextmanager
    def _by_index(self) -> Iterator[sa.Connection]:
        """Open a connection that finds a file's readings by their index.

        Before its first ANALYZE a table has no statistics, and the planner takes a whole scan for the cheaper way.
        """
        with reading(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            yield connection


def _record_version(connection: sa.Connection, file_keys: Collection[str], version: int | None) -> None:
    """Record in which version of the table outside the database the rows of files are."""
    if version is not None:
        for part in in_parts(sorted(file_keys)):
            chosen = sa.update(files_table).where(files_table.c.file_key.in_(part))
            connection.execute(chosen.values(delta_version=version))


class Frames(ABC):
    """Writes frames to the tables of a dataset, in one transaction; see `WarehouseTransaction`."""

    def __init__(self, tables: DatasetTables, outside: DeltaSession | None) -> None:
        self._tables = tables
        self._outside = outside

    def append_rows(self, rows: pl.DataFrame) -> None:
        """Store accepted rows."""
        if self._outside is not None:
            self._outside.append(fitted(rows, self._tables.row_schema))
        elif self._tables.rows is not None:
            self._insert(self._tables.rows, fitted_rows(rows, self._tables.row_schema))

    def append_quarantined(self, rows: pl.DataFrame) -> None:
        """Store rejected rows."""
        self._insert(quarantined_rows, fitted(rows, QUARANTINED))

    def put_metrics(self, metrics: pl.DataFrame) -> None:
        """Store metrics of files that were replaced."""
        if self._tables.metrics is not None:
            self._insert(self._tables.metrics, fitted(metrics, self._tables.metric_schema))

    @abstractmethod
    def _insert(self, table: sa.Table, frame: pl.DataFrame) -> None: ...


class SqlTransaction(Frames):
    """See `WarehouseTransaction`."""

    def __init__(
        self, connection: sa.Connection, tables: DatasetTables = SENSOR_TABLES, outside: DeltaSession | None = None
    ) -> None:
        super().__init__(tables, outside)
        self._connection = connection

    def lock_locations(self, location_keys: Sequence[str], *, wait: bool) -> set[str]:
        """Return all of them: SQLite has one writer at a time."""
        return set(location_keys)

    def versions_at(self, location_keys: Sequence[str]) -> list[VersionRow]:
        """Return the versions of these locations that are not replaced."""
        c = files_table.c
        columns = (c.location_key, c.state, c.stands, c.version_at, c.announced_at)
        position = (c.kafka_topic, c.kafka_partition, c.kafka_offset, c.file_key)
        query = sa.select(*columns, *position).where(sa.literal_column("state <> 'replaced'", sa.Boolean))
        found = rows_in(self._connection, query, c.location_key, sorted(set(location_keys)))
        return [VersionRow(*row) for row in found]

    def replace_versions(self, successors: Mapping[str, str], run_id: str) -> tuple[str, ...]:
        """Mark versions as replaced, those that are leased only as not current; return the replaced ones."""
        now, c = datetime.now(UTC), files_table.c
        replaced = []
        for old_key, new_key in sorted(successors.items()):
            self._connection.execute(sa.update(files_table).where(c.file_key == old_key).values(stands=False))
            finished = sa.and_(c.file_key == old_key, c.state.in_(REPLACEABLE_STATES))
            before = sa.case(
                (sa.or_(c.state == "ingested", c.reason.is_(None)), ""),
                else_=sa.literal(" It was ") + c.state + ": " + c.reason,
            )
            reason = sa.literal(f"{new_key} is newer and counts instead.") + before
            statement = (
                sa.update(files_table)
                .where(finished)
                .values(state="replaced", replaced_by=new_key, reason=reason, run_id=run_id)
                .values(batch_id=None, reported_at=None, updated_at=now)
            )
            if self._connection.execute(statement).rowcount:
                replaced.append(old_key)
        return tuple(replaced)

    def pin_versions(self, versions: pl.DataFrame) -> None:
        """Record which versions were read of files whose events named none."""
        for row in fitted(versions, VERSIONS).iter_rows(named=True):
            key = row.pop("file_key")
            self._connection.execute(
                sa.update(files_table).where(files_table.c.file_key == key).values(**row, pinned=True)
            )

    def replace_files(self, file_keys: Sequence[str], unstored: Collection[str] = ()) -> None:
        """Delete what is stored of these files, and keep other transactions away from them until this one ends."""
        if self._outside is not None:
            self._outside.replace(set(file_keys).difference(unstored))
        for part in in_parts(sorted(set(file_keys))):
            chosen = files_table.c.file_key.in_(part)
            # Update a column to its own value: that locks the row in every dialect; SQLite has its lock already.
            self._connection.execute(sa.update(files_table).where(chosen).values(state=files_table.c.state))
            for table in (quarantined_rows, *self._tables.stored):
                self._connection.execute(sa.delete(table).where(table.c.file_key.in_(part)))

    def claim_contents(self, claims: pl.DataFrame) -> dict[str, str]:
        """Return for each file the key of the one that represents its content."""
        owners: dict[str, str] = {}
        for claim in fitted(claims, CLAIMS).iter_rows(named=True):
            self._release_others(claim)
            owners[claim["file_key"]] = self._claim(claim)
        return owners

    def release_contents(self, file_keys: Sequence[str]) -> tuple[str, ...]:
        """Release the contents that these files represent; return their duplicates, which are pending again."""
        reopened: list[str] = []
        for part in in_parts(file_keys):
            reopened += self._release(contents.c.file_key.in_(part))
        return tuple(reopened)

    def finish_files(self, files: pl.DataFrame) -> None:
        """Finish the queue entries of these files."""
        now = datetime.now(UTC)
        for row in fitted(files, FINISHED).iter_rows(named=True):
            key, counts = row.pop("file_key"), row.pop("rule_counts")
            counts = sa.null() if counts is None else json.loads(counts)
            self._connection.execute(
                sa.update(files_table)
                .where(files_table.c.file_key == key)
                .values(**row, rule_counts=counts, updated_at=now, finished_at=now)
                .values(stands=row["state"] in {"ingested", "duplicate"}, retry_group=None)
            )

    def put_statistics(self, statistics: pl.DataFrame, without: Sequence[str]) -> None:
        """Store the statistics of ingested files, and delete those of others."""
        for part in in_parts(without):
            self._connection.execute(sa.delete(file_statistics).where(file_statistics.c.file_key.in_(part)))
        rows = fitted(statistics, STATISTICS).to_dicts()
        if rows:
            statement = insert_into(self._connection, file_statistics)
            renewed = {name: statement.excluded[name] for name in RENEWED}
            known = [row | {"null_counts": json.loads(row["null_counts"])} for row in rows]
            self._connection.execute(statement.on_conflict_do_update(index_elements=["file_key"], set_=renewed), known)

    def _claim(self, claim: Mapping[str, str]) -> str:
        query = sa.select(contents.c.file_key).where(
            contents.c.sha256 == claim["sha256"], contents.c.meaning == claim["meaning"]
        )
        owner = self._connection.execute(query).scalar()
        if owner is None:
            self._connection.execute(sa.insert(contents).values(**claim))
            return claim["file_key"]
        return str(owner)

    def _release_others(self, claim: Mapping[str, str]) -> None:
        other = sa.or_(contents.c.sha256 != claim["sha256"], contents.c.meaning != claim["meaning"])
        self._release(sa.and_(contents.c.file_key == claim["file_key"], other))

    def _release(self, chosen: sa.ColumnElement[bool]) -> list[str]:
        originals = self._connection.execute(sa.select(contents.c.file_key).where(chosen)).scalars().all()
        self._connection.execute(sa.delete(contents).where(chosen))
        now = datetime.now(UTC)
        duplicates = sa.and_(files_table.c.duplicate_of.in_(originals), files_table.c.state == "duplicate")
        reopened = list(self._connection.execute(sa.select(files_table.c.file_key).where(duplicates)).scalars())
        self._connection.execute(
            sa.update(files_table)
            .where(duplicates)
            .values(state="pending", attempts=0, duplicate_of=None, batch_id=None, run_id=None, finished_at=None)
            .values(next_attempt_at=now, updated_at=now, reopened_at=now, stands=False)
            .values(reason=sa.literal(WAS_DUPLICATE) + files_table.c.duplicate_of + NO_MORE)
        )
        return reopened

    def _insert(self, table: sa.Table, frame: pl.DataFrame) -> None:
        # Bypass SQLAlchemy: its conversion of each value takes ten times as long as storing it.
        placeholders, names = ", ".join("?" * len(frame.columns)), ", ".join(f'"{name}"' for name in frame.columns)
        statement = f'INSERT INTO "{table.name}" ({names}) VALUES ({placeholders})'
        for part in _as_sqlite_stores(frame).iter_slices(ROWS_AT_A_TIME):
            done = self._connection.exec_driver_sql(statement, cast("Any", part.rows()))
            require_all(table.name, part.height, done.rowcount)


def _as_read(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """Select JSON as its text, as frames have it."""
    return sa.cast(column, sa.Text) if isinstance(column.type, sa.JSON) else column


def _as_sqlite_stores(frame: pl.DataFrame) -> pl.DataFrame:
    """Convert times and lists to the text that the column types of `database.column_types` read back."""
    changed = frame.with_columns(
        cs.datetime().dt.strftime("%Y-%m-%d %H:%M:%S%.6f"),
        cs.date().dt.strftime("%Y-%m-%d"),
        cs.decimal().cast(pl.String),
    )
    for name in [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]:
        texts = pl.Series(name, [json.dumps(values) for values in frame[name].to_list()], dtype=pl.String)
        changed = changed.with_columns(texts)
    return changed


def fitted(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Select exactly these columns, in this order and type, and remove NUL from every text.

    PostgreSQL cannot store NUL; to let SQLite keep it would make the two differ.

    Raises:
        polars.exceptions.PolarsError: a column is missing or cannot be of its type.
    """
    # Casting a column to the type it has costs nothing; a column of nulls alone has no type before.
    columns = frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    return _without_nul(columns)


def fitted_rows(rows: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Return accepted rows as `fitted` does, without `rescued_data` where no row has any: to write it takes time."""
    rescued = rows.get_column(RESCUED, default=None)
    if rescued is None or rescued.null_count() == rows.height:
        schema = {name: dtype for name, dtype in schema.items() if name != RESCUED}
    return fitted(rows, schema)


def _without_nul(frame: pl.DataFrame) -> pl.DataFrame:
    found = frame.select(cs.string().str.contains(NUL, literal=True).any())
    dirty = [column.name for column in found.iter_columns() if column.item()]
    lists = [name for name, dtype in frame.schema.items() if dtype == pl.List(pl.String)]
    if not dirty and not lists:
        return frame
    return frame.with_columns(
        pl.col(dirty).str.replace_all(NUL, REPLACEMENT, literal=True),
        pl.col(lists).list.eval(pl.element().str.replace_all(NUL, REPLACEMENT, literal=True)),
    )
