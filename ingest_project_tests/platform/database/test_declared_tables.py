"""Tables of declarations are created when they are first used, and never changed so that values are lost."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.core.errors import SchemaConflictError, SettingsError
from ingest_project.platform.database import open_engine, reading, writing
from ingest_project.platform.database.declared_tables import DeclaredTables, TableKind, View, columns_of_table
from ingest_project.platform.database.sql import ExactDecimal, metadata

KIND = TableKind(proof="origin", setting="made.table")


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(postgres_url)
    yield engine
    engine.dispose()


def declared(*columns: Col[object], key: str = "id", name: str = "orders") -> sa.Table:
    """A table as a declaration has it."""
    own = [Col(one, sa.Text, primary_key=one == key, nullable=False) for one in ("id", "origin")]
    return sa.Table(name, sa.MetaData(), *own, *columns)


def stored(engine: sa.Engine, table: sa.Table, **values: object) -> None:
    """Store a row."""
    with writing(engine) as connection:
        connection.execute(table.insert().values(id="1", origin="here", **values))


def refusal(engine: sa.Engine, table: sa.Table, *, evolving: bool = False) -> str:
    """The reason for which a table is refused."""
    with pytest.raises(SchemaConflictError) as raised:
        DeclaredTables([table], KIND, evolving=evolving).ensure(engine)
    return str(raised.value)


def test_a_table_is_created_once_by_several_at_the_same_time(engine: sa.Engine) -> None:
    tables = [declared(), declared(name="others")]
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(DeclaredTables(tables, KIND).ensure, engine) for _ in range(4)]:
            done.result()
    assert [set(columns_of_table(engine, table.name)) for table in tables] == [{"id", "origin"}] * 2
    assert columns_of_table(engine, "third") == {}


def test_a_new_column_is_added_unless_the_stored_rows_need_a_value_of_it(engine: sa.Engine) -> None:
    DeclaredTables([declared()], KIND).ensure(engine)
    stored(engine, declared())
    DeclaredTables([declared(Col("note", sa.Text))], KIND).ensure(engine)
    assert columns_of_table(engine, "orders")["note"] == "TEXT"
    assert "Declare it without `required`" in refusal(engine, declared(Col("size", sa.BigInteger, nullable=False)))


def test_a_decimal_is_widened_and_a_requirement_lifted(postgres: sa.Engine) -> None:
    before = declared(Col("amount", ExactDecimal(8, 2), nullable=False))
    DeclaredTables([before], KIND).ensure(postgres)
    stored(postgres, before, amount=1)
    DeclaredTables([declared(Col("amount", ExactDecimal(12, 3)))], KIND).ensure(postgres)
    assert columns_of_table(postgres, "orders")["amount"] == "NUMERIC(12, 3)"
    with reading(postgres) as connection:
        (amount,) = [one for one in sa.inspect(connection).get_columns("orders") if one["name"] == "amount"]
    assert amount["nullable"]
    assert "the table holds decimal(12,3), declared is decimal(8,2)" in refusal(postgres, before)
    assert "became required" in refusal(postgres, declared(Col("amount", ExactDecimal(12, 3), nullable=False)))


def test_another_type_or_key_is_refused_with_the_setting_to_change(engine: sa.Engine) -> None:
    DeclaredTables([declared(Col("size", sa.BigInteger))], KIND).ensure(engine)
    reason = refusal(engine, declared(Col("size", sa.Date)))
    assert "the table holds integer, declared is date" in reason
    assert "name a new table as made.table" in reason
    reason = refusal(engine, declared(key="origin"))
    assert "the rows of the table are identified by id. Name another one as made.table" in reason


def test_a_removed_column_stays_only_without_values_or_if_drift_may_have_added_it(engine: sa.Engine) -> None:
    wide = declared(Col("note", sa.Text), Col("size", sa.BigInteger))
    DeclaredTables([wide], KIND).ensure(engine)
    DeclaredTables([declared()], KIND).ensure(engine)
    stored(engine, wide, note="hello")
    assert "Column 'note'" in refusal(engine, declared())
    DeclaredTables([declared()], KIND, evolving=True).ensure(engine)
    with writing(engine) as connection:
        connection.execute(wide.update().values(size=1))
    assert 'ALTER TABLE orders DROP COLUMN "size"' in refusal(engine, declared(), evolving=True)


def test_a_required_column_that_drift_cannot_fill_becomes_optional(postgres: sa.Engine) -> None:
    wide = declared(Col("note", sa.Text, nullable=False))
    DeclaredTables([wide], KIND).ensure(postgres)
    stored(postgres, wide, note="hello")
    DeclaredTables([declared()], KIND, evolving=True).ensure(postgres)
    with writing(postgres) as connection:
        connection.execute(declared().insert().values(id="2", origin="here"))


def test_a_table_of_another_program_or_of_the_system_is_left_alone(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        connection.execute(sa.text("CREATE TABLE orders (id TEXT PRIMARY KEY)"))
    assert "made by another program. Name another one as made.table" in refusal(engine, declared())
    assert set(columns_of_table(engine, "orders")) == {"id"}
    own = next(iter(metadata.tables))
    with pytest.raises(SettingsError, match=r"belongs to the system; name another one as made\.table"):
        DeclaredTables([declared(name=own)], KIND).ensure(engine)


def over_orders(*columns: str) -> View:
    """A view over the table of orders."""
    return View("orders_seen", "orders", f"SELECT {', '.join(columns)} FROM orders", columns)


def test_a_view_stays_over_a_table_whose_columns_change(postgres: sa.Engine) -> None:
    DeclaredTables([declared(Col("price", ExactDecimal(8, 2)))], KIND, view=over_orders("id", "price")).ensure(postgres)
    stored(postgres, declared(Col("price", ExactDecimal(8, 2))), price=1)
    wider = declared(Col("price", ExactDecimal(12, 2)), Col("note", sa.Text))
    for _ in range(2):
        DeclaredTables([wider], KIND, view=over_orders("id", "price", "note")).ensure(postgres)
    with reading(postgres) as connection:
        assert connection.exec_driver_sql("SELECT id, price, note FROM orders_seen").all() == [("1", 1, None)]


def test_a_view_of_somebody_else_is_never_dropped_and_the_refusal_names_it(postgres: sa.Engine) -> None:
    DeclaredTables([declared(Col("price", ExactDecimal(8, 2)))], KIND).ensure(postgres)
    with writing(postgres) as connection:
        connection.exec_driver_sql("CREATE VIEW prices AS SELECT price FROM orders")
        connection.exec_driver_sql("CREATE VIEW orders_seen AS SELECT 1 AS id")
    with pytest.raises(SchemaConflictError, match=r"Column 'price' .* view prices depends on column"):
        DeclaredTables([declared(Col("price", ExactDecimal(12, 2)))], KIND).ensure(postgres)
    with pytest.raises(SettingsError, match="something else is called orders_seen"):
        DeclaredTables([declared()], KIND, view=over_orders("id")).ensure(postgres)


def test_a_key_that_stored_rows_repeat_is_refused(engine: sa.Engine) -> None:
    table = declared(Col("size", sa.BigInteger))
    DeclaredTables([table], KIND).ensure(engine)
    with writing(engine) as connection:
        connection.execute(table.insert(), [{"id": key, "origin": "here", "size": 1} for key in "12"])
    keyed = declared(Col("size", sa.BigInteger))
    sa.Index("orders_key", keyed.c.size, unique=True)
    assert "Column 'size' does not fit orders" in refusal(engine, keyed)
    assert "Correct the stored rows, or the key that is declared" in refusal(engine, keyed)


def test_a_missing_right_is_named(postgres: sa.Engine) -> None:
    DeclaredTables([declared()], KIND).ensure(postgres)
    role = f"poor_{uuid.uuid4().hex}"
    with writing(postgres) as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}; GRANT SELECT ON orders TO {role}")

    @sa.event.listens_for(postgres, "connect")
    def become_poor(connection: Any, _: object) -> None:  # noqa: ANN401 - the driver's
        connection.cursor().execute(f"SET ROLE {role}")
        connection.commit()

    postgres.dispose()
    with pytest.raises(SettingsError, match=r"must be owner of table orders\. Let the user of DATABASE_URL own them"):
        DeclaredTables([declared(Col("note", sa.Text))], KIND).ensure(postgres)
