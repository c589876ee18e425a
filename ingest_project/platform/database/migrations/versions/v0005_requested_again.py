"""Time at which an entry of a work queue was requested again."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column as Col

from ingest_project.platform.database.sql import UtcTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

QUEUES = ("polling_jobs", "files", "attachment_events", "attachments")


def upgrade() -> None:
    """Create the column."""
    for table in QUEUES:
        op.add_column(table, Col("reopened_at", UtcTime))


def downgrade() -> None:
    """Drop it."""
    for table in QUEUES:
        op.drop_column(table, "reopened_at")
