"""Opportunities, projects, unidentified messages, and the offset ranges of topics that are read in ranges."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from ingest_project.platform.database.columns import Json, UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

PENDING = "state = 'pending'"
HELD = "reported_at IS NULL AND state <> 'pending'"
OPEN = "identified_at IS NULL"

TABLES = ("unidentified_messages", "projects", "opportunities", "stream_ranges")


def upgrade() -> None:
    """Create everything."""
    _create_ranges()
    _create_opportunities()
    _create_projects()
    _create_unidentified()


def downgrade() -> None:
    """Remove everything."""
    for table in TABLES:
        op.drop_table(table)


def _create_ranges() -> None:
    op.create_table(
        "stream_ranges",
        sa.Column("range_key", sa.Text, primary_key=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("generation", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("first_offset", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        *_work_columns(),
        sa.Column("messages", sa.BigInteger),
        sa.Column("outcome", Json),
    )
    _partial_index("stream_ranges_due", "stream_ranges", ["topic", "next_attempt_at"], PENDING)
    _partial_index("stream_ranges_held", "stream_ranges", ["topic", "batch_id", "run_id", "updated_at"], HELD)
    op.create_index("stream_ranges_by_batch", "stream_ranges", ["batch_id"])
    op.create_index("stream_ranges_by_state", "stream_ranges", ["state", "updated_at"])
    op.create_index("stream_ranges_by_end", "stream_ranges", ["topic", "generation", "partition", "end_offset"])


def _create_opportunities() -> None:
    op.create_table(
        "opportunities",
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("amount", _exact()),
        sa.Column("probability", _exact()),
        sa.Column("expected_close_date", sa.Date),
        *_described(),
        *_origin(),
    )


def _create_projects() -> None:
    op.create_table(
        "projects",
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("start_date", sa.Date),
        sa.Column("end_date", sa.Date),
        sa.Column("budget", _exact()),
        *_described(),
        *_origin(),
    )


def _create_unidentified() -> None:
    op.create_table(
        "unidentified_messages",
        sa.Column("message_id", sa.Text, primary_key=True),
        sa.Column("kafka_topic", sa.Text, nullable=False),
        sa.Column("kafka_generation", sa.Text, nullable=False),
        sa.Column("kafka_partition", sa.Integer, nullable=False),
        sa.Column("kafka_offset", sa.BigInteger, nullable=False),
        sa.Column("kafka_timestamp", UtcTime),
        sa.Column("message_key", sa.LargeBinary),
        sa.Column("headers", Json),
        sa.Column("payload", sa.LargeBinary),
        sa.Column("payload_text", sa.Text),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("received_at", UtcTime, nullable=False),
        sa.Column("retries", sa.Integer, nullable=False),
        sa.Column("retried_at", UtcTime),
        sa.Column("identified_at", UtcTime),
        sa.Column("identified_as", sa.Text),
        sa.Column("event_id", sa.Text),
    )
    _partial_index("unidentified_messages_open", "unidentified_messages", ["received_at", "message_id"], OPEN)


def _exact() -> sa.types.TypeEngine[Any]:
    # SQLite's own numbers would round.
    return sa.Numeric().with_variant(sa.Text(), "sqlite")


def _described() -> list[sa.Column[object]]:
    return [
        sa.Column("account_id", sa.Text),
        sa.Column("owner_id", sa.Text),
        sa.Column("source", sa.Text),
        sa.Column("tags", Json),
        sa.Column("notes", sa.Text),
        sa.Column("meta_data", Json, nullable=False),
        sa.Column("other_fields", Json),
    ]


def _origin() -> list[sa.Column[object]]:
    return [
        sa.Column("last_modified", UtcTime, nullable=False),
        sa.Column("content_sha256", sa.Text, nullable=False),
        sa.Column("kafka_topic", sa.Text, nullable=False),
        sa.Column("kafka_generation", sa.Text, nullable=False),
        sa.Column("kafka_partition", sa.Integer, nullable=False),
        sa.Column("kafka_offset", sa.BigInteger, nullable=False),
        sa.Column("stored_at", UtcTime, nullable=False),
    ]


def _work_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("error_class", sa.Text),
        sa.Column("batch_id", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("next_attempt_at", UtcTime, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("updated_at", UtcTime, nullable=False),
        sa.Column("started_at", UtcTime),
        sa.Column("finished_at", UtcTime),
        sa.Column("reported_at", UtcTime),
    ]


def _partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    op.create_index(name, table, columns, postgresql_where=sa.text(condition), sqlite_where=sa.text(condition))
