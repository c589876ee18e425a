"""`ingest send`: put a message on a topic as any other producer would, and return once the broker has confirmed it."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ingest_project.cli.output import AsJson, print_json, say
from ingest_project.errors import UnreadableMessage
from ingest_project.kafka.writing import Outgoing
from ingest_project.messages.decoding import encode
from ingest_project.messages.file_event import FileEvent, decode_file_event, file_type_of
from ingest_project.messages.polling_job import PollingJob, Priority, decode_polling_job
from ingest_project.resources import Services
from ingest_project.settings import load_settings
from ingest_project.sources.registry import known_source_types, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingest_project.settings import Settings

app = typer.Typer(help="Send a message, and wait until the broker has it.", no_args_is_help=True)

DUMMY_PATH = "./dummy_data"

Profile = Annotated[str | None, typer.Option("--format", metavar="PROFILE", help="Reader profile of the files.")]
TraceId = Annotated[str | None, typer.Option(help="Follows the message through logs and ledger; made up if absent.")]


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="send")


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A message that the broker has.

    Args:
        topic: where it is.
        trace_id: to find it by; None where the message has no place for one.
        message: as it was sent.
    """

    topic: str
    trace_id: str | None
    message: Any


@app.command("polling-job")
def send_polling_job(  # noqa: PLR0913 - one for each part of the message
    *,
    job_id: Annotated[str | None, typer.Option(help="Sending it again asks for another look.")] = None,
    source_type: Annotated[str, typer.Option(help="Kind of source: dummy, local, ...")] = "dummy",
    path: Annotated[
        str | None, typer.Option(help="Folder, prefix or listing address.", show_default=f"{DUMMY_PATH} for dummy")
    ] = None,
    pattern: Annotated[str, typer.Option(help="Glob that file names must match.")] = "*",
    priority: Annotated[Priority, typer.Option(help="high goes before normal before low.")] = "normal",
    profile: Profile = None,
    trace_id: TraceId = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Carried along to every file; repeatable.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="What else the source needs, e.g. bucket=in; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask for a look into a source: each new file in it is ingested."""
    if source_type not in known_source_types():
        raise typer.BadParameter(f"{source_type!r} is not one of {', '.join(known_source_types())}.")
    if path is None and source_type != "dummy":
        raise typer.BadParameter("--path says where to look.")
    located = DUMMY_PATH if path is None else absolute_if_here(source_type, path)
    job = PollingJob(
        job_id=job_id or f"job_{datetime.now(UTC):%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:6]}",
        source_config={"source_type": source_type, "path": located, **_pairs(source, "--source")},
        file_pattern=pattern,
        priority=priority,
        metadata=_pairs(metadata, "--metadata") | _format(profile),
        trace_id=trace_id or str(uuid.uuid4()),
    )
    settings = load_settings().settings
    raw = _checked(job, decode_polling_job)
    sent = deliver(Services(settings), settings.topics.polling_queue, job.job_id, raw, job.trace_id)
    _tell(sent, f"polling job {job.job_id}: {source_type} {located}, files {pattern}", as_json=as_json)


@app.command("file-event")
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
    raw = _checked(event, decode_file_event)
    topics = settings.topics
    if short:
        raw = msgspec.json.encode({"file_path": event.file_path, "file_name": event.file_name})
    sent = deliver(
        Services(settings),
        topics.file_events if short else topics.file_event_queue,
        event.file_path,
        raw,
        None if short else event.trace_id,
    )
    _tell(sent, f"file event for {event.file_path}", as_json=as_json)


def file_event(path: str, settings: Settings, metadata: dict[str, Any], trace_id: str) -> FileEvent:
    """The announcement of one local file, of the version that is there now where this host can see it.

    Raises:
        ForbiddenPath: it is there, outside the folders that may be read.
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


def absolute_if_here(source_type: str, path: str) -> str:
    """A local path from the root, so that it means the same to a process in another folder.

    What this host does not have is left as it is: the system that ingests it may run elsewhere.
    """
    return str(Path(path).absolute()) if source_type == "local" and os.path.lexists(path) else path


def deliver(services: Services, topic: str, key: str, raw: bytes, trace_id: str | None) -> Sent:
    """Write one message and wait for the broker's confirmation.

    Raises:
        BrokerUnavailable: it was not confirmed.
    """
    headers = (("trace-id", trace_id.encode()),) if trace_id else ()
    services.writer.send_all(topic, [Outgoing(raw, key=key.encode(), headers=headers)])
    return Sent(topic=topic, trace_id=trace_id, message=msgspec.json.decode(raw))


def _checked(message: msgspec.Struct, decode: Callable[[bytes], object]) -> bytes:
    """The message as bytes, refused here if the reader would refuse it: a dead letter helps nobody."""
    try:
        raw = encode(message)
        decode(raw)
    except UnreadableMessage as error:
        raise typer.BadParameter(str(error)) from error
    except UnicodeEncodeError as error:
        raise typer.BadParameter("Messages are UTF-8, and one of the values is not.") from error
    return raw


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise typer.BadParameter(f"{option} takes KEY=VALUE, not {text!r}.")
        pairs[name] = value
    return pairs


def _format(profile: str | None) -> dict[str, Any]:
    return {"format": profile} if profile else {}


def _tell(sent: Sent, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(sent)
        return
    say(f"Sent to {sent.topic}: {what}.")
    if sent.trace_id:
        say(f"Its trace id is {sent.trace_id}.")
    say("`ingest status` shows how far it is.")
