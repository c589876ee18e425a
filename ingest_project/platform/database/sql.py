"""Table metadata, column types and bulk statements that work the same on PostgreSQL and SQLite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col
from sqlalchemy.dialects import postgresql, sqlite

from ingest_project.core.errors import TableUnusableError
from ingest_project.core.items import as_utc, digest_of

# PostgreSQL can compare, index and cast jsonb; SQLite stores JSON as text.
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
# The reasons of a quarantined row: in Python a list of strings with either database.
Texts = sa.JSON().with_variant(postgresql.ARRAY(sa.Text()), "postgresql")
# COPY writes doubles: a less precise float column would round every reading.
Double: sa.Double[float] = sa.Double()


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A time: UTC-aware in Python, `timestamptz` on PostgreSQL, UTC text of fixed width on SQLite.

    Raises:
        ValueError: the time has no zone, and is therefore ambiguous.
    """

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert any zone to UTC; SQLite gets it without the zone, which it cannot store."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"A time without zone cannot be stored: {value!r}.")
        moment = value.astimezone(UTC)
        return moment if dialect.name == "postgresql" else moment.replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:  # noqa: ANN401 - SQLAlchemy's signature
        """Return UTC, whatever the session's time zone."""
        if value is None:
            return None
        moment: datetime = value
        return as_utc(moment)


class ExactDecimal(sa.types.TypeDecorator[Decimal]):
    """A decimal number: NUMERIC on PostgreSQL, its digits as text on SQLite, whose numbers would be rounded.

    Args:
        precision, scale: total digits, and digits of the fraction; without them any number fits.
    """

    impl = sa.Numeric
    cache_ok = True

    def __init__(self, precision: int | None = None, scale: int | None = None) -> None:
        super().__init__(precision, scale)
        self.precision, self.scale = precision, scale

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Return the column's type in a database."""
        exact = sa.Numeric(self.precision, self.scale)
        return dialect.type_descriptor(sa.Text() if dialect.name == "sqlite" else exact)

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> Any:  # noqa: ANN401 - SQLAlchemy's signature
        """Write the number without exponent."""
        if value is None:
            return None
        return format(value, "f") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:  # noqa: ANN401 - SQLAlchemy's signature
        """Return the exact number."""
        return None if value is None else Decimal(value)


metadata = sa.MetaData()

PENDING = "state = 'pending'"
# Leased by a run, or finished and not reported to Dagster yet.
LEASED = "reported_at IS NULL AND state <> 'pending'"


def kafka_columns() -> list[Col[Any]]:
    """Return the Kafka position that an entry came from."""
    return [
        Col("kafka_topic", sa.Text, nullable=False),
        Col("kafka_partition", sa.Integer, nullable=False),
        Col("kafka_offset", sa.BigInteger, nullable=False),
        Col("kafka_topic_id", sa.Text, nullable=False),
        Col("kafka_timestamp", UtcTime),
    ]


def work_columns() -> list[Col[Any]]:
    """Return the columns of a work queue's entries: state, attempts, lease, times and trace."""
    return [
        Col("state", sa.Text, nullable=False),
        Col("attempts", sa.Integer, nullable=False),
        Col("reason", sa.Text),
        Col("error_class", sa.Text),
        Col("batch_id", sa.Text),
        Col("run_id", sa.Text),
        Col("next_attempt_at", UtcTime, nullable=False),
        Col("created_at", UtcTime, nullable=False),
        Col("updated_at", UtcTime, nullable=False),
        Col("started_at", UtcTime),
        Col("finished_at", UtcTime),
        # When the result was reported to Dagster; until then a run leases the entry.
        Col("reported_at", UtcTime),
        # When the finished entry was last requested again: by an operator, a replay, a corrected version or a backfill.
        Col("reopened_at", UtcTime),
        # Context of the entry's trace, see `platform.tracing`.
        Col("traceparent", sa.Text),
    ]


def queue_indexes(
    table: str, *ids: str, names: Sequence[str] = (), queue_name: str = "kafka_topic", due_by: Sequence[str] = ()
) -> list[sa.Index]:
    """Return the indexes of a work queue's table, for its sensor, its runs, and searches.

    Args:
        table: name of the table, which has `kafka_columns()` and `work_columns()`.
        ids: see `lookup_indexes`.
        names: see `lookup_indexes`.
        queue_name: column that names the sensor responsible for an entry.
        due_by: further columns that order the claiming of due entries.
    """
    return [
        # Covers pending entries only: finished ones do not slow the sensors' frequent queries.
        partial_index(f"{table}_due", PENDING, queue_name, *due_by, "next_attempt_at"),
        # Covers entries that are leased by runs, including dead runs.
        partial_index(f"{table}_held", LEASED, queue_name, "batch_id", "run_id", "updated_at"),
        # Supports prefix searches in any collation of the database; entries without a context cost nothing.
        partial_index(
            f"{table}_by_traceparent",
            "traceparent IS NOT NULL",
            "traceparent",
            postgresql_ops={"traceparent": "text_pattern_ops"},
        ),
        *lookup_indexes(table, *ids, names=names),
        sa.Index(f"{table}_by_batch", "batch_id"),
        # Serves counts by state, and lists of one state, newest first.
        sa.Index(f"{table}_by_state", "state", "updated_at"),
    ]


def lookup_indexes(table: str, *ids: str, names: Sequence[str] = ()) -> list[sa.Index]:
    """Return the indexes for searches by Kafka offset, ids and names.

    Args:
        table: name of the entries' table.
        ids: columns that searches compare as a whole; they get hash indexes, which accept texts of any length.
        names: columns that searches match by prefix.
    """
    # PostgreSQL's names have at most 63 bytes, and users choose the names of declared tables.
    own = table if len(table) <= LONGEST_INDEXED_NAME else f"table_{digest_of(table)}"
    by_id = [sa.Index(f"{own}_by_{one}", one, postgresql_using="hash") for one in ids]
    by_name = [sa.Index(f"{own}_by_{one}", one, postgresql_ops={one: "text_pattern_ops"}) for one in names]
    return [sa.Index(f"{own}_by_offset", "kafka_offset"), *by_id, *by_name]


def partial_index(name: str, condition: str, *columns: str, **options: Any) -> sa.Index:  # noqa: ANN401 - SQLAlchemy's
    """Return an index over the rows that match a condition, written exactly as in the queries that use the index."""
    where = sa.text(condition)
    return sa.Index(name, *columns, postgresql_where=where, sqlite_where=where, **options)


LONGEST_INDEXED_NAME = 40
# SQLite accepts 32,766 values in a statement; PostgreSQL's statement grows with them.
KEYS_AT_A_TIME = 5_000
VALUES_AT_A_TIME = 30_000
Key = TypeVar("Key")


def insert_missing(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], key: sa.Column[str]
) -> set[str]:
    """Insert the rows whose primary key does not exist; return the inserted keys.

    If two processes insert the same key concurrently, one inserts it, and the other waits and skips it. NUL characters,
    which a sender may put into any text and PostgreSQL cannot store, become U+FFFD.
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
    """Update many rows, each with its own values. Every mapping has the key and the same other columns."""
    if not rows:
        return
    names = [name for name in rows[0] if name != key.name]
    if connection.dialect.name == "postgresql":
        # Use one statement: psycopg2 would send one per row.
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


def primary_key(table: sa.Table) -> sa.Column[str]:
    """Return the only column of a table's primary key."""
    (key,) = table.primary_key
    return key


def in_parts(keys: Sequence[Key], size: int = KEYS_AT_A_TIME) -> Iterator[Sequence[Key]]:
    """Yield keys in parts small enough for one statement."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def rows_in(
    connection: sa.Connection, query: sa.Select[Any], column: sa.ColumnElement[Key], keys: Sequence[Key]
) -> Iterator[sa.Row[*tuple[Any, ...]]]:
    """Yield the rows of a query whose column has one of these keys, however many keys there are."""
    for part in in_parts(keys):
        yield from connection.execute(query.where(column.in_(part)))


def contains(text: str, *columns: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Match rows in which any column contains the text, ignoring case; wildcards are escaped."""
    return sa.or_(*(column.icontains(text, autoescape=True) for column in columns))


def _storable(rows: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Return the rows without NUL characters, and the same rows as JSON, so that one parameter holds thousands."""
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


def insert_into(connection: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an insert of this database's dialect, which can resolve conflicts."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def require_all(table: str, sent: int, stored: int) -> None:
    """Require that a table has stored every row that it was sent.

    Raises:
        TableUnusableError: a trigger has dropped rows.
    """
    if stored != sent:
        raise TableUnusableError(f"a trigger of {table} let {stored} of {sent} rows through")
