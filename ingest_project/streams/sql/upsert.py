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
from ingest_project.platform.database.sql import ExactDecimal, UtcTime, require_all

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

    Raises:
        TableUnusableError: a trigger has dropped rows.
    """
    if rows.is_empty():
        return 0
    keys = [column.name for column in table.primary_key]
    newest = rows.sort(order).unique(keys, keep="last", maintain_order=True)
    # In one order everywhere: two transactions that touch the same rows wait for each other, and never in a circle.
    return sum(_upsert(connection, table, order, part) for part in newest.sort(keys).iter_slices(ROWS_AT_A_TIME))


def _upsert(connection: sa.Connection, table: sa.Table, order: Sequence[str], rows: pl.DataFrame) -> int:
    names, is_postgresql = rows.columns, connection.dialect.name == "postgresql"
    parameters: list[dict[str, Any]] = [{}]
    source = _copy_rows(connection, table, rows) if is_postgresql and rows.height >= COPIED_ROWS else None
    if not is_postgresql:
        parameters = written(table, rows.to_dicts())
        source = f"(SELECT {', '.join(f':{name} AS {_quoted(name)}' for name in names)})"
    elif source is None:
        # Times, dates and decimals are written by msgspec itself.
        json = [column.name for column in table.c if isinstance(column.type, sa.JSON) and column.name in names]
        encoded = _encoder.encode([_with_raw(row, json) for row in rows.iter_rows(named=True)])
        parameters = [{"rows": encoded.decode()}]
        source = f"json_populate_recordset(CAST(NULL AS {_quoted(table.name)}), CAST(:rows AS json))"
    # Text in the order of its bytes, as Python and SQLite compare it, whatever the database's language.
    upsert, count_kept = _statements(table, names, order, source, collation=' COLLATE "C"' * is_postgresql)
    changed = connection.execute(upsert, parameters[0] if len(parameters) == 1 else parameters).rowcount
    if changed < rows.height:
        kept = sum(connection.execute(count_kept, one).scalar_one() for one in parameters)
        require_all(table.name, rows.height, kept)
    return changed


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


def _statements(
    table: sa.Table, names: Sequence[str], order: Sequence[str], source: str, collation: str
) -> tuple[sa.TextClause, sa.TextClause]:
    """Return the upsert, and the statement that counts the rows of the source that the table has, or newer ones."""
    target, listed = _quoted(table.name), ", ".join(map(_quoted, names))
    keys = [_quoted(column.name) for column in table.primary_key]
    changes = ", ".join(f"{name} = excluded.{name}" for name in map(_quoted, names) if name not in keys)
    collated = [_quoted(name) + collation * isinstance(table.c[name].type, sa.Text) for name in order]

    def is_newer(whose: str) -> str:
        mine, stored = (", ".join(f"{one}.{name}" for name in collated) for one in (whose, target))
        return f"({mine}) > ({stored})"

    # A row that a tombstone marked counts as deleted: any version comes after it.
    is_marked = f"{target}.deleted_at IS NOT NULL OR " if "deleted_at" in table.c else ""
    return sa.text(
        f"INSERT INTO {target} ({listed}) SELECT {listed} FROM {source} AS found WHERE true"
        f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changes} WHERE {is_marked}{is_newer('excluded')}"
    ), sa.text(
        f"SELECT count(*) FROM {source} AS found JOIN {target} USING ({', '.join(keys)})"
        f" WHERE ({is_newer('found')}) IS NOT TRUE"
    )


def written(table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of texts, numbers and booleans, which SQLite stores without a loss; JSON is given as its text."""
    each = {name: write for name in (rows[0] if rows else ()) if (write := _writer(table.c[name].type)) is not None}
    return [
        {name: each[name](value) if name in each and value is not None else value for name, value in row.items()}
        for row in rows
    ]


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
