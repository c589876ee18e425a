"""Open the warehouse at an address: PostgreSQL or SQLite."""

from __future__ import annotations

from ingest_project.file_ingest.warehouse.protocol import Warehouse
from ingest_project.platform.database.engine import database_address


def open_warehouse(database_url: str, connect_timeout_seconds: float = 10) -> Warehouse:
    """The warehouse at a SQLAlchemy URL; nothing is connected yet.

    PostgreSQL is loaded by binary COPY; every other database by ordinary inserts.

    Raises:
        SettingsError: the URL is empty or cannot be understood.
    """
    if database_address(database_url).get_backend_name() == "postgresql":
        from ingest_project.file_ingest.warehouse.postgres import PostgresWarehouse  # noqa: PLC0415 - loads the driver

        return PostgresWarehouse(database_url, connect_timeout_seconds)
    from ingest_project.file_ingest.warehouse.sql import SqlWarehouse  # noqa: PLC0415 - one of the two is used

    return SqlWarehouse(database_url, connect_timeout_seconds)
