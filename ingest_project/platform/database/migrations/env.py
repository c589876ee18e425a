"""Alembic's entry point: runs the revisions on the caller's connection, inside its transaction.

It does not configure logging.
"""

from __future__ import annotations

from alembic import context

from ingest_project.platform.database.sql import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # The caller holds the transaction, and with it the lock that lets one process migrate at a time.
    transactional_ddl=False,
)
context.run_migrations()
