"""What tables have in common: the metadata they are registered in, and the columns and indexes of every ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.database.column_types import UtcTime

if TYPE_CHECKING:
    from typing import Any

metadata = sa.MetaData()

PENDING = "state = 'pending'"
# What a run holds, or has finished without telling Dagster yet.
HELD = "reported_at IS NULL AND state <> 'pending'"


def intake_columns() -> list[Col[Any]]:
    """The Kafka position an entry came from."""
    return [
        Col("intake_topic", sa.Text, nullable=False),
        Col("intake_partition", sa.Integer, nullable=False),
        Col("intake_offset", sa.BigInteger, nullable=False),
        Col("intake_generation", sa.Text, nullable=False),
        Col("intake_at", UtcTime),
    ]


def work_columns() -> list[Col[Any]]:
    """Who is asked to work on an entry, until when, and what came of it."""
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
        # When Dagster was told what became of it; until then a run holds it.
        Col("reported_at", UtcTime),
    ]


def pending_index(table: str, *columns: str, name: str | None = None) -> sa.Index:
    """What the sensors ask every few seconds, over unfinished entries only: a million finished cost nothing."""
    return _partial(name or f"{table}_due", PENDING, *columns, "next_attempt_at")


def held_index(table: str, lane: str) -> sa.Index:
    """What is in the hands of runs, or was left there by one that died."""
    return _partial(f"{table}_held", HELD, lane, "batch_id", "run_id", "updated_at")


def _partial(name: str, condition: str, *columns: str) -> sa.Index:
    return sa.Index(name, *columns, postgresql_where=sa.text(condition), sqlite_where=sa.text(condition))
