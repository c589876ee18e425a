"""SQL statements for many rows at a time, the same on PostgreSQL and SQLite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

# SQLite takes 32,766 values in a statement, PostgreSQL's text grows with them.
KEYS_AT_A_TIME = 5_000
VALUES_AT_A_TIME = 30_000

Key = TypeVar("Key")


def insert_missing(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], key: sa.Column[str]
) -> set[str]:
    """Insert the rows whose primary key does not exist; returns the keys that were inserted.

    Two processes that insert the same key at once: one inserts it, the other waits and finds it. NUL characters,
    which PostgreSQL cannot store and a sender may put into any text, become U+FFFD.
    """
    if not rows:
        return set()
    rows, encoded = _storable(rows)
    if connection.dialect.name == "postgresql":
        names = ", ".join(f'"{name}"' for name in rows[0])
        statement = sa.text(
            f"INSERT INTO {table.name} ({names})"
            f" SELECT {names} FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
            f" ON CONFLICT DO NOTHING RETURNING {key.name}"
        )
        return set(connection.execute(statement, {"rows": encoded}).scalars())
    ordinary = sqlite.insert(table).on_conflict_do_nothing().returning(key)
    inserted: set[str] = set()
    size = max(1, VALUES_AT_A_TIME // len(rows[0]))
    for start in range(0, len(rows), size):
        inserted.update(connection.execute(ordinary, rows[start : start + size]).scalars())
    return inserted


def update_each(
    connection: sa.Connection, table: sa.Table, key: sa.Column[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Update many rows, each with values of its own. Every mapping names the key and the same other columns."""
    if not rows:
        return
    names = [name for name in rows[0] if name != key.name]
    if connection.dialect.name == "postgresql":
        # One statement; psycopg2 would send one a row.
        changes = ", ".join(f'"{name}" = new."{name}"' for name in names)
        statement = sa.text(
            f"UPDATE {table.name} SET {changes}"
            f" FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json)) AS new"
            f" WHERE {table.name}.{key.name} = new.{key.name}"
        )
        connection.execute(statement, {"rows": _storable(rows)[1]})
        return
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    ordinary = sa.update(table).where(key == sa.bindparam(f"new_{key.name}")).values(values)
    connection.execute(ordinary, [{f"new_{name}": value for name, value in row.items()} for row in rows])


def in_parts(keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
    """Yield keys in parts that one statement can take."""
    for start in range(0, len(keys), KEYS_AT_A_TIME):
        yield keys[start : start + KEYS_AT_A_TIME]


def contains(text: str, *columns: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Test whether one of the columns contains the text, ignoring case; no character is special."""
    return sa.or_(*(column.icontains(text, autoescape=True) for column in columns))


def _storable(rows: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Return the rows without NUL characters, and the same as JSON, which puts thousands of rows in one parameter."""
    encoded = msgspec.json.encode(rows)
    if b"\\u0000" in encoded:
        rows = [_without_nul(row) for row in rows]
        encoded = msgspec.json.encode(rows)
    return rows, encoded.decode()


def _without_nul(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, Mapping):
        return {_without_nul(name): _without_nul(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(part) for part in value]
    return value
