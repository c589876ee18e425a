"""Settings to the things that capabilities use: each opened once a process, and only when first asked for.

Importing this module or the definitions opens nothing, so the code location loads with every service away.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ingest_project.database.engine import open_engine
from ingest_project.database.migrate import migrate
from ingest_project.errors import BrokerUnavailable, DatabaseUnavailable
from ingest_project.kafka.reading import TopicReader
from ingest_project.kafka.writing import TopicWriter
from ingest_project.ledger.files import FileLedger
from ingest_project.ledger.outbox import MessageOutbox
from ingest_project.ledger.polling_jobs import JobLedger
from ingest_project.stores.landing import LandingStore, open_landing
from ingest_project.stores.places import S3Options
from ingest_project.stores.quarantine import QuarantineStore, open_quarantine
from ingest_project.stores.warehouse import Warehouse, open_warehouse

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ingest_project.settings import Settings


class Services:
    """Everything outside this process that the capabilities talk to.

    Args:
        settings: where each of them is.
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
    def outbox(self) -> MessageOutbox:
        """What has been published, by message id."""
        return MessageOutbox(self.engine)

    @cached_property
    def warehouse(self) -> Warehouse:
        """Readings, metrics and quarantined rows, in tables that are up to date."""
        _ = self.engine
        return open_warehouse(self._database_url, self.settings.warehouse.connect_timeout_seconds)

    @cached_property
    def landing(self) -> LandingStore:
        """The bytes of every file, by content."""
        return open_landing(self.settings.landing_url, self._s3_options)

    @cached_property
    def quarantine(self) -> QuarantineStore:
        """The bytes of refused files beside their reasons."""
        return open_quarantine(self.settings.quarantine_url, self._s3_options)

    @cached_property
    def reader(self) -> TopicReader:
        """Bounded reads from Kafka.

        Raises:
            BrokerUnavailable: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return TopicReader(self.settings.kafka)

    @cached_property
    def writer(self) -> TopicWriter:
        """Confirmed writes to Kafka.

        Raises:
            BrokerUnavailable: KAFKA_BOOTSTRAP_SERVERS is not set.
        """
        self._require_broker()
        return TopicWriter(self.settings.kafka)

    @property
    def _database_url(self) -> str:
        url = self.settings.warehouse.database_url.get_secret_value()
        if not url:
            raise DatabaseUnavailable("", "no address is set")
        return url

    def _require_broker(self) -> None:
        if not self.settings.kafka.bootstrap_servers:
            raise BrokerUnavailable("", "no address is set")

    @property
    def _s3_options(self) -> S3Options:
        storage = self.settings.storage
        secret = storage.s3_secret_access_key
        return S3Options(
            endpoint_url=storage.s3_endpoint_url,
            region=storage.s3_region,
            access_key_id=storage.s3_access_key_id,
            secret_access_key=secret.get_secret_value() if secret else None,
        )
