"""The column of sensor readings for fields that their reader profile does not know."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column as Col

from ingest_project.platform.database.sql import Json

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; it is null for readings that are already stored."""
    op.add_column("raw_sensor_data", Col("rescued_data", Json))


def downgrade() -> None:
    """Drop the column with its values."""
    op.drop_column("raw_sensor_data", "rescued_data")
