"""Resources of file ingest: its queue, warehouse and stores."""

from __future__ import annotations

from functools import cached_property

from pydantic import SecretStr

from ingest_project.core.secrets import text_of
from ingest_project.file_ingest.file_queue import FileQueue
from ingest_project.file_ingest.warehouse.sql import SqlWarehouse
from ingest_project.platform.database import database_address
from ingest_project.platform.object_store import open_configured_store
from ingest_project.platform.object_store.content_store import LandingStore
from ingest_project.sources.resources import SourceResources


def open_warehouse(database_url: str | SecretStr, connect_timeout_seconds: float = 10) -> SqlWarehouse:
    """Return the warehouse at a SQLAlchemy URL; nothing is connected yet.

    PostgreSQL is loaded by binary COPY, SQLite by ordinary inserts.

    Raises:
        SettingsError: the URL is empty or cannot be understood.
    """
    if database_address(text_of(database_url)).get_backend_name() == "postgresql":
        from ingest_project.file_ingest.warehouse.postgres import PostgresWarehouse  # loads the driver

        return PostgresWarehouse(database_url, connect_timeout_seconds)
    return SqlWarehouse(database_url, connect_timeout_seconds)


class FileIngestResources(SourceResources):
    """The file queue, the warehouse and the stores of file contents."""

    @property
    def store_urls(self) -> tuple[str, ...]:
        """The landing store, the quarantine and the Delta tables of declared datasets as well."""
        in_delta = [one for one in self.datasets.declared if one.target.delta]
        if in_delta:
            from ingest_project.file_ingest.warehouse.delta_rows import delta_url  # loads Delta

        tables = [delta_url(one, self.settings) for one in in_delta]
        return (*super().store_urls, self.settings.landing_url, self.settings.quarantine_url, *tables)

    @cached_property
    def files(self) -> FileQueue:
        """The work queue of files."""
        return FileQueue(self.engine)

    @cached_property
    def warehouse(self) -> SqlWarehouse:
        """Sensor readings, metrics and quarantined rows, in tables that are up to date; `of` has other datasets."""
        _ = self.engine
        return open_warehouse(self.database_url, self.settings.warehouse.connect_timeout_seconds)

    @cached_property
    def landing(self) -> LandingStore:
        """The bytes of every file, by content."""
        return LandingStore(open_configured_store(self.settings.landing_url, self.settings))
