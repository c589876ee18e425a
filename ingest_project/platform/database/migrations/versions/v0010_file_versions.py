"""Files know their location, their place among its versions and which of them counts; contents know what they mean."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ingest_project.core.keys import digest_of
from ingest_project.platform.database.columns import UtcTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INDEX = "files_by_location"
NOT_REPLACED = sa.text("state <> 'replaced'")
ROWS_AT_A_TIME = 5_000
NEW_COLUMNS = ("location_key", "version_at", "announced_at", "pinned", "stands", "replaced_by", "retry_group")


def upgrade() -> None:
    """What is stored counts as it did; the next version of each location replaces it."""
    op.add_column("files", sa.Column("location_key", sa.Text, nullable=False, server_default=""))
    op.add_column("files", sa.Column("version_at", UtcTime))
    op.add_column("files", sa.Column("announced_at", UtcTime))
    op.add_column("files", sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.true()))
    op.add_column("files", sa.Column("stands", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("files", sa.Column("replaced_by", sa.Text))
    op.add_column("files", sa.Column("retry_group", sa.Text))
    op.execute("UPDATE files SET announced_at = COALESCE(discovered_at, intake_at, created_at)")
    op.execute(
        "UPDATE files SET version_at = COALESCE(modified_at, announced_at), stands = state IN ('ingested', 'duplicate')"
    )
    _hash_locations(op.get_bind())
    op.create_index(INDEX, "files", ["location_key"], postgresql_where=NOT_REPLACED, sqlite_where=NOT_REPLACED)
    op.execute("ALTER TABLE contents RENAME COLUMN profile TO meaning")


def downgrade() -> None:
    """As it was; what was replaced or superseded becomes a failure, which older versions of the code know."""
    op.execute("UPDATE files SET state = 'failed' WHERE state IN ('replaced', 'superseded')")
    op.execute("ALTER TABLE contents RENAME COLUMN meaning TO profile")
    op.drop_index(INDEX, "files")
    for name in NEW_COLUMNS:
        op.drop_column("files", name)


def _hash_locations(connection: sa.Connection) -> None:
    files = sa.table("files", sa.column("file_key", sa.Text), sa.column("location", sa.Text), sa.column("location_key"))
    query = sa.select(files.c.file_key, files.c.location).where(files.c.location_key == "").limit(ROWS_AT_A_TIME)
    update = sa.update(files).where(files.c.file_key == sa.bindparam("key")).values(location_key=sa.bindparam("digest"))
    while rows := connection.execute(query).all():
        connection.execute(update, [{"key": key, "digest": digest_of(location)} for key, location in rows])
