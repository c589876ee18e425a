"""Upserts are stored whole or refused."""

from __future__ import annotations

import polars as pl
import pytest
import sqlalchemy as sa

from ingest_project.core.errors import TableUnusableError
from ingest_project.platform.database import open_engine, reading, writing
from ingest_project.streams.sql.upsert import COPIED_ROWS, upsert_rows

STOCK = sa.Table(
    "stock",
    sa.MetaData(),
    sa.Column("item", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("number", sa.Integer),
)
DROPS_ROWS = {
    "postgresql": """
        CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF NEW.number > 3 THEN RETURN NULL; END IF; RETURN NEW; END $$;
        CREATE TRIGGER forgetting BEFORE {} ON stock FOR EACH ROW EXECUTE FUNCTION forget()""",
    "sqlite": "CREATE TRIGGER forgetting BEFORE {} ON stock WHEN NEW.number > 3 BEGIN SELECT RAISE(IGNORE); END",
}


def stock(version: str, *numbers: int, rows: int = 5) -> pl.DataFrame:
    filled = (numbers + (1,) * rows)[:rows]
    return pl.DataFrame({"item": [f"i{one}" for one in range(rows)], "version": [version] * rows, "number": filled})


@pytest.mark.parametrize("operation", ["INSERT", "UPDATE"])
@pytest.mark.parametrize("rows", [5, COPIED_ROWS])
def test_rows_that_a_trigger_drops_are_missed_and_older_versions_are_not(
    database_url: str, operation: str, rows: int
) -> None:
    engine = open_engine(database_url)
    with writing(engine) as connection:
        STOCK.create(connection)
        connection.exec_driver_sql(DROPS_ROWS[engine.dialect.name].format(operation))
    if operation == "UPDATE":
        with writing(engine) as connection:
            assert upsert_rows(connection, STOCK, ["version"], stock("1", 9, rows=rows)) == rows
    dropped = f"a trigger of stock let {rows - 2} of {rows} rows through"
    with pytest.raises(TableUnusableError, match=dropped), writing(engine) as connection:
        upsert_rows(connection, STOCK, ["version"], stock("2", 4, 5, rows=rows))
    for version, changed in [("2", rows), ("1", 0), ("2", 0)]:
        with writing(engine) as connection:
            assert upsert_rows(connection, STOCK, ["version"], stock(version, rows=rows)) == changed
    with reading(engine) as connection:
        assert set(connection.execute(sa.select(STOCK.c.version, STOCK.c.number))) == {("2", 1)}
    engine.dispose()
