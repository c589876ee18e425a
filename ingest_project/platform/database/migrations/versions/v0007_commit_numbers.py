"""The highest commit number without a look at every attempt there ever was."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index; the partial one beside it knows only what is not committed yet."""
    op.create_index("download_outcomes_by_commit", "download_outcomes", ["commit_number"])


def downgrade() -> None:
    """Remove it."""
    op.drop_index("download_outcomes_by_commit", "download_outcomes")
