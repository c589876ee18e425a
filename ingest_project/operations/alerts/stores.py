"""Where incidents are kept: in the warehouse, and in a file of the state folder while that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import sqlalchemy as sa

from ingest_project.core.errors import IngestError
from ingest_project.core.settings import Settings
from ingest_project.operations.alerts.incidents import TABLES, AlertState, read_alerts
from ingest_project.platform.database import database_address, follow_secret, migrate, open_engine, postgres_options
from ingest_project.platform.database.sql import metadata

# A database that has vanished silently must not hold up the message about that.
NO_ANSWER_MILLISECONDS = "10000"


class AlertStores:
    """The warehouse, and the file that stands in for it. Both have the same tables.

    Args:
        settings: of the system.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.state_dir.absolute() / "alerts.db"

    @cached_property
    def warehouse(self) -> sa.Engine | None:
        """The warehouse; None where none is set. Its connections are this module's own.

        Raises:
            DatabaseUnavailableError: it does not answer.
        """
        warehouse = self._settings.warehouse
        if not (url := warehouse.database_url.get_secret_value()):
            return None
        address = database_address(url)
        if address.get_backend_name() == "postgresql":
            address = address.update_query_dict({"tcp_user_timeout": NO_ANSWER_MILLISECONDS})
        engine = open_engine(address.render_as_string(hide_password=False), warehouse.connect_timeout_seconds)
        further = postgres_options(warehouse.connect_timeout_seconds) | {"tcp_user_timeout": NO_ANSWER_MILLISECONDS}
        follow_secret(engine, warehouse.database_url, further)
        migrate(engine)
        return engine

    @cached_property
    def local(self) -> sa.Engine:
        """The file, with its tables."""
        engine = open_engine(f"sqlite:///{self._path}")
        metadata.create_all(engine, tables=TABLES)
        return engine

    @property
    def has_local(self) -> bool:
        """Tell whether the file was ever needed."""
        return self._path.exists()

    def each(self) -> Iterator[sa.Engine]:
        """Yield those that have something and answer."""
        if self.has_local:
            yield self.local
        try:
            if (warehouse := self.warehouse) is not None:
                yield warehouse
        except IngestError:
            return

    def read(self) -> AlertState:
        """Return open incidents and failing channels of both; the warehouse's only while it answers."""
        states = []
        for engine in self.each():
            try:
                states.append(read_alerts(engine))
            except IngestError:
                continue
        return AlertState(
            tuple(incident for state in states for incident in state.incidents),
            tuple(channel for state in states for channel in state.failing_channels),
        )

    def close(self) -> None:
        """Disconnect."""
        for name in ("warehouse", "local"):
            if engine := self.__dict__.pop(name, None):
                engine.dispose()
