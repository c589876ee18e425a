"""Events to stored files: extract addresses, download, store, and record each attempt in Delta."""

from __future__ import annotations

import threading
from functools import cached_property

from ingest_project.attachments.attempts import AttemptResults
from ingest_project.attachments.eventhouse import QueryClient
from ingest_project.attachments.eventhouse.polling import EventhousePositions
from ingest_project.attachments.queue import AttachmentQueue, EventQueue
from ingest_project.attachments.storage import Destinations
from ingest_project.core.settings import Settings
from ingest_project.platform.delta import delta_credentials
from ingest_project.platform.delta.table import DeltaStore, open_delta_table
from ingest_project.platform.http.client import web_client
from ingest_project.platform.http.download import Downloader
from ingest_project.platform.kafka import EventHub, event_hub
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project.platform.object_store import open_configured_store
from ingest_project.platform.object_store.store import ObjectStore
from ingest_project.platform.runtime import Runtime


class AttachmentResources(Runtime):
    """The queues of events and attachments, their stores, the web and Eventhouse."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._attachment_stores: dict[str, ObjectStore] = {}
        self._opening = threading.Lock()

    @property
    def store_urls(self) -> tuple[str, ...]:
        """The stores of attachments and the table of results as well."""
        settings = self.settings
        stores = (
            settings.attachments_url,
            settings.attachment_results_url,
            *settings.attachments.destinations.values(),
        )
        return (*super().store_urls, *stores)

    @cached_property
    def attachment_events(self) -> EventQueue:
        """Return the work queue of events."""
        return EventQueue(self.engine)

    @cached_property
    def attachments(self) -> AttachmentQueue:
        """Return the work queue of attachments."""
        return AttachmentQueue(self.engine)

    @cached_property
    def outcomes(self) -> AttemptResults:
        """Return the results of download attempts."""
        return AttemptResults(self.engine)

    @cached_property
    def eventhouse_positions(self) -> EventhousePositions:
        """Return the positions in Eventhouse."""
        return EventhousePositions(self.engine)

    @cached_property
    def destinations(self) -> Destinations:
        """Return the names that attachments get.

        Raises:
            SettingsError: the template is malformed.
        """
        attachments = self.settings.attachments
        return Destinations(attachments.destination_template, attachments.destinations)

    def attachment_store(self, domain: str) -> ObjectStore:
        """Return the store that keeps a domain's attachments, opened once a process.

        Raises:
            SettingsError, ForbiddenPathError: its address is invalid.
        """
        return self._attachment_store_at(self.destinations.store_url(domain, self.settings.attachments_url))

    def attachment_stores(self) -> list[ObjectStore]:
        """Return every store that keeps attachments, the default one first."""
        default = self.settings.attachments_url
        urls = [self.destinations.store_url(domain, default) for domain in self.settings.attachments.destinations]
        return [self._attachment_store_at(url) for url in dict.fromkeys([default, *urls])]

    @cached_property
    def attachment_results(self) -> DeltaStore:
        """Return the Delta table of download results."""
        credentials = delta_credentials(self.settings)
        return open_delta_table(self.settings.attachment_results_url, credentials, partition_by=("domain", "day"))

    @cached_property
    def downloader(self) -> Downloader:
        """Return the downloader, bound by the host rules and limits."""
        return Downloader(web_client(self.settings), self.settings.downloads)

    @cached_property
    def eventhouse(self) -> QueryClient:
        """Return the client of Eventhouse.

        Raises:
            SettingsError: its address or credentials are missing, or it is not trusted.
        """
        from ingest_project.attachments.eventhouse.client import EventhouseClient  # half a second

        return EventhouseClient(self.settings.eventhouse)

    @cached_property
    def event_hub(self) -> EventHub:
        """Return the event hub that is read instead of `events.raw`.

        Raises:
            SettingsError: a setting that is needed to reach it is missing.
        """
        hub = self.settings.eventhubs
        return event_hub(
            self.settings.kafka, connection_string=hub.connection_string, namespace=hub.namespace, topic=hub.topic
        )

    @cached_property
    def event_hub_reader(self) -> TopicReader:
        """Return the bounded reader of Event Hubs."""
        return TopicReader(self.event_hub.settings)

    def _attachment_store_at(self, url: str) -> ObjectStore:
        with self._opening:
            if url not in self._attachment_stores:
                self._attachment_stores[url] = open_configured_store(url, self.settings)
            return self._attachment_stores[url]
