"""Migrate the database to this version's tables, automatically at every start.

Safe when several processes start at once: one upgrades, the others wait for it and find nothing to do.
"""

from __future__ import annotations

import sqlalchemy as sa

from ingest_project.core.errors import SettingsError
from ingest_project.platform.database.engine import reading, writing

# The newest revision in migrations/versions. Named here so that a database that is current costs one small query
# instead of the import of Alembic; a test compares the two.
HEAD = "0001"
# Any number that no other program locks in the same database.
ADVISORY_LOCK = 0x1263_57_01


def migrate(engine: sa.Engine) -> None:
    """Upgrade to HEAD in one transaction; the second time nothing happens.

    Raises:
        DatabaseUnavailableError: the database does not answer.
        SettingsError: its tables are not of a revision that this version knows.
    """
    version = schema_version(engine)
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        raise SettingsError(
            f"The tables in {engine.url.render_as_string(hide_password=True)} have revision {version}: not one of this"
            f" version, which knows those up to {HEAD}. Use a new database, or drop all tables:"
            ' ingest psql -c "DROP SCHEMA public CASCADE; CREATE SCHEMA public".'
        )
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            # Waits for a migration, however long it takes: lock_timeout is for ordinary writers.
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        _upgrade(connection)


def schema_version(engine: sa.Engine) -> str | None:
    """Return the database's revision; None if it was never migrated.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    with reading(engine) as connection:
        try:
            version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        except (sa.exc.ProgrammingError, sa.exc.OperationalError):
            # The table does not exist; each database reports that differently. Other errors show in the next statement.
            connection.rollback()
            connection.exec_driver_sql("SELECT 1")
            return None
    return None if version is None else str(version)


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command  # noqa: PLC0415 - only needed when there is something to upgrade
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "ingest_project.platform.database:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
