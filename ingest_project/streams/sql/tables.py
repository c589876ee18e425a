"""Tables of declared streams: created when the first run begins, and changed only by adding columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.core.errors import SchemaConflictError, SettingsError
from ingest_project.platform.database import exclusive, reading, writing
from ingest_project.platform.database.sql import Json, UtcTime, metadata, sql_type
from ingest_project.streams.declaration import SqlTarget, StreamDeclaration

DELETED_AT = "deleted_at"


def table_of(declaration: StreamDeclaration) -> sa.Table:
    """Return the table of a declared stream, in a catalogue of its own: migrations do not know it."""
    sink = declaration.sink
    assert isinstance(sink, SqlTarget)  # noqa: S101 - the caller chose by it
    # Only keys are NOT NULL: the contract requires values, and a tombstone may mark a row that never came.
    columns = [
        Col(one.name, sql_type(one), primary_key=one.name in sink.key, autoincrement=False, comment=one.description)
        for one in sorted(declaration.typed_columns, key=lambda one: one.name not in sink.key)
    ]
    return sa.Table(
        sink.table or declaration.name,
        sa.MetaData(),
        *columns,
        Col("rescued_data", Json),
        Col("kafka_topic", sa.Text, nullable=False),
        Col("kafka_topic_id", sa.Text, nullable=False),
        Col("kafka_epoch", sa.Integer, nullable=False),
        Col("kafka_partition", sa.Integer, nullable=False),
        Col("kafka_offset", sa.BigInteger, nullable=False),
        Col("kafka_timestamp", UtcTime),
        Col("trace_id", sa.Text),
        Col("stored_at", UtcTime, nullable=False),
        *([Col(DELETED_AT, UtcTime)] if sink.tombstones == "mark" else []),
    )


def ensure_table(engine: sa.Engine, table: sa.Table) -> None:
    """Create a table, or add the columns that it lacks. Idempotent, also by several processes at once.

    Raises:
        SettingsError: the table is the system's own.
        SchemaConflictError: it is another program's, or a column or the key would have to change.
    """
    if table.name in metadata.tables:
        raise SettingsError(f"The table {table.name!r} belongs to the system; name another one as sink.table.")
    with exclusive(engine, f"table_{table.name}"):
        found = columns_of_table(engine, table.name)
        if not found:
            with writing(engine) as connection:
                table.create(connection, checkfirst=True)
            return
        _require_same(engine, table, found)
        add_columns(engine, table.name, (column for column in table.columns if column.name not in found))


def add_columns(engine: sa.Engine, table: str, columns: Iterable[sa.Column[Any]]) -> None:
    """Add nullable columns to a table."""
    for column in columns:
        kind = column.type.compile(engine.dialect)
        exists = " IF NOT EXISTS" if engine.dialect.name == "postgresql" else ""
        with writing(engine) as connection:
            connection.execute(sa.text(f'ALTER TABLE "{table}" ADD COLUMN{exists} "{column.name}" {kind}'))


def columns_of_table(engine: sa.Engine, table: str) -> dict[str, str]:
    """Return the types of a table's columns, as the database calls them; empty where there is no such table."""
    with reading(engine) as connection:
        inspector = sa.inspect(connection)
        if not inspector.has_table(table):
            return {}
        return {one["name"]: one["type"].compile(engine.dialect) for one in inspector.get_columns(table)}


def _require_same(engine: sa.Engine, table: sa.Table, found: dict[str, str]) -> None:
    if "kafka_offset" not in found:
        raise SchemaConflictError(
            table.name, "kafka_offset", "no stream made the table; name another one as sink.table"
        )
    with reading(engine) as connection:
        keys = sa.inspect(connection).get_pk_constraint(table.name)["constrained_columns"]
    wanted = [column.name for column in table.primary_key]
    if sorted(keys) != sorted(wanted):
        raise SchemaConflictError(
            table.name,
            ", ".join(wanted),
            f"the rows of the table are identified by {', '.join(keys)}; name another one as sink.table",
        )
    for column in table.columns:
        kind = column.type.compile(engine.dialect)
        if found.get(column.name, kind) != kind:
            raise SchemaConflictError(
                table.name,
                column.name,
                f"the table holds {found[column.name]}, declared is {kind}. Declare the type that it has, name another"
                f' table as sink.table, or convert the values: ALTER TABLE {table.name} ALTER COLUMN "{column.name}"'
                f" TYPE {kind} USING ...",
            )
