"""`ingest send`: put a message on a topic as any other producer would, and return once the broker has confirmed it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ingest_project.cli import send_polling
from ingest_project.cli.send_messages import Profile, TraceId, absolute_if_here, checked, deliver, tell
from ingest_project.contracts.attachments import (
    AttachmentEvent,
    DownloadTask,
    attachment_key,
    decode_attachment_event,
    decode_download_task,
)
from ingest_project.contracts.files import FileEvent, decode_file_event, file_type_of
from ingest_project.core.console import AsJson, counted
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.http.urls import printable_url
from ingest_project.sources.context import SourceContext
from ingest_project.sources.registry import open_source


def register(to: typer.Typer) -> None:
    """Add the commands."""
    app = typer.Typer(help="Send a message, and wait until the broker has it.", no_args_is_help=True)
    app.command("file-event")(send_file_event)
    send_polling.register(app)
    app.command("attachment-event")(send_attachment_event)
    app.command("download-task")(send_download_task)
    to.add_typer(app, name="send")


def send_file_event(
    path: Annotated[str, typer.Argument(help="The file, as the system that ingests it sees it.")],
    *,
    profile: Profile = None,
    trace_id: TraceId = None,
    short: Annotated[bool, typer.Option("--short", help="The short form of older producers, on file_events.")] = False,
    as_json: AsJson = False,
) -> None:
    """Announce one local file."""
    if short and (profile or trace_id):
        raise typer.BadParameter("The short form has no place for --format or --trace-id.")
    settings = load_settings().settings
    event = file_event(path, settings, _format(profile), trace_id or str(uuid.uuid4()))
    raw = checked(event, decode_file_event)
    topics = settings.topics
    if short:
        raw = msgspec.json.encode({"file_path": event.file_path, "file_name": event.file_name})
    sent = deliver(
        SystemResources(settings),
        topics.file_events if short else topics.file_event_queue,
        event.file_path,
        raw,
        None if short else event.trace_id,
    )
    tell(sent, f"file event for {event.file_path}", as_json=as_json)


def file_event(path: str, settings: Settings, metadata: dict[str, Any], trace_id: str) -> FileEvent:
    """The announcement of one local file, of the version that is there now where this host can see it.

    Raises:
        ForbiddenPathError: it is there, outside the folders that may be read.
    """
    located = absolute_if_here("local", path)
    name = Path(located).name
    size_bytes = modified_at = etag = None
    if Path(located).exists():
        found = open_source({"source_type": "local"}, SourceContext(settings)).stat(located)
        size_bytes, modified_at, etag = found.size_bytes, found.modified_at, found.etag
    return FileEvent(
        event_id=str(uuid.uuid4()),
        file_path=located,
        file_name=name,
        file_type=file_type_of(name),
        size_bytes=size_bytes,
        modified_at=modified_at,
        etag=etag,
        discovered_at=datetime.now(UTC),
        trace_id=trace_id,
        metadata=metadata,
    )


def _format(profile: str | None) -> dict[str, Any]:
    return {"format": profile} if profile else {}


Domain = Annotated[str, typer.Option(help="Business domain; decides where files are stored.")]
EventType = Annotated[str, typer.Option(help="What happened, e.g. claim.documents.received.")]


def send_attachment_event(  # noqa: PLR0913 - one for each part of the message
    urls: Annotated[list[str] | None, typer.Argument(metavar="URL...", help="Addresses of its attachments.")] = None,
    *,
    domain: Domain,
    event_type: EventType = "",
    payload: Annotated[
        str | None, typer.Option(metavar="JSON", help="Its own content, in which a JSONPath may find addresses.")
    ] = None,
    trace_id: TraceId = None,
    as_json: AsJson = False,
) -> None:
    """Send an event: the files at its addresses are downloaded and stored."""
    event = AttachmentEvent(
        trace_id=trace_id or str(uuid.uuid4()),
        domain=domain,
        event_type=event_type,
        occurred_at=datetime.now(UTC),
        attachments=list(urls or ()),
        payload=_json(payload),
    )
    raw = checked(event, decode_attachment_event)
    settings = load_settings().settings
    sent = deliver(SystemResources(settings), settings.topics.events_raw, event.trace_id, raw, event.trace_id)
    # The payload may have signed addresses anywhere.
    shown = msgspec.structs.replace(event, attachments=[printable_url(one) for one in urls or ()], payload=None)
    sent = msgspec.structs.replace(sent, message=shown)
    tell(sent, f"an event of {domain} with {counted(len(event.attachments), 'attachment')}", as_json=as_json)


def send_download_task(  # noqa: PLR0913 - one for each part of the message
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the file.")],
    *,
    domain: Domain,
    event_type: EventType = "",
    destination: Annotated[
        str, typer.Option(metavar="PATH", help="Where in the store.", show_default="as the template says")
    ] = "",
    file_name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    content_type: Annotated[str | None, typer.Option(help="What it must be, e.g. image/jpeg.")] = None,
    expected_size: Annotated[int | None, typer.Option(metavar="BYTES", help="How long it must be.")] = None,
    checksum: Annotated[str | None, typer.Option(help="sha256:... or md5:... that it must have.")] = None,
    trace_id: TraceId = None,
    as_json: AsJson = False,
) -> None:
    """Ask for one file to be downloaded and stored. Sent again for the same trace, a dead one is tried anew."""
    task = DownloadTask(
        trace_id=trace_id or str(uuid.uuid4()),
        domain=domain,
        attachment_url=url,
        destination_path=destination,
        event_type=event_type,
        occurred_at=datetime.now(UTC),
        expected_size=expected_size,
        checksum=checksum,
        file_name=file_name,
        content_type=content_type,
    )
    raw = checked(task, decode_download_task)
    settings = load_settings().settings
    key = attachment_key(task.trace_id, url)
    sent = deliver(SystemResources(settings), settings.topics.downloads_pending, key, raw, task.trace_id)
    shown = msgspec.structs.replace(task, attachment_url=printable_url(url))
    sent = msgspec.structs.replace(sent, message=shown)
    tell(sent, f"the task to download {printable_url(url)}, attachment {key}", as_json=as_json)


def _json(text: str | None) -> Any:  # noqa: ANN401 - whatever a payload is
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise typer.BadParameter(f"--payload is not JSON: {error}.") from None
