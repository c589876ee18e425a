"""Running totals of what the ledger has seen, for metrics that outlive its rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ingest_project.platform.database.columns import Double, UtcTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "metric_totals",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("labels", sa.Text, primary_key=True),
        sa.Column("value", Double, nullable=False),
    )
    op.create_table(
        "metric_minutes",
        sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("labels", sa.Text, primary_key=True),
        sa.Column("value", Double, nullable=False),
    )
    op.create_table(
        "metric_progress",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("counted_until", UtcTime, nullable=False),
    )


def downgrade() -> None:
    """Remove everything."""
    for table in ("metric_progress", "metric_minutes", "metric_totals"):
        op.drop_table(table)
