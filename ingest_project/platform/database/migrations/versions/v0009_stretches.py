"""What stays on record of offset ranges that are let go: the stretches they were part of, and the hours they had."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ingest_project.platform.database.columns import UtcTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables, empty: the first night fills them."""
    op.create_table(
        "stream_stretches",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("generation", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first_offset", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "activity_hour_spans",
        sa.Column("hour", UtcTime, primary_key=True),
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("generation", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first_offset", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Remove both; the ranges that were let go do not come back."""
    op.drop_table("activity_hour_spans")
    op.drop_table("stream_stretches")
