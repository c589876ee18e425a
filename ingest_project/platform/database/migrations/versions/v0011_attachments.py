"""Who publishes a message, and what of an attempt at an attachment could not be published or committed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, empty: an intent without an owner is anybody's to take over."""
    op.add_column("outbox", sa.Column("owner", sa.Text))
    op.add_column("download_outcomes", sa.Column("publish_error", sa.Text))
    op.add_column("download_outcomes", sa.Column("commit_error", sa.Text))


def downgrade() -> None:
    """Remove them."""
    op.drop_column("download_outcomes", "commit_error")
    op.drop_column("download_outcomes", "publish_error")
    op.drop_column("outbox", "owner")
