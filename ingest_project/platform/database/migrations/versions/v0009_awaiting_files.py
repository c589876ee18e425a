"""Index of the files that wait until a person corrects a declaration, a setting or a table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

AWAITING = (
    "error_class IN ('SchemaConflictError', 'SettingsError', 'TableUnusableError')"
    " AND state IN ('pending', 'requested', 'ingesting')"
)


def upgrade() -> None:
    """Create the index."""
    condition = sa.text(AWAITING)
    op.create_index("files_awaiting_a_person", "files", ["dataset"], postgresql_where=condition, sqlite_where=condition)


def downgrade() -> None:
    """Drop it."""
    op.drop_index("files_awaiting_a_person", "files")
