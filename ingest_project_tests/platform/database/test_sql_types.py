"""Declared columns have a type in both databases that keeps every value exactly."""

from __future__ import annotations

from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ingest_project.contracts.columns import Column
from ingest_project.platform.database.sql import sql_type


@pytest.mark.parametrize(
    ("declared", "in_postgresql", "in_sqlite"),
    [
        ("text", "TEXT", "TEXT"),
        ("integer", "BIGINT", "BIGINT"),
        ("number", "DOUBLE PRECISION", "DOUBLE"),
        ("decimal(12,2)", "NUMERIC(12, 2)", "TEXT"),
        ("boolean", "BOOLEAN", "BOOLEAN"),
        ("date", "DATE", "DATE"),
        ("timestamp", "TIMESTAMP WITH TIME ZONE", "DATETIME"),
        ("json", "JSONB", "JSON"),
    ],
)
def test_each_type_of_column_is_created_as(declared: str, in_postgresql: str, in_sqlite: str) -> None:
    found = sql_type(Column(name="a", type=declared))
    assert found.compile(dialect=postgresql.dialect()) == in_postgresql  # type: ignore[no-untyped-call]
    assert found.compile(dialect=sqlite.dialect()) == in_sqlite


def test_sqlite_returns_every_digit_of_a_decimal() -> None:
    amount = sa.Column("amount", sql_type(Column(name="amount", type="decimal(38,10)")))
    table = sa.Table("orders", sa.MetaData(), amount)
    exact = Decimal("1234567890123456789012345678.0000000001")
    with sa.create_engine("sqlite://").begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"amount": exact}])
        assert connection.execute(sa.select(amount)).scalar() == exact
