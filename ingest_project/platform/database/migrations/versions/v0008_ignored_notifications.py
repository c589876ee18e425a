"""Running totals of records of storage notifications that announce no file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column as Col

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "ignored_notifications",
        Col("topic", sa.Text, primary_key=True),
        Col("topic_id", sa.Text, primary_key=True),
        Col("partition", sa.Integer, primary_key=True, autoincrement=False),
        Col("reason", sa.Text, primary_key=True),
        Col("number", sa.BigInteger, nullable=False),
        Col("next_offset", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop the table with its counts."""
    op.drop_table("ignored_notifications")
