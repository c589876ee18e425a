"""Settings to the things that capabilities use: each opened once a process, and only when first asked for.

Importing this module or the definitions opens nothing, so the code location loads with every service away.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ingest_project import connections
from ingest_project.backpressure import Room, commit_seconds, fullest_disk, room_beside
from ingest_project.database.engine import open_engine
from ingest_project.database.migrate import migrate
from ingest_project.errors import BrokerUnavailable, DatabaseUnavailable
from ingest_project.eventhouse.client import EventhouseClient
from ingest_project.kafka.event_hubs import EventHub, event_hub
from ingest_project.kafka.offset_ranges import RangeReader
from ingest_project.kafka.reading import TopicReader
from ingest_project.kafka.writing import TopicWriter
from ingest_project.ledger.activity_hours import ActivityHours
from ingest_project.ledger.attachment_events import EventLedger
from ingest_project.ledger.attachments import AttachmentLedger
from ingest_project.ledger.eventhouse_positions import EventhousePositions
from ingest_project.ledger.files import FileLedger
from ingest_project.ledger.outbox import MessageOutbox
from ingest_project.ledger.outcomes import OutcomeLedger
from ingest_project.ledger.polling_jobs import JobLedger
from ingest_project.ledger.skipped_offsets import SkipLedger
from ingest_project.ledger.stream_ranges import StreamRangeLedger
from ingest_project.ledger.stream_stretches import StreamStretches
from ingest_project.logs import get_logger
from ingest_project.onelake.options import options_of
from ingest_project.sources.registry import open_source
from ingest_project.stores.attachments import AttachmentStore, open_attachment_store
from ingest_project.stores.delta_tables import DeltaStore, open_delta_table
from ingest_project.stores.destinations import Destinations
from ingest_project.stores.landing import LandingStore, open_landing
from ingest_project.stores.quarantine import QuarantineStore, open_quarantine
from ingest_project.stores.warehouse import Warehouse, open_warehouse
from ingest_project.web.download import Downloader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from ingest_project.settings import Settings
    from ingest_project.sources.access import Clients
    from ingest_project.sources.protocol import Source

logger = get_logger(__name__)


class Services:
    """Everything outside this process that the capabilities talk to.

    Args:
        settings: where each of them is.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._attachment_stores: dict[str, AttachmentStore] = {}
        self._opening = threading.Lock()

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

    def room_beside(self, in_flight: int, most: int) -> Room:
        """How many more batches a sensor may ask for, see `backpressure`.

        Args:
            in_flight: its batches that are asked for or running.
            most: of them at a time.

        Raises:
            DatabaseUnavailable, TransactionConflict: the warehouse does not answer.
        """
        slow = self.settings.backpressure.slow_warehouse_seconds
        took = commit_seconds(self.engine, slow)
        if took <= slow:
            return room_beside(in_flight, most)
        room = room_beside(in_flight, most, took)
        logger.warning("intake_narrowed", reason=room.reason)
        return room

    @cached_property
    def engine(self) -> Engine:
        """The warehouse database, its tables brought up to date.

        Raises:
            DatabaseUnavailable: DATABASE_URL is not set, or nothing answers there.
        """
        engine = open_engine(self._database_url, self.settings.warehouse.connect_timeout_seconds)
        migrate(engine)
        return engine

    @cached_property
    def files(self) -> FileLedger:
        """What is known of every file."""
        return FileLedger(self.engine)

    @cached_property
    def polling_jobs(self) -> JobLedger:
        """What is known of every polling job."""
        return JobLedger(self.engine)

    @cached_property
    def skipped_offsets(self) -> SkipLedger:
        """What an operator has asked to be skipped."""
        return SkipLedger(self.engine)

    @cached_property
    def stream_ranges(self) -> StreamRangeLedger:
        """What is known of every offset range of the topics that are read in ranges."""
        return StreamRangeLedger(self.engine)

    @cached_property
    def stream_stretches(self) -> StreamStretches:
        """Offset ranges that follow one another, and what stays of those that are let go."""
        return StreamStretches(self.engine)

    @cached_property
    def activity_hours(self) -> ActivityHours:
        """Which hours of user activity changed."""
        return ActivityHours(self.engine)

    @cached_property
    def user_activity_events(self) -> DeltaStore:
        """The Delta table of user activity."""
        credentials = connections.delta_credentials(self.settings)
        return open_delta_table(self.settings.user_activity_url, credentials, partition_by=("event_day",))

    @cached_property
    def outbox(self) -> MessageOutbox:
        """What has been published, by message id."""
        return MessageOutbox(self.engine)

    @cached_property
    def attachment_events(self) -> EventLedger:
        """What is known of every attachment event."""
        return EventLedger(self.engine)

    @cached_property
    def attachments(self) -> AttachmentLedger:
        """What is known of every attachment."""
        return AttachmentLedger(self.engine)

    @cached_property
    def outcomes(self) -> OutcomeLedger:
        """How every download attempt ended."""
        return OutcomeLedger(self.engine)

    @cached_property
    def eventhouse_positions(self) -> EventhousePositions:
        """How far Eventhouse has been read."""
        return EventhousePositions(self.engine)

    @cached_property
    def warehouse(self) -> Warehouse:
        """Readings, metrics and quarantined rows, in tables that are up to date."""
        _ = self.engine
        return open_warehouse(self._database_url, self.settings.warehouse.connect_timeout_seconds)

    @cached_property
    def landing(self) -> LandingStore:
        """The bytes of every file, by content."""
        return open_landing(self.settings.landing_url, connections.s3_options(self.settings.storage))

    @cached_property
    def quarantine(self) -> QuarantineStore:
        """The bytes of refused files beside their reasons."""
        return open_quarantine(self.settings.quarantine_url, connections.s3_options(self.settings.storage))

    @cached_property
    def destinations(self) -> Destinations:
        """Where attachments go.

        Raises:
            SettingsError: the template is malformed.
        """
        attachments = self.settings.attachments
        return Destinations(attachments.destination_template, attachments.destinations)

    def attachment_store(self, domain: str) -> AttachmentStore:
        """The store that keeps a domain's attachments, opened once a process.

        Raises:
            SettingsError, ForbiddenPath: its address is none.
        """
        return self._attachment_store_at(self.destinations.store_url(domain, self.settings.attachments_url))

    def attachment_stores(self) -> list[AttachmentStore]:
        """Every store that keeps attachments, the default one first."""
        default = self.settings.attachments_url
        urls = [self.destinations.store_url(domain, default) for domain in self.settings.attachments.destinations]
        return [self._attachment_store_at(url) for url in dict.fromkeys([default, *urls])]

    @cached_property
    def attachment_results(self) -> DeltaStore:
        """The Delta table of download results."""
        credentials = connections.delta_credentials(self.settings)
        return open_delta_table(self.settings.attachment_results_url, credentials, partition_by=("domain", "day"))

    @cached_property
    def downloader(self) -> Downloader:
        """Downloads from web hosts within the rules."""
        return Downloader(connections.web_client(self.settings), connections.download_limits(self.settings.downloads))

    @cached_property
    def eventhouse(self) -> EventhouseClient:
        """Queries to Eventhouse.

        Raises:
            SettingsError: its address or credentials are missing, or it is not trusted.
        """
        return EventhouseClient(connections.cluster_access(self.settings.eventhouse))

    @cached_property
    def event_hub(self) -> EventHub:
        """The event hub that is read in place of `events.raw`.

        Raises:
            SettingsError: not enough is set to reach it.
        """
        hub = self.settings.eventhubs
        return event_hub(
            self.settings.kafka, connection_string=hub.connection_string, namespace=hub.namespace, topic=hub.topic
        )

    @cached_property
    def event_hub_reader(self) -> TopicReader:
        """Bounded reads from Event Hubs."""
        return TopicReader(self.event_hub.settings)

    @cached_property
    def reader(self) -> TopicReader:
        """Bounded reads from Kafka.

        Raises:
            BrokerUnavailable: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return TopicReader(self.settings.kafka)

    @cached_property
    def range_reader(self) -> RangeReader:
        """Exact ranges of offsets from Kafka.

        Raises:
            BrokerUnavailable: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return RangeReader(self.settings.kafka)

    @cached_property
    def writer(self) -> TopicWriter:
        """Confirmed writes to Kafka.

        Raises:
            BrokerUnavailable: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return TopicWriter(self.settings.kafka)

    @cached_property
    def source_clients(self) -> Clients:
        """What sources talk through."""
        return connections.source_clients(self.settings)

    def open_source(self, source_config: Mapping[str, Any]) -> Source:
        """The source that a job's or file event's `source_config` names. Nothing is connected to yet.

        Raises:
            PermanentError: it cannot be understood, or names what is not configured or not allowed.
        """
        return open_source(source_config, self.settings.polling, self.settings.credentials, self.source_clients)

    def _attachment_store_at(self, url: str) -> AttachmentStore:
        with self._opening:
            if url not in self._attachment_stores:
                self._attachment_stores[url] = open_attachment_store(url, options_of(self.settings.onelake))
            return self._attachment_stores[url]

    @property
    def _database_url(self) -> str:
        url = self.settings.warehouse.database_url.get_secret_value()
        if not url:
            raise DatabaseUnavailable("", "no address is set")
        return url

    def _require_broker(self) -> None:
        if not self.settings.kafka.bootstrap_servers:
            raise BrokerUnavailable("", "no address is set")
