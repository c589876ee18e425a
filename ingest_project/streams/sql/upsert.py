"""Upsert rows by key: of two versions the greater one stays, for any order of arrival and any repetition."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import polars as pl
import sqlalchemy as sa

from ingest_project.core.items import digest_of
from ingest_project.platform.database.sql import ExactDecimal, UtcTime

# PostgreSQL plans the whole of one parameter at once; a few thousand rows are as fast as more.
ROWS_AT_A_TIME = 5_000
# From this number of rows on, COPY into a temporary table is faster.
COPIED_ROWS = 500
MAY_COPY = "may_copy_rows"
COPY_CHARACTERS = 1024**2
# A format that both PostgreSQL and its JSON functions read.
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%.6f+00:00"
# Orders versions of one moment: the epoch of the topic, then its name and id, partition and offset.
KAFKA_ORDER = ("kafka_epoch", "kafka_topic", "kafka_topic_id", "kafka_partition", "kafka_offset")

_encoder = msgspec.json.Encoder()


def upsert_rows(connection: sa.Connection, table: sa.Table, order: Sequence[str], rows: pl.DataFrame) -> int:
    """Upsert rows on the primary key of a table, in the caller's transaction; returns how many are new or changed.

    Args:
        connection: connection of the transaction.
        table: has all the columns.
        order: columns by which versions of a row are compared, of the rows given as well: the greatest one stays.
        rows: any number of versions for each key. JSON is given as its text, numbers of any size as theirs.
    """
    if rows.is_empty():
        return 0
    keys = [column.name for column in table.primary_key]
    newest = rows.sort(order).unique(keys, keep="last", maintain_order=True)
    # In one order everywhere: two transactions that touch the same rows wait for each other, and never in a circle.
    return sum(_upsert(connection, table, order, part) for part in newest.sort(keys).iter_slices(ROWS_AT_A_TIME))


def _upsert(connection: sa.Connection, table: sa.Table, order: Sequence[str], rows: pl.DataFrame) -> int:
    names = rows.columns
    if connection.dialect.name != "postgresql":
        values = ", ".join(f":{name}" for name in names)
        each = sa.text(_statement(table, names, order, f"VALUES ({values})"))
        return connection.execute(each, written(table, rows.to_dicts())).rowcount
    parameters = {}
    if rows.height < COPIED_ROWS or (source := _copy_rows(connection, table, rows)) is None:
        # Times, dates and decimals are written by msgspec itself.
        json = [column.name for column in table.c if isinstance(column.type, sa.JSON) and column.name in names]
        parameters = {"rows": _encoder.encode([_with_raw(row, json) for row in rows.iter_rows(named=True)]).decode()}
        source = f"json_populate_recordset(CAST(NULL AS {_quoted(table.name)}), CAST(:rows AS json))"
    listed_there = ", ".join(f"found.{_quoted(name)}" for name in names)
    # Text in the order of its bytes, as Python and SQLite compare it, whatever the database's language.
    selection = f"SELECT {listed_there} FROM {source} AS found"
    statement = _statement(table, names, order, selection, collation=' COLLATE "C"')
    return connection.execute(sa.text(statement), parameters).rowcount


def _copy_rows(connection: sa.Connection, table: sa.Table, rows: pl.DataFrame) -> str | None:
    """Copy rows into a temporary table with columns of their types; returns its name, or None where it may not."""
    if MAY_COPY not in connection.info:
        may_create = "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
        connection.info[MAY_COPY] = connection.exec_driver_sql(may_create).scalar_one()
    if not connection.info[MAY_COPY]:
        return None
    name, listed = f"pg_temp.incoming_{digest_of(table.name, rows.columns)}", ", ".join(map(_quoted, rows.columns))
    # The temporary table has no constraints: those of the table apply when the rows are stored.
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {name.removeprefix('pg_temp.')} ON COMMIT DELETE ROWS"
        f" AS SELECT {listed} FROM {_quoted(table.name)} WITH NO DATA"
    )
    connection.exec_driver_sql(f"TRUNCATE {name}")
    # An empty text is quoted, null is not.
    csv = io.BytesIO(rows.write_csv(include_header=False, datetime_format=TIME_FORMAT).encode())
    copy = f"COPY {name} ({listed}) FROM STDIN (FORMAT csv, ENCODING 'UTF8')"
    driver: Any = connection.connection
    dialect: Any = connection.dialect
    try:
        with driver.cursor() as cursor:
            cursor.copy_expert(copy, csv, COPY_CHARACTERS)
    except dialect.dbapi.Error as error:
        # SQLAlchemy did not see it: the connection may be broken.
        connection.invalidate()
        raise sa.exc.DBAPIError.instance(copy, None, error, dialect.dbapi.Error, dialect=dialect) from error
    return name


def _with_raw(row: Mapping[str, Any], json: Sequence[str]) -> dict[str, Any]:
    """Return a row whose texts of JSON are written as they are."""
    return {**row, **{name: msgspec.Raw(text.encode()) for name in json if (text := row[name]) is not None}}


def _statement(table: sa.Table, names: Sequence[str], order: Sequence[str], source: str, collation: str = "") -> str:
    keys = [column.name for column in table.primary_key]
    changes = ", ".join(f"{_quoted(name)} = excluded.{_quoted(name)}" for name in names if name not in keys)

    collated = [_quoted(name) + collation * isinstance(table.c[name].type, sa.Text) for name in order]

    def version(whose: str) -> str:
        return f"({', '.join(f'{whose}.{name}' for name in collated)})"

    # A row that a tombstone marked counts as deleted: any version comes after it.
    is_marked = f"{_quoted(table.name)}.deleted_at IS NOT NULL OR " if "deleted_at" in table.c else ""
    return (
        f"INSERT INTO {_quoted(table.name)} ({', '.join(map(_quoted, names))}) {source}"
        f" ON CONFLICT ({', '.join(map(_quoted, keys))}) DO UPDATE SET {changes}"
        f" WHERE {is_marked}{version('excluded')} > {version(_quoted(table.name))}"
    )


def written(table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of texts, numbers and booleans, which SQLite stores without a loss; JSON is given as its text."""
    writers = {name: _writer(table.c[name].type) for name in (rows[0] if rows else ())}
    each = [(name, write) for name, write in writers.items() if write is not None]
    found = []
    for row in rows:
        values = dict(row)
        for name, write in each:
            if (value := values[name]) is not None:
                values[name] = write(value)
        found.append(values)
    return found


def _writer(kind: sa.types.TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """Return the function that writes values of a type; None if they are written unchanged."""
    if isinstance(kind, UtcTime):
        return sqlite_time
    if isinstance(kind, ExactDecimal):
        return lambda number: number if isinstance(number, str) else format(number, "f")
    return date.isoformat if isinstance(kind, sa.Date) else None


def sqlite_time(moment: datetime) -> str:
    """Format a time as SQLAlchemy does for SQLite: of fixed width, so that text order is time order."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def _quoted(name: str) -> str:
    return f'"{name}"'
