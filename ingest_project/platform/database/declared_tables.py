"""Create the tables of declarations at their first use, and change them without losing data.

Possible changes are to add a column, widen a decimal, and make a column optional. Any other difference between a
declaration and its table raises an error with the remedy, and only that dataset or stream waits. PostgreSQL cannot
change a column that a view uses: the declaration's view is dropped and recreated in the same transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.reflection import ObjectKind

from ingest_project.contracts.columns import Column
from ingest_project.core.errors import IngestError, SchemaConflictError, SettingsError
from ingest_project.platform.database import MISSING_RIGHTS, exclusive, reading, writing
from ingest_project.platform.database.sql import Double, ExactDecimal, Json, UtcTime, metadata
from ingest_project.platform.errors import map_error, sqlstate

LOCK = "declared-tables"
SQL_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "integer": sa.BigInteger(),
    "number": Double,
    "boolean": sa.Boolean(),
    "date": sa.Date(),
    "timestamp": UtcTime(),
    "json": Json,
    "text": sa.Text(),
}


@dataclass(frozen=True)
class TableKind:
    """The tables of one kind of declarations.

    Args:
        proof: column that only tables of this kind have.
        setting: key of a declaration that names the table, e.g. `target.table`.
    """

    proof: str
    setting: str


@dataclass(frozen=True)
class View:
    """A view over one of the tables of a declaration.

    Args:
        name: of the view.
        of: name of the table.
        query: SELECT statement of the view.
        columns: names of its columns.
    """

    name: str
    of: str
    query: str
    columns: tuple[str, ...]


def sql_type(column: Column) -> sa.types.TypeEngine[Any]:
    """Return the SQL type of a declared column, which stores every value exactly."""
    return ExactDecimal(*column.digits) if column.digits else SQL_TYPES[column.kind]


@dataclass(frozen=True)
class DeclaredTables:
    """The tables of one declaration.

    Args:
        tables: the tables as declared.
        kind: kind of these tables.
        view: view over one of them.
        evolving: True if drift may have added text columns.
    """

    tables: Sequence[sa.Table]
    kind: TableKind
    view: View | None = None
    evolving: bool = False

    def ensure(self, engine: sa.Engine) -> None:
        """Create or update the tables and the view; do nothing if they match the declaration.

        Never call it inside a transaction that stores rows: the two would deadlock.

        Args:
            engine: engine of the warehouse.

        Raises:
            SettingsError: a table belongs to the system, another object has the view's name, or a privilege is missing.
            SchemaConflictError: the change would lose data; names the column and what to do.
            DatabaseUnavailableError, TransactionConflictError: retry later.
        """
        if not self.due_changes(engine):
            return
        # One process at a time: the second one finds nothing left to do.
        with exclusive(engine, LOCK), writing(engine) as connection:
            for statement in self._statements(connection):
                try:
                    connection.execute(statement)
                except sa.exc.DBAPIError as error:
                    if map_error(error, "") is not None or sqlstate(error) in MISSING_RIGHTS:
                        raise
                    raise _refused(statement, self.tables[0].name, error) from error

    def due_changes(self, engine: sa.Engine) -> list[sa.Executable]:
        """Return the changes that `ensure` would make; the database may still refuse one of them when it is made.

        Raises:
            SettingsError, SchemaConflictError, DatabaseUnavailableError: see `ensure`.
        """
        for table in self.tables:
            if table.name in metadata.tables:
                raise SettingsError(
                    f"The table {table.name!r} belongs to the system; name another one as {self.kind.setting}."
                )
        with reading(engine) as connection:
            return self._statements(connection)

    def _statements(self, connection: sa.Connection) -> list[sa.Executable]:
        evolving = self.evolving
        changes = [one for table in self.tables for one in _Changes(connection, table, self.kind, evolving=evolving)]
        return changes if self.view is None else _around(changes, self.view, connection)


def _refused(statement: sa.Executable, table: str, error: sa.exc.DBAPIError) -> IngestError:
    """Return the error for a change that the database refused, with the remedy."""
    reason = " ".join(str(error.orig).split())
    if isinstance(statement, sa.schema.CreateIndex):
        columns = ", ".join(column.name for column in statement.element.columns)
        remedy = "Correct the stored rows, or the key that is declared"
        return SchemaConflictError(table, columns, f"{reason}. {remedy}")
    # A view that this project did not create depends on the column, or on the declaration's view.
    name = next(iter(re.findall(r'"([^"]+)"', str(statement))), table)
    return SchemaConflictError(table, name, f"{reason}. Drop what uses it, and create it again once a file is stored")


def _around(changes: list[sa.Executable], view: View, connection: sa.Connection) -> list[sa.Executable]:
    """Return the changes, with statements to recreate the view if it is missing or blocks them."""
    inspector = sa.inspect(connection)
    is_there = inspector.has_table(view.name)
    if is_there:
        is_view = view.name in inspector.get_view_names()
        if not is_view or view.of not in str(inspector.get_view_definition(view.name)):
            raise SettingsError(
                f"The view over {view.of} cannot be made: something else is called {view.name}. Rename or drop that."
            )
        if not changes and [column["name"] for column in inspector.get_columns(view.name)] == [*view.columns]:
            return []
    drop: list[sa.Executable] = [sa.text(f'DROP VIEW "{view.name}"')] if is_there else []
    return [*drop, *changes, sa.text(f'CREATE VIEW "{view.name}" AS {view.query}')]


def columns_of_table(engine: sa.Engine, table: str) -> dict[str, str]:
    """Return the database's type names of a table's columns; empty if the table does not exist."""
    with reading(engine) as connection:
        inspector = sa.inspect(connection)
        if not inspector.has_table(table):
            return {}
        return {one["name"]: one["type"].compile(engine.dialect) for one in inspector.get_columns(table)}


def require_types(engine: sa.Engine, *tables: sa.Table) -> None:
    """Require that the columns of tables, as far as they exist, have the types that rows are written in.

    Raises:
        SchemaConflictError: one has another type, in which the bytes of a value may be another value.
    """
    with reading(engine) as connection:
        # One query for all tables takes less time than those for one.
        present = sa.inspect(connection).get_multi_columns(kind=ObjectKind.ANY, filter_names=[t.name for t in tables])
    for table in tables:
        for found in present.get((None, table.name), ()):
            name, held = found["name"], found["type"].compile(engine.dialect)
            wanted = table.c[name].type.compile(engine.dialect) if name in table.c else held
            if held != wanted:
                remedy = f'ALTER TABLE {table.name} ALTER COLUMN "{name}" TYPE {wanted} USING ...'
                raise SchemaConflictError(table.name, name, f"it is {held}, not {wanted}. Convert it: {remedy}")


class _Changes:
    """The statements that change a table to match its declaration; see `DeclaredTables`."""

    def __init__(self, connection: sa.Connection, table: sa.Table, kind: TableKind, *, evolving: bool) -> None:
        self._connection, self._table, self._kind, self._evolving = connection, table, kind, evolving
        self._alter = f"ALTER TABLE {connection.dialect.identifier_preparer.format_table(table)}"

    def __iter__(self) -> Iterator[sa.Executable]:
        inspector = sa.inspect(self._connection)
        if not inspector.has_table(self._table.name):
            yield sa.schema.CreateTable(self._table)
            yield from (sa.schema.CreateIndex(index) for index in self._table.indexes)
            return
        present = {column["name"]: column for column in inspector.get_columns(self._table.name)}
        self._require_ours(inspector, present)
        has_rows = self._has_rows(sa.true())
        for column in self._table.columns:
            found = present.pop(column.name, None)
            yield from self._added(column, has_rows=has_rows) if found is None else self._changed(column, found)
        indexes = {index["name"] for index in inspector.get_indexes(self._table.name)}
        yield from (sa.schema.CreateIndex(index) for index in self._table.indexes if index.name not in indexes)
        for removed in present.values():
            yield from self._removed(removed)

    def _require_ours(self, inspector: sa.Inspector, present: dict[str, Any]) -> None:
        other = f"Name another one as {self._kind.setting}"
        if self._kind.proof not in present:
            raise self._refusal(self._kind.proof, f"the table was made by another program. {other}")
        found = inspector.get_pk_constraint(self._table.name)["constrained_columns"]
        declared = [column.name for column in self._table.primary_key]
        if sorted(found) != sorted(declared):
            shown = ", ".join(found) or "no column"
            raise self._refusal(", ".join(declared), f"the rows of the table are identified by {shown}. {other}")

    def _added(self, column: sa.Column[Any], *, has_rows: bool) -> Iterator[sa.Executable]:
        if has_rows and not column.nullable:
            raise self._refusal(
                column.name, "the stored rows have no value of this new column. Declare it without `required`"
            )
        exists = "IF NOT EXISTS " if self._connection.dialect.name == "postgresql" else ""
        required = "" if column.nullable else " NOT NULL"
        yield sa.text(f'{self._alter} ADD COLUMN {exists}"{column.name}" {self._name_of(column.type)}{required}')

    def _changed(self, column: sa.Column[Any], found: Any) -> Iterator[sa.Executable]:  # noqa: ANN401 - SQLAlchemy's
        wanted, held = self._name_of(column.type), self._name_of(found["type"])
        alter = f'{self._alter} ALTER COLUMN "{column.name}"'
        if wanted != held:
            if not _is_wider(column.type, found["type"]):
                raise self._refusal(
                    column.name,
                    f"the table holds {self._declared(found['type'])}, declared is {self._declared(column.type)}."
                    " Declare the type that it has, name a new table as"
                    f" {self._kind.setting} and ingest again, or convert the stored values: {alter} TYPE {wanted}"
                    " USING ...",
                )
            yield sa.text(f"{alter} TYPE {wanted}")
        if not column.nullable and found["nullable"]:
            raise self._refusal(
                column.name, f"it became required, and rows without it may be stored. Then: {alter} SET NOT NULL"
            )
        if column.nullable and not found["nullable"]:
            yield self._optional(column.name)

    def _removed(self, found: Any) -> Iterator[sa.Executable]:  # noqa: ANN401 - SQLAlchemy's
        name = found["name"]
        may_have_values = self._evolving and isinstance(found["type"], sa.Text)
        if not may_have_values and self._has_rows(sa.column(name).is_not(None)):
            raise self._refusal(
                name,
                f"it is not declared any more and has values. Declare it, name a new table as {self._kind.setting}, or"
                f' remove it: {self._alter} DROP COLUMN "{name}"',
            )
        if not found["nullable"]:
            yield self._optional(name)

    def _optional(self, name: str) -> sa.Executable:
        if self._connection.dialect.name != "postgresql":
            raise self._refusal(name, f"SQLite cannot make a column optional. Name a new table as {self._kind.setting}")
        return sa.text(f'{self._alter} ALTER COLUMN "{name}" DROP NOT NULL')

    def _has_rows(self, condition: sa.ColumnElement[bool]) -> bool:
        query = sa.select(sa.literal(1)).select_from(sa.table(self._table.name)).where(condition).limit(1)
        return self._connection.execute(query).first() is not None

    def _refusal(self, column: str, reason: str) -> SchemaConflictError:
        return SchemaConflictError(self._table.name, column, reason)

    def _declared(self, kind: Any) -> str:  # noqa: ANN401 - SQLAlchemy's
        """Return a type as declarations name it, or as the database does if declarations have no name for it."""
        if isinstance(kind, ExactDecimal | sa.Numeric) and kind.precision and not isinstance(kind, sa.Float):
            return f"decimal({kind.precision},{kind.scale or 0})"
        names = {self._name_of(one): name for name, one in SQL_TYPES.items()}
        return names.get(self._name_of(kind), self._name_of(kind))

    def _name_of(self, kind: sa.types.TypeEngine[Any]) -> str:
        return kind.compile(self._connection.dialect)


def _is_wider(wanted: Any, held: Any) -> bool:  # noqa: ANN401 - SQLAlchemy's types
    """Return True if the wanted decimal type holds every value of the present one."""
    if not (isinstance(wanted, ExactDecimal) and wanted.precision):
        return False
    if not (isinstance(held, sa.Numeric) and held.precision):
        return False
    precision, scale = wanted.precision, wanted.scale or 0
    held_scale = held.scale or 0
    return precision - scale >= held.precision - held_scale and scale >= held_scale
