"""The metadata of all tables, column types for PostgreSQL and SQLite, and the columns that every work queue has."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column as Col
from sqlalchemy.dialects import postgresql

# PostgreSQL compares, indexes and casts jsonb; SQLite keeps JSON as text.
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
# The reasons of a quarantined row: a list of strings in Python on both.
Texts = sa.JSON().with_variant(postgresql.ARRAY(sa.Text()), "postgresql")
# COPY writes doubles: a float column of less precision would round every reading.
Double: sa.Double[float] = sa.Double()


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A moment: UTC-aware in Python, `timestamptz` on PostgreSQL, UTC text of fixed width on SQLite.

    Raises:
        ValueError: a time without zone was given; it could be any moment.
    """

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Any zone to UTC; SQLite gets it without the zone, which it could not keep."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"A time without zone cannot be stored: {value!r}.")
        moment = value.astimezone(UTC)
        return moment if dialect.name == "postgresql" else moment.replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:  # noqa: ANN401, ARG002 - SQLAlchemy's signature
        """Always UTC, whatever the session's time zone."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class ExactDecimal(sa.types.TypeDecorator[Decimal]):
    """A decimal number of any scale: NUMERIC on PostgreSQL, its digits as text on SQLite, whose numbers would round."""

    impl = sa.Numeric
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """The column's type in a database."""
        return dialect.type_descriptor(sa.Text() if dialect.name == "sqlite" else sa.Numeric())

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> Any:  # noqa: ANN401 - SQLAlchemy's signature
        """Without exponent, in either."""
        if value is None:
            return None
        return format(value, "f") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:  # noqa: ANN401, ARG002 - SQLAlchemy's signature
        """Always exact."""
        return None if value is None else Decimal(value)


metadata = sa.MetaData()

PENDING = "state = 'pending'"
# Leased by a run, or finished and not reported yet.
HELD = "reported_at IS NULL AND state <> 'pending'"


def kafka_columns() -> list[Col[Any]]:
    """Kafka position an entry came from."""
    return [
        Col("kafka_topic", sa.Text, nullable=False),
        Col("kafka_partition", sa.Integer, nullable=False),
        Col("kafka_offset", sa.BigInteger, nullable=False),
        Col("kafka_topic_id", sa.Text, nullable=False),
        Col("kafka_timestamp", UtcTime),
    ]


def work_columns() -> list[Col[Any]]:
    """State of an entry, its lease, and its result."""
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
        # When the result was reported to Dagster; until then a run holds the lease.
        Col("reported_at", UtcTime),
    ]


def pending_index(table: str, *columns: str, name: str | None = None) -> sa.Index:
    """Index for the query of every tick, over pending entries only: a million finished ones cost nothing."""
    return _partial(name or f"{table}_due", PENDING, *columns, "next_attempt_at")


def held_index(table: str, queue_name: str) -> sa.Index:
    """Index of leased entries, those of lost runs included."""
    return _partial(f"{table}_held", HELD, queue_name, "batch_id", "run_id", "updated_at")


def _partial(name: str, condition: str, *columns: str) -> sa.Index:
    return sa.Index(name, *columns, postgresql_where=sa.text(condition), sqlite_where=sa.text(condition))
