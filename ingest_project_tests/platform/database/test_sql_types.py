"""Declared columns have a type in both databases that keeps every value exactly."""

from __future__ import annotations

from decimal import Decimal

import polars as pl
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ingest_project.contracts.columns import Column
from ingest_project.platform.database import open_engine
from ingest_project.platform.database.declared_tables import sql_type
from ingest_project.readers.cells import MAX_NUMBER_LENGTH
from ingest_project.readers.profiles import load_profiles
from ingest_project.readers.typed_columns import MAX_JSON_DEPTH, cast_columns

DOCUMENTS = (
    "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH,
    "1" * 4_000,
    "0." + "1" * (MAX_NUMBER_LENGTH - 2),
    "[1e308, -1e-308, 5e-324]",
    '{"\\\\u0000": "\\ud83d\\ude00", "\\ufffe": "\\uffff\\u0001"}',
)


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


def test_postgresql_stores_what_the_readers_accept(empty_postgres_url: str) -> None:
    """The limits of the readers are within those of the database, which would refuse the rows of a whole batch."""
    columns = [Column(name="amount", type="decimal(38,38)"), Column(name="details", type="json")]
    amount = "0." + "9" * 38
    texts = pl.DataFrame({"amount": [amount] * len(DOCUMENTS), "details": DOCUMENTS})
    rows = cast_columns(texts, columns, load_profiles()["canonical"])
    assert rows.width == 2, "the readers refuse one of these"
    table = sa.Table("orders", sa.MetaData(), *(sa.Column(column.name, sql_type(column)) for column in columns))
    engine = open_engine(empty_postgres_url)
    with engine.begin() as connection:
        table.create(connection)
        copied = "INSERT INTO orders SELECT :amount, CAST(:details AS jsonb)"
        connection.execute(sa.text(copied), rows.to_dicts())
        assert set(connection.execute(sa.select(table.c.amount)).scalars()) == {Decimal(amount)}
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == len(DOCUMENTS)
    engine.dispose()
