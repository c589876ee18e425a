"""The column of sensor readings for what their reader profile does not know."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column as Col

from ingest_project.platform.database.sql import Json

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; readings that are stored already have none."""
    op.add_column("raw_sensor_data", Col("rescued_data", Json))


def downgrade() -> None:
    """Drop it with what it holds."""
    op.drop_column("raw_sensor_data", "rescued_data")
