"""The demo's attachments: events with addresses of its own web server, one of which fails first, is fixed and replayed.

Each demo sends new events with new trace ids, so that each brings attachments of its own.
"""

from __future__ import annotations

import io
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from ingest_project.attachments.commands import replay
from ingest_project.attachments.queue import RETRY_QUEUE, AttachmentRecord, FailedFilter
from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.send import deliver
from ingest_project.contracts import encode
from ingest_project.contracts.attachments import AttachmentEvent, attachment_key
from ingest_project.core.console import complain, counted
from ingest_project.core.errors import AddressRejectedError
from ingest_project.core.settings import LoadedSettings, Settings
from ingest_project.devstack.state_folder import with_addresses
from ingest_project.operations import SystemResources
from ingest_project.platform.http.host_policy import HostRules

HOST = "127.0.0.1"
FOLDER = "attachments"
EVENTS = {
    "claims": ("claim.documents.received", ("damage_report.pdf", "photo.png")),
    "billing": ("invoice.documents.received", ("invoice_lines.csv", "signed_contract.pdf")),
}
WITHHELD = "signed_contract.pdf"
INTERNAL_HOSTS = "downloads.allowed_internal_hosts"
POLL_SECONDS = 0.2


class FileServer:
    """Serves the files of a folder on a free port of the loopback interface, from `with` to its end.

    Args:
        folder: its files are served, not those of folders below.
        withheld: names that are answered with 404 until they are published.
    """

    def __init__(self, folder: Path, withheld: Collection[str] = ()) -> None:
        self._withheld = set(withheld)
        self._server = ThreadingHTTPServer((HOST, 0), self._handler)
        self._server.daemon_threads = True
        self._folder = folder

    def __enter__(self) -> Self:
        """Serve in a thread of its own."""
        threading.Thread(target=self._server.serve_forever, name="demo-web-server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def host_and_port(self) -> str:
        """The address in the form of host rules."""
        return f"{HOST}:{self._server.server_port}"

    def url(self, name: str) -> str:
        """Address of one of the files."""
        return f"http://{self.host_and_port}/{quote(name)}"

    def publish(self, name: str) -> None:
        """Serve a withheld file from now on."""
        self._withheld.discard(name)

    def has(self, name: str) -> bool:
        """Return whether the server has a file of this name and does not withhold it."""
        return name not in self._withheld and os.sep not in name and (self._folder / name).is_file()

    def _handler(self, *arguments: Any) -> _Handler:  # noqa: ANN401 - as the server calls it
        return _Handler(*arguments, files=self, directory=str(self._folder))


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, files: FileServer, **options: Any) -> None:  # noqa: ANN401 - as above
        self._files = files
        super().__init__(*arguments, **options)

    def send_head(self) -> io.BytesIO | Any:  # noqa: ANN401 - as the class above has it
        """Send the file's headers, or 404."""
        if not self._files.has(Path(self.translate_path(self.path)).name):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def log_message(self, *_: object) -> None:
        """Log nothing: stdout and stderr belong to the demo."""


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
        """The expected attachments: partition key to file name."""
        return {
            attachment_key(event.trace_id, self._server.url(name)): name
            for event in self._events
            for name in EVENTS[event.domain][1]
        }

    def send(self, services: SystemResources) -> None:
        """Publish the events on their topic."""
        for event in self._events:
            deliver(services, services.settings.topics.events_raw, event.trace_id, encode(event), event.trace_id)
        events, files = counted(len(self._events), "event"), counted(len(self.expected), "attachment")
        complain(f"Sent {events} with {files}; the server at {self._server.host_and_port} does not have {WITHHELD}.")

    def fix_and_replay(self, services: SystemResources, deadline: float, check: Callable[[], None]) -> bool:
        """Wait until each attachment is stored, dead or waiting for another attempt; fix the server, replay the dead.

        Args:
            services: the work queue of attachments.
            deadline: when to give up, monotonic time.
            check: called repeatedly; an exception of it ends the wait.

        Returns:
            true if something was replayed.
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
            complain(f"{counted(len(done.replayed), 'attachment')} in the dead letters: fixed the server, replayed.")
        return bool(done.replayed)


def _is_settled(record: AttachmentRecord) -> bool:
    return record.state.finished or (record.state is AttachmentState.PENDING and record.queue_name == RETRY_QUEUE)


@contextmanager
def serving(loaded: LoadedSettings) -> Iterator[tuple[LoadedSettings, DemoAttachments | None]]:
    """Start the demo's web server; yield settings that allow its address, and the attachments.

    The attachments are None where the settings forbid them; a message gives the reason.
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
    """Return why these settings do not allow the demo's attachments; None when they do."""
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
