"""User activity: the hours of each offset range, how fresh an hour's statistics are, and the statistics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ingest_project.platform.database.columns import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STALE = "changes > computed_changes"


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "activity_range_hours",
        sa.Column("range_key", sa.Text, primary_key=True),
        sa.Column("hour", UtcTime, primary_key=True),
        sa.Column("events", sa.BigInteger, nullable=False),
    )
    op.create_index("activity_range_hours_by_hour", "activity_range_hours", ["hour"])
    op.create_table(
        "activity_hours",
        sa.Column("hour", UtcTime, primary_key=True),
        sa.Column("changes", sa.BigInteger, nullable=False),
        sa.Column("changed_at", UtcTime, nullable=False),
        sa.Column("computed_changes", sa.BigInteger, nullable=False),
        sa.Column("computed_at", UtcTime),
    )
    op.create_index(
        "activity_hours_stale",
        "activity_hours",
        ["hour"],
        postgresql_where=sa.text(STALE),
        sqlite_where=sa.text(STALE),
    )
    _create_statistics()


def downgrade() -> None:
    """Remove everything."""
    for table in ("user_activity_hourly", "activity_hours", "activity_range_hours"):
        op.drop_table(table)


def _create_statistics() -> None:
    op.create_table(
        "user_activity_hourly",
        sa.Column("hour", UtcTime, primary_key=True),
        sa.Column("event_type", sa.Text, primary_key=True),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("users", sa.BigInteger, nullable=False),
        sa.Column("sessions", sa.BigInteger, nullable=False),
        sa.Column("processing_ms_p50", sa.Double),
        sa.Column("processing_ms_p95", sa.Double),
        sa.Column("deliveries", sa.BigInteger, nullable=False),
        sa.Column("computed_at", UtcTime, nullable=False),
    )
