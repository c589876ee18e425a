"""Tables of the operations console, alerts and baselines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

QUEUES = ("polling_jobs", "files", "attachment_events", "attachments")


def _trace_contexts() -> None:
    condition = sa.text("traceparent IS NOT NULL")
    for table in QUEUES:
        op.add_column(table, sa.Column("traceparent", sa.Text))
        op.create_index(
            f"{table}_by_traceparent",
            table,
            ["traceparent"],
            postgresql_where=condition,
            sqlite_where=condition,
            postgresql_ops={"traceparent": "text_pattern_ops"},
        )


def upgrade() -> None:
    """Extend the work queues."""
    _trace_contexts()


def downgrade() -> None:
    """Drop what was added."""
    for table in QUEUES:
        op.drop_index(f"{table}_by_traceparent", table)
        op.drop_column(table, "traceparent")
