"""Everything that is looked at, put together."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from ingest_project.core.settings import Settings
from ingest_project.operations.counts import LedgerLook, LedgerSeen, TablesLook, TablesSeen
from ingest_project.operations.orchestration import DagsterLook, DagsterSeen
from ingest_project.operations.poller import Poller
from ingest_project.operations.resources import SystemResources
from ingest_project.operations.topics import BrokerLook, BrokerSeen
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.work_queue.capacity import Disk, fullest_disk

# A part that is away should be known as away soon: nobody waits for the answer but this monitor.
PATIENCE_SECONDS = 3
# Reading the log of a remote table takes seconds and costs money.
TABLES_SECONDS = 60.0
STOP_SECONDS = 3.0


class SystemSnapshot:
    """The parts of a system, and the connections that they are looked at through.

    Args:
        settings: where everything is.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.services = SystemResources(_impatient(settings))
        records = DagsterRecords(self.services.settings)
        seconds = settings.monitor.refresh_seconds
        self.started_at = datetime.now(UTC)
        self.ledger: Poller[LedgerSeen] = Poller("ledger", LedgerLook(self.services), seconds)
        self.broker: Poller[BrokerSeen] = Poller("broker", BrokerLook(self.services, records), seconds)
        self.dagster: Poller[DagsterSeen] = Poller("dagster", DagsterLook(self.services.settings), seconds)
        self.tables: Poller[TablesSeen] = Poller("tables", TablesLook(self.services), TABLES_SECONDS)
        self.disk: Poller[Disk] = Poller("disk", lambda: fullest_disk(settings), seconds)

    @property
    def parts(self) -> tuple[Poller[Any], ...]:
        """All of them."""
        return (self.ledger, self.broker, self.dagster, self.tables, self.disk)

    def start(self) -> None:
        """Begin to look."""
        for part in self.parts:
            part.start()

    def wait_for_first_look(self, seconds: float) -> None:
        """Return once every part has been looked at, or after that time."""
        give_up_at = time.monotonic() + seconds
        for part in self.parts:
            part.wait_for_first_look(max(0.0, give_up_at - time.monotonic()))

    def stop(self) -> None:
        """End all looking and disconnect; a look that hangs is left behind."""
        for part in self.parts:
            part.ask_to_stop()
        give_up_at = time.monotonic() + STOP_SECONDS
        for part in self.parts:
            part.join(max(0.0, give_up_at - time.monotonic()))
        if "reader" in self.services.__dict__:
            self.services.reader.close()
        if "engine" in self.services.__dict__:
            self.services.engine.dispose()


def _impatient(settings: Settings) -> Settings:
    kafka, warehouse = settings.kafka, settings.warehouse
    timeout = min(kafka.request_timeout_seconds, PATIENCE_SECONDS)
    connect = min(warehouse.connect_timeout_seconds, PATIENCE_SECONDS)
    return settings.model_copy(
        update={
            "kafka": kafka.model_copy(update={"request_timeout_seconds": timeout}),
            "warehouse": warehouse.model_copy(update={"connect_timeout_seconds": connect}),
        }
    )
