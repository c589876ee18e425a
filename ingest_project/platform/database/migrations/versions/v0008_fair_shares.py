"""Files know whose share of a batch they take, and those that wait are found by it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INDEX = "files_due_by_origin"
PENDING = sa.text("state = 'pending'")


def upgrade() -> None:
    """Files that are there already count as of one origin."""
    op.add_column("files", sa.Column("origin", sa.Text, nullable=False, server_default=""))
    columns = ["intake_topic", "origin", "next_attempt_at"]
    op.create_index(INDEX, "files", columns, postgresql_where=PENDING, sqlite_where=PENDING)


def downgrade() -> None:
    """As it was."""
    op.drop_index(INDEX, "files")
    op.drop_column("files", "origin")
