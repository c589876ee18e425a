"""The demo's attachments: events with addresses of its own web server, one of which is mended and replayed.

Each demo sends new events with new trace ids, so that each brings attachments of its own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from examples.demo.server import FileServer
from ingest_project.attachments.commands import replay
from ingest_project.attachments.queue import RETRY_QUEUE, AttachmentRecord, FailedFilter
from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.send import deliver
from ingest_project.contracts.attachments import AttachmentEvent, attachment_key
from ingest_project.contracts.decoding import encode
from ingest_project.core.console import complain, counted
from ingest_project.core.errors import AddressRejectedError
from ingest_project.core.settings import LoadedSettings, Settings
from ingest_project.devstack.state_folder import with_addresses
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.http.host_policy import HostRules

FOLDER = "attachments"
EVENTS = {
    "claims": ("claim.documents.received", ("damage_report.pdf", "photo.png")),
    "billing": ("invoice.documents.received", ("invoice_lines.csv", "signed_contract.pdf")),
}
WITHHELD = "signed_contract.pdf"
INTERNAL_HOSTS = "downloads.allowed_internal_hosts"
POLL_SECONDS = 0.2


class DemoAttachments:
    """The events and files of one demo.

    Args:
        server: where the files are.
    """

    def __init__(self, server: FileServer) -> None:
        self._server = server
        self._events = [
            AttachmentEvent(
                trace_id=str(uuid.uuid4()),
                domain=domain,
                event_type=event_type,
                occurred_at=datetime.now(UTC),
                attachments=[server.url(name) for name in names],
            )
            for domain, (event_type, names) in EVENTS.items()
        ]

    @property
    def expected(self) -> dict[str, str]:
        """The attachments that must come: partition key to file name."""
        return {
            attachment_key(event.trace_id, self._server.url(name)): name
            for event in self._events
            for name in EVENTS[event.domain][1]
        }

    def send(self, services: SystemResources) -> None:
        """Put the events on their topic."""
        for event in self._events:
            deliver(services, services.settings.topics.events_raw, event.trace_id, encode(event), event.trace_id)
        events, files = counted(len(self._events), "event"), counted(len(self.expected), "attachment")
        complain(f"Sent {events} with {files}; the server at {self._server.host_and_port} does not have {WITHHELD}.")

    def mend_and_replay(self, services: SystemResources, deadline: float, check: Callable[[], None]) -> bool:
        """Wait until each attachment is stored, dead or waiting for another attempt; mend the server, replay the dead.

        Args:
            services: the ledger.
            deadline: when to give up, monotonic time.
            check: called again and again; what it raises ends the wait.

        Returns:
            whether something was replayed.
        """
        keys = list(self.expected)
        while sum(map(_is_settled, services.attachments.get_many(keys))) < len(keys):
            check()
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        self._server.publish(WITHHELD)
        dead = services.attachments.failed(FailedFilter(keys=tuple(keys)))
        done = replay(services, dead, datetime.now(UTC))
        if done.replayed:
            complain(f"{counted(len(done.replayed), 'attachment')} in the dead letters: mended the server, replayed.")
        return bool(done.replayed)


def _is_settled(record: AttachmentRecord) -> bool:
    return record.state.finished or (record.state is AttachmentState.PENDING and record.queue_name == RETRY_QUEUE)


@contextmanager
def serving(loaded: LoadedSettings) -> Iterator[tuple[LoadedSettings, DemoAttachments | None]]:
    """The demo's web server, and settings that allow its address to the system that is started with them.

    Its attachments are None where they cannot be shown, which is said.
    """
    settings = loaded.settings
    folder = settings.polling.dummy_root / FOLDER
    with FileServer(folder, [WITHHELD]) as server:
        allowed = [*settings.downloads.allowed_internal_hosts, server.host_and_port]
        loaded = with_addresses(loaded, {INTERNAL_HOSTS: allowed})
        if reason := why_not(loaded.settings, [server.url(name) for _, names in EVENTS.values() for name in names]):
            complain(f"Attachments are left out: {reason}")
            yield loaded, None
        else:
            yield loaded, DemoAttachments(server)


def why_not(settings: Settings, urls: Sequence[str]) -> str | None:
    """Why these settings do not let the demo show attachments; None when they do."""
    folder = settings.polling.dummy_root / FOLDER
    if not folder.is_dir():
        return f"there is no folder {folder}."
    if settings.attachments.event_source == "eventhub":
        return f"EVENT_SOURCE=eventhub is set, so that nobody reads {settings.topics.events_raw}."
    hosts = settings.downloads
    rules = HostRules(hosts.allowed_hosts, hosts.denied_hosts, hosts.allowed_internal_hosts)
    try:
        for url in urls:
            rules.check(url)
    except AddressRejectedError as error:
        return str(error)
    return None
