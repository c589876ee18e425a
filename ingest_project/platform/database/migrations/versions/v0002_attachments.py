"""The ledger of attachments: events, attachments, how each attempt ended, replays, positions in Eventhouse."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ingest_project.platform.database.columns import Json, UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PENDING = "state = 'pending'"
HELD = "reported_at IS NULL AND state <> 'pending'"
UNCOMMITTED = "committed_at IS NULL"

TABLES = ("eventhouse_positions", "attachment_replays", "download_outcomes", "attachments", "attachment_events")


def upgrade() -> None:
    """Create everything."""
    _create_events()
    _create_attachments()
    _create_outcomes()
    _create_replays()
    _create_positions()


def downgrade() -> None:
    """Remove everything."""
    for table in TABLES:
        op.drop_table(table)


def _create_events() -> None:
    op.create_table(
        "attachment_events",
        sa.Column("event_key", sa.Text, primary_key=True),
        sa.Column("hour", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        *_intake_columns(),
        *_work_columns(),
        sa.Column("addresses", sa.Integer),
        sa.Column("duplicates", sa.Integer),
    )
    _work_indexes("attachment_events", "intake_topic")
    op.create_index("attachment_events_by_hour", "attachment_events", ["hour"])
    op.create_index("attachment_events_by_trace", "attachment_events", ["trace_id"])


def _create_attachments() -> None:
    op.create_table(
        "attachments",
        sa.Column("attachment_key", sa.Text, primary_key=True),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("attachment_url", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("destination_path", sa.Text, nullable=False),
        sa.Column("event_key", sa.Text),
        *_intake_columns(),
        sa.Column("lane", sa.Text, nullable=False),
        *_work_columns(),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("replays", sa.Integer, nullable=False),
        sa.Column("first_failed_at", UtcTime),
        sa.Column("http_status", sa.Integer),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("sha256", sa.Text),
        sa.Column("content_type", sa.Text),
        sa.Column("stored_path", sa.Text),
    )
    _work_indexes("attachments", "lane")
    op.create_index("attachments_by_trace", "attachments", ["trace_id"])
    op.create_index("attachments_by_event", "attachments", ["event_key"])


def _create_outcomes() -> None:
    op.create_table(
        "download_outcomes",
        sa.Column("attachment_key", sa.Text, primary_key=True),
        sa.Column("replays", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("result", Json, nullable=False),
        sa.Column("completed_at", UtcTime, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("told_at", UtcTime),
        sa.Column("commit_number", sa.BigInteger),
        sa.Column("committed_at", UtcTime),
    )
    _partial_index("download_outcomes_uncommitted", "download_outcomes", ["commit_number"], UNCOMMITTED)
    op.create_index("download_outcomes_by_time", "download_outcomes", ["completed_at"])


def _create_replays() -> None:
    op.create_table(
        "attachment_replays",
        sa.Column("attachment_key", sa.Text, primary_key=True),
        sa.Column("replays", sa.Integer, primary_key=True),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("asked_at", UtcTime, nullable=False),
        sa.Column("earlier_error_class", sa.Text),
        sa.Column("earlier_reason", sa.Text),
    )
    op.create_index("attachment_replays_by_time", "attachment_replays", ["asked_at"])


def _create_positions() -> None:
    op.create_table(
        "eventhouse_positions",
        sa.Column("domain", sa.Text, primary_key=True),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("refused", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("updated_at", UtcTime, nullable=False),
    )


def _intake_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("intake_topic", sa.Text, nullable=False),
        sa.Column("intake_partition", sa.Integer, nullable=False),
        sa.Column("intake_offset", sa.BigInteger, nullable=False),
        sa.Column("intake_generation", sa.Text, nullable=False),
        sa.Column("intake_at", UtcTime),
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


def _work_indexes(table: str, lane: str) -> None:
    _partial_index(f"{table}_due", table, [lane, "next_attempt_at"], PENDING)
    _partial_index(f"{table}_held", table, [lane, "batch_id", "run_id", "updated_at"], HELD)
    op.create_index(f"{table}_by_batch", table, ["batch_id"])
    op.create_index(f"{table}_by_state", table, ["state", "updated_at"])


def _partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    op.create_index(name, table, columns, postgresql_where=sa.text(condition), sqlite_where=sa.text(condition))
