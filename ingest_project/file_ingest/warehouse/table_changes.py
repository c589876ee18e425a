"""Create the tables of declared datasets when they are first used, and change them without losing data.

A column is added, a decimal widened and a requirement lifted. Every other difference between a declaration and its
table is refused with the way out, and only that dataset waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from ingest_project.core.errors import SchemaConflictError
from ingest_project.file_ingest.warehouse.sql import DatasetTables
from ingest_project.platform.database import exclusive, reading, writing
from ingest_project.platform.database.sql import ExactDecimal

LOCK = "dataset-tables"


def ensure_tables(engine: sa.Engine, tables: DatasetTables, *, evolving: bool = False) -> None:
    """Create the tables, or bring them up to date; nothing is done where nothing differs.

    Args:
        engine: of the warehouse.
        tables: as they are declared.
        evolving: True if columns of text may have been added by drift.

    Raises:
        SchemaConflictError: the change would lose data; names the column and what to do.
        DatabaseUnavailableError, TransactionConflictError: run it again later.
    """
    with reading(engine) as connection:
        if not any(list(_changes(connection, table, evolving=evolving)) for table in tables.stored):
            return
    # One process at a time, and never inside a transaction that stores rows: each would wait for the other.
    with exclusive(engine, LOCK), writing(engine) as connection:
        for table in tables.stored:
            for statement in list(_changes(connection, table, evolving=evolving)):
                connection.execute(statement)


def _changes(connection: sa.Connection, table: sa.Table, *, evolving: bool) -> Iterator[sa.Executable]:
    """Yield the statements that make a table as it is declared."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(table.name):
        yield sa.schema.CreateTable(table)
        yield from (sa.schema.CreateIndex(index) for index in table.indexes)
        return
    present = {column["name"]: column for column in inspector.get_columns(table.name)}
    if "file_key" not in present:
        raise SchemaConflictError(
            table.name, "file_key", "the table was not made by this dataset. Name another one as target.table"
        )
    has_rows = connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None
    for column in table.columns:
        found = present.pop(column.name, None)
        yield from (
            _added(connection, table, column, has_rows=has_rows)
            if found is None
            else _changed(connection, table, column, found)
        )
    indexes = {index["name"] for index in inspector.get_indexes(table.name)}
    yield from (sa.schema.CreateIndex(index) for index in table.indexes if index.name not in indexes)
    for name, removed in present.items():
        yield from _removed(connection, table, name, removed, evolving=evolving)


def _added(
    connection: sa.Connection, table: sa.Table, column: sa.Column[Any], *, has_rows: bool
) -> Iterator[sa.Executable]:
    if has_rows and not column.nullable:
        raise SchemaConflictError(
            table.name, column.name, "the stored rows have no value of this new column. Declare it without `required`"
        )
    exists = "IF NOT EXISTS " if connection.dialect.name == "postgresql" else ""
    required = "" if column.nullable else " NOT NULL"
    yield sa.text(f'ALTER TABLE {table.name} ADD COLUMN {exists}"{column.name}" {_type(connection, column)}{required}')


def _changed(
    connection: sa.Connection, table: sa.Table, column: sa.Column[Any], found: Mapping[str, Any]
) -> Iterator[sa.Executable]:
    wanted, held = _type(connection, column), str(found["type"].compile(connection.dialect))
    alter = f'ALTER TABLE {table.name} ALTER COLUMN "{column.name}"'
    if wanted != held:
        if not _is_wider(column.type, found["type"]):
            raise SchemaConflictError(
                table.name,
                column.name,
                f"the table holds {held}, declared is {wanted}. Name a new table as target.table and ingest the files"
                f" again, or convert the stored values: {alter} TYPE {wanted} USING ...",
            )
        yield sa.text(f"{alter} TYPE {wanted}")
    if not column.nullable and found["nullable"]:
        raise SchemaConflictError(
            table.name,
            column.name,
            f"it became required, and rows without it may be stored. Then: {alter} SET NOT NULL",
        )
    if column.nullable and not found["nullable"]:
        yield _optional(connection, table, column.name)


def _removed(
    connection: sa.Connection, table: sa.Table, name: str, found: Mapping[str, Any], *, evolving: bool
) -> Iterator[sa.Executable]:
    if evolving and isinstance(found["type"], sa.Text):
        return
    column: sa.ColumnClause[Any] = sa.column(name)
    filled = sa.select(sa.literal(1)).select_from(sa.table(table.name)).where(column.is_not(None)).limit(1)
    if connection.execute(filled).first() is not None:
        raise SchemaConflictError(
            table.name,
            name,
            "it is not declared any more and has values. Declare it, name a new table as target.table, or remove it:"
            f' ALTER TABLE {table.name} DROP COLUMN "{name}"',
        )
    if not found["nullable"]:
        yield _optional(connection, table, name)


def _optional(connection: sa.Connection, table: sa.Table, name: str) -> sa.Executable:
    if connection.dialect.name != "postgresql":
        raise SchemaConflictError(
            table.name, name, "SQLite cannot make a column optional. Name a new table as target.table"
        )
    return sa.text(f'ALTER TABLE {table.name} ALTER COLUMN "{name}" DROP NOT NULL')


def _type(connection: sa.Connection, column: sa.Column[Any]) -> str:
    return str(column.type.compile(connection.dialect))


def _is_wider(wanted: Any, held: Any) -> bool:  # noqa: ANN401 - SQLAlchemy's types
    """Return True for a decimal that holds every value of another one."""
    if not (isinstance(wanted, ExactDecimal) and wanted.precision):
        return False
    if not (isinstance(held, sa.Numeric) and held.precision):
        return False
    precision, scale = wanted.precision, wanted.scale or 0
    held_scale = held.scale or 0
    return precision - scale >= held.precision - held_scale and scale >= held_scale
