"""CRM rows know their trace and the epoch of their topic."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

RECORDS = ("opportunities", "projects")


def upgrade() -> None:
    """Add the columns; rows that are there already count as of the first epoch, and have no trace."""
    for table in RECORDS:
        op.add_column(table, sa.Column("kafka_epoch", sa.Integer, nullable=False, server_default="0"))
    for table in (*RECORDS, "unidentified_messages"):
        op.add_column(table, sa.Column("trace_id", sa.Text))
        op.create_index(f"ix_{table}_trace_id", table, ["trace_id"])


def downgrade() -> None:
    """Remove them."""
    for table in (*RECORDS, "unidentified_messages"):
        op.drop_index(f"ix_{table}_trace_id", table)
        op.drop_column(table, "trace_id")
    for table in RECORDS:
        op.drop_column(table, "kafka_epoch")
