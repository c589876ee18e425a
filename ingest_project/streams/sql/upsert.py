"""Upsert rows by key: of two versions the greater one stays, for any order of arrival and any repetition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa

# PostgreSQL plans the whole of one parameter at once; a few thousand rows are as fast as more.
ROWS_AT_A_TIME = 5_000
# Orders versions of one moment: the epoch of the topic, then its name and id, partition and offset.
KAFKA_ORDER = ("kafka_epoch", "kafka_topic", "kafka_topic_id", "kafka_partition", "kafka_offset")


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
    rows = sorted(rows, key=lambda row: [str(row[key]) for key in keys])
    listed = ", ".join(map(_quoted, names))
    if connection.dialect.name == "postgresql":
        source = (
            f"SELECT {listed} FROM json_populate_recordset(CAST(NULL AS {_quoted(table.name)}), CAST(:rows AS json))"
        )
        encoded = msgspec.json.encode(written(table, rows, _iso, lambda text: msgspec.Raw(text.encode())))
        # Text in the order of its bytes, as Python and SQLite compare it, whatever the database's language.
        statement = sa.text(_statement(table, names, order, source, collation=' COLLATE "C"'))
        return connection.execute(statement, {"rows": encoded.decode()}).rowcount
    values = ", ".join(f":{name}" for name in names)
    statement = sa.text(_statement(table, names, order, f"VALUES ({values})"))
    return connection.execute(statement, written(table, rows, sqlite_time, str)).rowcount


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


def written(
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    time: Callable[[datetime], str],
    json: Callable[[str], Any],
) -> list[dict[str, Any]]:
    """Return rows of texts, numbers and booleans, which the database stores without a loss.

    Args:
        table: of the rows.
        rows: of Python values; JSON as its text.
        time: writes a time.
        json: writes a text of JSON.
    """
    is_json = {column.name for column in table.columns if isinstance(column.type, sa.JSON)}

    def value(name: str, one: Any) -> Any:  # noqa: ANN401 - any value of a row
        if one is None:
            return None
        if name in is_json:
            return json(one)
        if isinstance(one, datetime):
            return time(one)
        if isinstance(one, Decimal):
            return format(one, "f")
        return one.isoformat() if isinstance(one, date) else one

    return [{name: value(name, one) for name, one in row.items()} for row in rows]


def sqlite_time(moment: datetime) -> str:
    """Format a time as SQLAlchemy does for SQLite: of fixed width, so that text order is time order."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def _iso(moment: datetime) -> str:
    return moment.isoformat()


def _collated(column: sa.Column[Any], collation: str) -> str:
    return collation if isinstance(column.type, sa.Text) else ""


def _quoted(name: str) -> str:
    return f'"{name}"'
