"""Statements that the ledgers of files and polling jobs share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from ingest_project.platform.work_queue.states import PENDING
from ingest_project.platform.work_queue.types import DelayRule, RequeuedEntry

# SQLite takes 32,766 values in a statement, PostgreSQL's text grows with them.
KEYS_AT_A_TIME = 5_000
VALUES_AT_A_TIME = 30_000
FAILED = "failed"
BEFORE = " Before that: "
LONGEST_REASON = 500

Key = TypeVar("Key")


def insert_missing(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], key: sa.Column[str]
) -> set[str]:
    """Insert the rows whose primary key is not there; returns the keys that were inserted.

    Two processes that insert the same key at once: one inserts it, the other waits and finds it there. NUL characters,
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


def requeue(  # noqa: PLR0913 - the retry rule is two settings
    connection: sa.Connection,
    table: sa.Table,
    key: sa.Column[str],
    chosen: sa.ColumnElement[bool],
    *,
    reason: str | sa.ColumnElement[str],
    error_class: str,
    max_attempts: int,
    delay: DelayRule,
    now: datetime,
) -> RequeuedEntry:
    """Entries whose attempt came to nothing: pending again after a pause, or failed when no attempt is left."""
    attempts_found = connection.execute(sa.select(table.c.attempts).where(chosen).distinct()).scalars().all()
    why = {"reason": reason, "error_class": error_class, "updated_at": now}
    pending = 0
    failed: list[str] = []
    for attempts in sorted(attempts_found):
        change = sa.update(table).where(chosen, table.c.attempts == attempts).returning(key)
        if attempts >= max_attempts:
            change = change.values(**why, state=FAILED, finished_at=now)
            failed += connection.execute(change).scalars().all()
        else:
            change = change.values(**why, state=PENDING, next_attempt_at=now + delay(max(attempts, 1)))
            pending += len(connection.execute(change).scalars().all())
    return RequeuedEntry(pending=pending, failed=tuple(failed))


def add_reason(  # noqa: PLR0913, PLR0917 - which entries, and what is told of them
    connection: sa.Connection,
    table: sa.Table,
    key: sa.Column[str],
    chosen: sa.ColumnElement[bool],
    reason: str,
    error_class: str,
) -> None:
    """Write why entries came to nothing, and keep what each failed of before: a lost run says little about an entry."""
    by_reason: dict[str, list[str]] = {}
    for name, earlier, earlier_class in connection.execute(
        sa.select(key, table.c.reason, table.c.error_class).where(chosen)
    ):
        kept = (earlier or "").partition(BEFORE)[2] if earlier_class == error_class else earlier
        told = f"{reason}{BEFORE}{kept[:LONGEST_REASON]}" if kept else reason
        by_reason.setdefault(told, []).append(name)
    for told, names in by_reason.items():
        for part in in_parts(names):
            connection.execute(sa.update(table).where(key.in_(part)).values(reason=told, error_class=error_class))


def in_parts(keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
    """Keys in numbers that one statement can take."""
    for start in range(0, len(keys), KEYS_AT_A_TIME):
        yield keys[start : start + KEYS_AT_A_TIME]


def contains(text: str, *columns: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Whether one of the columns contains the text, upper and lower case alike, no character being special."""
    return sa.or_(*(column.icontains(text, autoescape=True) for column in columns))


def _storable(rows: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The rows without NUL characters, and the same as JSON, which carries thousands of rows in one parameter."""
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
