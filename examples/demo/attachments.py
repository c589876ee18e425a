"""The demo's attachments: events with addresses of its own web server, one of which fails first, is fixed and replayed.

Each demo sends new events with new trace ids, so that each brings attachments of its own.
"""

from __future__ import annotations

import io
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from examples.demo.commands import ingest
from examples.demo.printing import note

HOST = "127.0.0.1"
FOLDER = "attachments"
EVENTS = {
    "claims": ("claim.documents.received", ("damage_report.pdf", "photo.png")),
    "billing": ("invoice.documents.received", ("invoice_lines.csv", "signed_contract.pdf")),
}
WITHHELD = "signed_contract.pdf"
INTERNAL_HOSTS = "INGEST_ALLOWED_INTERNAL_HOSTS"
POLL_SECONDS = 0.5


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
        """Serve in its own thread."""
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
        self._traces = {domain: str(uuid.uuid4()) for domain in EVENTS}

    def send(self) -> None:
        """Send the events."""
        for domain, (event_type, names) in EVENTS.items():
            options = ["--domain", domain, "--event-type", event_type, "--trace-id", self._traces[domain]]
            ingest("send", "attachment-event", *map(self._server.url, names), *options)
        files = sum(len(names) for _, names in EVENTS.values())
        note(
            f"Sent {len(EVENTS)} events with {files} attachments; the server at {self._server.host_and_port} does not "
            f"have {WITHHELD}."
        )

    def fix_and_replay(self, deadline: float, check: Callable[[], None]) -> None:
        """Wait until each attachment is stored, dead or waiting for another attempt; fix the server, replay the dead.

        Args:
            deadline: when to give up, monotonic time.
            check: called repeatedly; an exception of it ends the wait.
        """
        expected = sum(len(names) for _, names in EVENTS.values())
        while sum(map(_is_settled, found := list(self.found().values()))) < expected:
            check()
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)
        self._server.publish(WITHHELD)
        if dead := [one["attachment_key"] for one in found if one["state"] == "failed"]:
            left = set(dead)
            # The run that has found it dead still reports it for a moment.
            while left := left - set(ingest("dlq", "replay", *sorted(left), accepted=(0, 1))["done"]):
                check()
                if time.monotonic() > deadline:
                    return
                time.sleep(POLL_SECONDS)
            note(f"{len(dead)} in the dead letters: fixed the server, replayed.")

    def found(self) -> dict[str, dict[str, Any]]:
        """Return what the system knows of each attachment, by file name."""
        records = [one for trace in self._traces.values() for one in _attachments_of(trace)]
        return {unquote(urlsplit(one["attachment_url"]).path.rpartition("/")[2]): one for one in records}


def _attachments_of(trace_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ingest("attachments", "list", "--search", trace_id)["attachments"]
    return found


def _is_settled(record: Mapping[str, Any]) -> bool:
    waits = record["state"] == "pending" and record["queue_name"] == "retry"
    return waits or record["state"] in ("stored", "failed")


@contextmanager
def serving(settings: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], DemoAttachments | None]]:
    """Start the demo's web server; yield variables that allow its address, and the attachments.

    The attachments are None where the settings may forbid them; a message gives the reason.
    """
    folder = Path(settings["polling.dummy_root"]) / FOLDER
    if reason := why_not(settings, folder):
        note(f"Attachments are left out: {reason}")
        yield {}, None
        return
    with FileServer(folder, [WITHHELD]) as server:
        allowed = filter(None, [settings["downloads.allowed_internal_hosts"].replace(", ", ","), server.host_and_port])
        yield {INTERNAL_HOSTS: ",".join(allowed)}, DemoAttachments(server)


def why_not(settings: Mapping[str, Any], folder: Path) -> str | None:
    """Return why these settings do not allow the demo's attachments; None when they do."""
    if not folder.is_dir():
        return f"there is no folder {folder}."
    if settings["attachments.event_source"] == "eventhub":
        return f"EVENT_SOURCE=eventhub is set, so that nobody reads {settings['topics.events_raw']}."
    for setting, variable in (("allowed_hosts", "INGEST_ALLOWED_HOSTS"), ("denied_hosts", "INGEST_DENIED_HOSTS")):
        if settings[f"downloads.{setting}"]:
            return f"{variable} is set, which may forbid the demo's own web server."
    return None
