"""What attachments use."""

from __future__ import annotations

import threading
from functools import cached_property

from ingest_project.attachments.eventhouse.client import EventhouseClient
from ingest_project.attachments.eventhouse.clusters import cluster_access
from ingest_project.attachments.eventhouse.polling import EventhousePositions
from ingest_project.attachments.queue.attachments import AttachmentLedger
from ingest_project.attachments.queue.events import EventLedger
from ingest_project.attachments.queue.outcomes import OutcomeLedger
from ingest_project.attachments.storage.destinations import Destinations
from ingest_project.attachments.storage.store import AttachmentStore
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings
from ingest_project.platform.azure.address import is_address, parse_address
from ingest_project.platform.azure.identity import OneLakeOptions, options_of
from ingest_project.platform.delta.location import delta_credentials
from ingest_project.platform.delta.table import DeltaStore, open_delta_table
from ingest_project.platform.http.client import web_client
from ingest_project.platform.http.download import Downloader, download_limits
from ingest_project.platform.kafka.consumer import TopicReader
from ingest_project.platform.kafka.event_hubs import EventHub, event_hub
from ingest_project.platform.object_store.locations import Bucket, location_of
from ingest_project.platform.runtime import Runtime


def open_attachment_store(url: str, options: OneLakeOptions | None = None, *, sync: bool = False) -> AttachmentStore:
    """The attachment store at a folder or an address in OneLake; nothing is connected to yet.

    Args:
        url: a folder, `file:///folder`, or any form of `onelake.address.parse_address`.
        options: how to reach OneLake.
        sync: wait until each local file is on the disk itself, see `attachment_folder`.

    Raises:
        SettingsError: none of these.
        ForbiddenPathError: a host or level of OneLake that cannot be written.
    """
    if is_address(url):
        from ingest_project.attachments.storage.onelake import OneLakeAttachments  # noqa: PLC0415 - one of the two is used

        options = options or OneLakeOptions()
        return OneLakeAttachments(parse_address(url, options.endpoint), options)
    from ingest_project.attachments.storage.folder import FolderAttachments  # noqa: PLC0415

    place = location_of(url)
    if isinstance(place, Bucket):
        raise SettingsError(f"{url}: attachments are kept in a folder or in OneLake.")
    return FolderAttachments(place, sync=sync)


class AttachmentResources(Runtime):
    """The queues of events and attachments, their stores, the web and Eventhouse."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._attachment_stores: dict[str, AttachmentStore] = {}
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
            SettingsError, ForbiddenPathError: its address is none.
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
        credentials = delta_credentials(self.settings)
        return open_delta_table(self.settings.attachment_results_url, credentials, partition_by=("domain", "day"))

    @cached_property
    def downloader(self) -> Downloader:
        """Downloads from web hosts within the rules."""
        return Downloader(web_client(self.settings), download_limits(self.settings.downloads))

    @cached_property
    def eventhouse(self) -> EventhouseClient:
        """Queries to Eventhouse.

        Raises:
            SettingsError: its address or credentials are missing, or it is not trusted.
        """
        return EventhouseClient(cluster_access(self.settings.eventhouse))

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

    def _attachment_store_at(self, url: str) -> AttachmentStore:
        with self._opening:
            if url not in self._attachment_stores:
                self._attachment_stores[url] = open_attachment_store(url, options_of(self.settings.onelake))
            return self._attachment_stores[url]
