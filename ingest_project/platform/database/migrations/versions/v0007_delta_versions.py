"""The version of a dataset's Delta table that contains the recorded rows of a file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column as Col

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KEPT = sa.text("stands AND reason IS NOT NULL AND delta_version IS NOT NULL")


def upgrade() -> None:
    """Add the column; it is unknown for files that are already stored."""
    op.add_column("files", Col("delta_version", sa.BigInteger))
    op.create_index("files_kept", "files", ["dataset"], postgresql_where=KEPT, sqlite_where=KEPT)


def downgrade() -> None:
    """Drop the column."""
    op.drop_index("files_kept", "files")
    op.drop_column("files", "delta_version")
