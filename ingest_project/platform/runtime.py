"""Settings, database and Kafka clients of this process: each opened once, and only when first used.

Importing this module or the definitions opens nothing, so the code location loads while every service is away.
"""

from __future__ import annotations

from functools import cached_property

from sqlalchemy import Engine

from ingest_project.core.errors import BrokerUnavailableError, DatabaseUnavailableError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings
from ingest_project.platform.database.engine import open_engine
from ingest_project.platform.database.migrate import migrate
from ingest_project.platform.kafka.consumer import TopicReader
from ingest_project.platform.kafka.offset_ranges import RangeReader
from ingest_project.platform.kafka.outbox import MessageOutbox
from ingest_project.platform.kafka.producer import TopicWriter
from ingest_project.platform.object_store.content_store import QuarantineStore
from ingest_project.platform.object_store.opening import open_configured_store
from ingest_project.platform.work_queue.capacity import Capacity, available_slots, commit_seconds, fullest_disk
from ingest_project.platform.work_queue.skipped_offsets import SkipLedger

logger = get_logger(__name__)


class Runtime:
    """Settings, database and Kafka clients, shared by all capabilities.

    Each capability adds what only it uses in a subclass of its own.

    Args:
        settings: where each service is.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def what_is_missing(self) -> str | None:
        """One line on what must be started or set before anything can be ingested; None when all of it is."""
        missing = [
            name
            for name, value in (
                ("KAFKA_BOOTSTRAP_SERVERS", self.settings.kafka.bootstrap_servers),
                ("DATABASE_URL", self.settings.warehouse.database_url.get_secret_value()),
            )
            if not value
        ]
        return f"{' and '.join(missing)} not set. Start the services (ingest dev) or set them." if missing else None

    def what_hinders(self) -> str | None:
        """One line on why no run is to be asked for at all: what is missing, or a disk that is nearly full."""
        if missing := self.what_is_missing():
            return missing
        disk = fullest_disk(self.settings)
        return str(disk) if disk.is_nearly_full else None

    def available_slots(self, in_flight: int, most: int) -> Capacity:
        """How many more batches a sensor may ask for, see `backpressure`.

        Args:
            in_flight: its batches that are asked for or running.
            most: of them at a time.

        Raises:
            DatabaseUnavailableError, TransactionConflictError: the warehouse does not answer.
        """
        slow = self.settings.backpressure.slow_warehouse_seconds
        took = commit_seconds(self.engine, slow)
        if took <= slow:
            return available_slots(in_flight, most)
        room = available_slots(in_flight, most, took)
        logger.warning("intake_narrowed", reason=room.reason)
        return room

    @cached_property
    def engine(self) -> Engine:
        """The warehouse database, its tables brought up to date.

        Raises:
            DatabaseUnavailableError: DATABASE_URL is not set, or nothing answers there.
        """
        engine = open_engine(self._database_url, self.settings.warehouse.connect_timeout_seconds)
        migrate(engine)
        return engine

    @cached_property
    def outbox(self) -> MessageOutbox:
        """What has been published, by message id."""
        return MessageOutbox(self.engine)

    @cached_property
    def skipped_offsets(self) -> SkipLedger:
        """What an operator has asked to be skipped."""
        return SkipLedger(self.engine)

    @cached_property
    def quarantine(self) -> QuarantineStore:
        """The bytes of rejected files next to their reasons."""
        return QuarantineStore(open_configured_store(self.settings.quarantine_url, self.settings))

    @cached_property
    def reader(self) -> TopicReader:
        """Bounded reads from Kafka.

        Raises:
            BrokerUnavailableError: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return TopicReader(self.settings.kafka)

    @cached_property
    def range_reader(self) -> RangeReader:
        """Exact ranges of offsets from Kafka.

        Raises:
            BrokerUnavailableError: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return RangeReader(self.settings.kafka)

    @cached_property
    def writer(self) -> TopicWriter:
        """Confirmed writes to Kafka.

        Raises:
            BrokerUnavailableError: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return TopicWriter(self.settings.kafka)

    @property
    def _database_url(self) -> str:
        url = self.settings.warehouse.database_url.get_secret_value()
        if not url:
            raise DatabaseUnavailableError("", "no address is set")
        return url

    def _require_broker(self) -> None:
        if not self.settings.kafka.bootstrap_servers:
            raise BrokerUnavailableError("", "no address is set")
