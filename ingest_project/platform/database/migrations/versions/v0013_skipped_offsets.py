"""What an operator has asked to be skipped."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ingest_project.platform.database.columns import UtcTime

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, empty."""
    op.create_table(
        "skipped_offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("generation", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first_offset", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("asked_at", UtcTime, nullable=False),
    )


def downgrade() -> None:
    """Remove it: what was not reached yet is not skipped any more."""
    op.drop_table("skipped_offsets")
