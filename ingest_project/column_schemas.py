"""Table names and columns as Dagster shows them, taken from the definitions that make the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's dialects have no annotations


def table_metadata(table: sa.Table) -> dict[str, Any]:
    """Return the name and the columns of a warehouse table, types as PostgreSQL calls them, as an asset's metadata."""
    columns = [
        dg.TableColumn(
            column.name,
            column.type.compile(_DIALECT).lower(),
            description=column.doc,
            constraints=dg.TableColumnConstraints(nullable=bool(column.nullable)),
        )
        for column in table.columns
    ]
    return {"dagster/table_name": table.name, "dagster/column_schema": dg.TableSchema(columns)}


def delta_metadata(name: str, schema: pa.Schema) -> dict[str, Any]:
    """Return the name and the columns of a Delta table, as an asset's metadata."""
    columns = [dg.TableColumn(field.name, str(field.type)) for field in schema]
    return {"dagster/table_name": name, "dagster/column_schema": dg.TableSchema(columns)}
