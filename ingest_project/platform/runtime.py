"""Settings, database and Kafka clients of this process: each opened once, and only when first used.

Importing this module or the definitions opens nothing, so the code location loads while every service is away.
"""

from __future__ import annotations

from functools import cached_property

from sqlalchemy import Engine

from ingest_project.core.errors import BrokerUnavailableError, DatabaseUnavailableError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings
from ingest_project.platform.database.engine import migrate, open_engine
from ingest_project.platform.kafka.producer import TopicWriter
from ingest_project.platform.kafka.publisher import MessageOutbox
from ingest_project.platform.kafka.reader import RangeReader, TopicReader
from ingest_project.platform.object_store import open_configured_store
from ingest_project.platform.object_store.content_store import QuarantineStore
from ingest_project.platform.work_queue.capacity import Capacity, Disk, available_slots, commit_seconds, fullest_disk
from ingest_project.platform.work_queue.skipped_offsets import SkippedOffsetStore

logger = get_logger(__name__)


class Runtime:
    """Settings, database and Kafka clients, shared by all capabilities.

    Each capability adds what only it uses in a subclass of its own.

    Args:
        settings: where each service is.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def store_urls(self) -> tuple[str, ...]:
        """Folders and addresses that are written to. Each capability adds its own to those of the class before it."""
        return ()

    def missing_services(self) -> str | None:
        """Say what must be started or set before anything can be ingested; None when all of it is."""
        missing = [
            name
            for name, value in (
                ("KAFKA_BOOTSTRAP_SERVERS", self.settings.kafka.bootstrap_servers),
                ("DATABASE_URL", self.settings.warehouse.database_url.get_secret_value()),
            )
            if not value
        ]
        return f"{' and '.join(missing)} not set. Start the services (ingest dev) or set them." if missing else None

    def fullest_disk(self) -> Disk:
        """Return the disk with the least room among those of the local stores and the state folder."""
        return fullest_disk([str(self.settings.state_dir), *self.store_urls], self.settings.backpressure)

    def blocking_reason(self) -> str | None:
        """Say why no run can be requested: a missing service or a disk that is nearly full; None when neither is."""
        if missing := self.missing_services():
            return missing
        disk = self.fullest_disk()
        return str(disk) if disk.is_nearly_full else None

    def available_slots(self, in_flight: int, limit: int) -> Capacity:
        """Return how many more batches a sensor may request, see `work_queue.capacity`.

        Args:
            in_flight: its batches that are requested or running.
            limit: of them at a time.

        Raises:
            DatabaseUnavailableError, TransactionConflictError: the warehouse does not answer.
        """
        slow = self.settings.backpressure.slow_warehouse_seconds
        took = commit_seconds(self.engine, slow)
        if took <= slow:
            return available_slots(in_flight, limit)
        slots = available_slots(in_flight, limit, took)
        logger.warning("intake_narrowed", reason=slots.reason)
        return slots

    @cached_property
    def engine(self) -> Engine:
        """The warehouse database, with its tables migrated.

        Raises:
            DatabaseUnavailableError: DATABASE_URL is not set, or nothing answers there.
        """
        engine = open_engine(self._database_url, self.settings.warehouse.connect_timeout_seconds)
        migrate(engine)
        return engine

    @cached_property
    def outbox(self) -> MessageOutbox:
        """Messages that were published, by id."""
        return MessageOutbox(self.engine)

    @cached_property
    def skipped_offsets(self) -> SkippedOffsetStore:
        """Offsets that an operator has skipped."""
        return SkippedOffsetStore(self.engine)

    @cached_property
    def quarantine(self) -> QuarantineStore:
        """The bytes of quarantined files, with their reasons."""
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
