"""Upsert rows by key: of two versions the greater one stays, for any order of arrival and any repetition."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa

from ingest_project.platform.database.sql import ExactDecimal, UtcTime

# PostgreSQL plans the whole of one parameter at once; a few thousand rows are as fast as more.
ROWS_AT_A_TIME = 5_000
# So many rows are worth a temporary table.
COPIED_ROWS = 500
COPIED = "pg_temp.incoming_rows"
COPY_CHARACTERS = 1024**2
# Orders versions of one moment: the epoch of the topic, then its name and id, partition and offset.
KAFKA_ORDER = ("kafka_epoch", "kafka_topic", "kafka_topic_id", "kafka_partition", "kafka_offset")

_encoder = msgspec.json.Encoder()


def upsert_rows(
    connection: sa.Connection, table: sa.Table, order: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> int:
    """Upsert rows on the primary key of a table, in the caller's transaction; returns how many are new or changed.

    Args:
        connection: of the transaction.
        table: has all the columns.
        order: columns by which versions of a row are compared.
        rows: one for each key, all with the same columns. JSON is given as its text.
    """
    return sum(
        _upsert(connection, table, order, rows[start : start + ROWS_AT_A_TIME])
        for start in range(0, len(rows), ROWS_AT_A_TIME)
    )


def _upsert(connection: sa.Connection, table: sa.Table, order: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> int:
    keys, names = [column.name for column in table.primary_key], list(rows[0])
    # In one order everywhere: two transactions that touch the same rows wait for each other, and never in a circle.
    of_key = itemgetter(*keys)
    rows = sorted(rows, key=lambda row: str(of_key(row)))
    if connection.dialect.name == "postgresql":
        # Times, dates and decimals are written by msgspec itself.
        json = [column.name for column in table.c if isinstance(column.type, sa.JSON) and column.name in names]
        texts = [_encoder.encode(_with_raw(row, json)) for row in rows]
        record = f"CAST(NULL AS {_quoted(table.name)})"
        parameters = {}
        if len(rows) >= COPIED_ROWS and _copies(connection, texts):
            source = f"{COPIED} AS copied, json_populate_record({record}, CAST(copied.line AS json)) AS found"
        else:
            parameters = {"rows": f"[{b','.join(texts).decode()}]"}
            source = f"json_populate_recordset({record}, CAST(:rows AS json)) AS found"
        listed_there = ", ".join(f"found.{_quoted(name)}" for name in names)
        # Text in the order of its bytes, as Python and SQLite compare it, whatever the database's language.
        statement = _statement(table, names, order, f"SELECT {listed_there} FROM {source}", collation=' COLLATE "C"')
        return connection.execute(sa.text(statement), parameters).rowcount
    values = ", ".join(f":{name}" for name in names)
    each = sa.text(_statement(table, names, order, f"VALUES ({values})"))
    return connection.execute(each, written(table, rows)).rowcount


def _copies(connection: sa.Connection, texts: Sequence[bytes]) -> bool:
    """Copy texts into a temporary table, which takes two thirds of the time of a parameter; False where it may not."""
    if connection.dialect.driver != "psycopg2":
        return False
    if COPIED not in connection.info:
        may_create = "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
        connection.info[COPIED] = connection.exec_driver_sql(may_create).scalar_one()
    if not connection.info[COPIED]:
        return False
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE IF NOT EXISTS {COPIED} (line text) ON COMMIT DELETE ROWS")
    connection.exec_driver_sql(f"TRUNCATE {COPIED}")
    driver: Any = connection.connection
    try:
        with driver.cursor() as cursor:
            copied = io.StringIO(b"\n".join(map(_copied, texts)).decode())
            cursor.copy_expert(f"COPY {COPIED} FROM STDIN", copied, COPY_CHARACTERS)
    except Exception:
        # SQLAlchemy did not see the error: the connection may be broken.
        connection.invalidate()
        raise
    return True


def _copied(text: bytes) -> bytes:
    """Return a text as a line of COPY: JSON may have line ends and tabs between its values."""
    text = text.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    return text.replace(b"\r", b"\\r").replace(b"\t", b"\\t")


def _with_raw(row: Mapping[str, Any], json: Sequence[str]) -> dict[str, Any]:
    """Return a row whose texts of JSON are written as they are."""
    return {**row, **{name: msgspec.Raw(text.encode()) for name in json if (text := row[name]) is not None}}


def _statement(table: sa.Table, names: Sequence[str], order: Sequence[str], source: str, collation: str = "") -> str:
    keys = [column.name for column in table.primary_key]
    changes = ", ".join(f"{_quoted(name)} = excluded.{_quoted(name)}" for name in names if name not in keys)

    def version(whose: str) -> str:
        return f"({', '.join(f'{whose}.{_quoted(name)}{_collated(table.c[name], collation)}' for name in order)})"

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
    """Return how values of a type are written; None where they stay as they are."""
    if isinstance(kind, UtcTime):
        return sqlite_time
    if isinstance(kind, ExactDecimal):
        return "{:f}".format
    return date.isoformat if isinstance(kind, sa.Date) else None


def sqlite_time(moment: datetime) -> str:
    """Format a time as SQLAlchemy does for SQLite: of fixed width, so that text order is time order."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def _collated(column: sa.Column[Any], collation: str) -> str:
    return collation if isinstance(column.type, sa.Text) else ""


def _quoted(name: str) -> str:
    return f'"{name}"'
