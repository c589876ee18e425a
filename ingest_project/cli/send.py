"""`ingest send`: put a message on a topic as any other producer would, and return once the broker has confirmed it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ingest_project.cli import send_attachments, send_polling
from ingest_project.cli.send_messages import Profile, TraceId, absolute_if_here, checked, deliver, tell
from ingest_project.contracts.file_event import FileEvent, decode_file_event, file_type_of
from ingest_project.core.console import AsJson
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.sources.registry import open_source


def register(to: typer.Typer) -> None:
    """Add the commands."""
    app = typer.Typer(help="Send a message, and wait until the broker has it.", no_args_is_help=True)
    app.command("file-event")(send_file_event)
    send_polling.register(app)
    send_attachments.register(app)
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
        found = open_source({"source_type": "local"}, settings.polling).stat(located)
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
