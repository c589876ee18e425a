"""Tables of the operations console, alerts and baselines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ingest_project.platform.database.sql import Double, Json, UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _stream_histograms() -> None:
    op.add_column("sink_positions", sa.Column("seconds", Json, nullable=False, server_default="{}"))


def _file_statistics() -> None:
    op.create_table(
        "file_statistics",
        sa.Column("file_key", sa.Text, primary_key=True),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("sample_order", sa.Integer, nullable=False),
        sa.Column("arrived_at", UtcTime, nullable=False),
        sa.Column("rows_read", sa.BigInteger, nullable=False),
        sa.Column("rows_quarantined", sa.BigInteger, nullable=False),
        sa.Column("null_counts", Json, nullable=False),
        sa.Column("lateness_seconds", Double),
        sa.Index("file_statistics_sample", "dataset", "source", "sample_order"),
        sa.Index("file_statistics_newest", "dataset", "source", "arrived_at"),
    )


def upgrade() -> None:
    """Create the tables, and extend those of streams."""
    _stream_histograms()
    _file_statistics()


def downgrade() -> None:
    """Drop what was added."""
    op.drop_table("file_statistics")
    op.drop_column("sink_positions", "seconds")
