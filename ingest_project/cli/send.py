"""`ingest send`: publish a message like any other producer, and return once the broker has confirmed it.

The command rejects a message that the system's reader would reject, so that it does not become a dead letter.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import msgspec
import typer

from ingest_project.contracts import encode
from ingest_project.contracts.attachments import (
    MAX_SIZE_BYTES,
    AttachmentEvent,
    DownloadTask,
    attachment_key,
    decode_attachment_event,
    decode_download_task,
)
from ingest_project.contracts.files import (
    FileEvent,
    PollingJob,
    Priority,
    decode_file_event,
    decode_polling_job,
    file_type_of,
)
from ingest_project.core.console import AsJson, complain, counted, counts, print_json, say
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.platform import tracing
from ingest_project.platform.http import redacted_url
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.polling.job_queue import JobQueue, JobRecord
from ingest_project.sources.registry import SOURCES, SourceContext, open_source, require_known_options

app = typer.Typer(help="Send a message, and wait until the broker has it.", no_args_is_help=True)
DUMMY_PATH = "./dummy_data"
POLL_SECONDS = 0.5
# Kinds of sources whose address contains a host in addition to a path.
SERVERS = ("ftp", "sftp")
# Schemes whose name differs from their kind of source.
SCHEMES = {"https": "http", "abfs": "onelake", "abfss": "onelake"}

Profile = Annotated[str | None, typer.Option("--format", metavar="PROFILE", help="Reader profile of the files.")]
TraceId = Annotated[str | None, typer.Option(help="Identifies the message in logs and tables; generated if absent.")]
Domain = Annotated[str, typer.Option(help="Business domain; decides where files are stored.")]
EventType = Annotated[str, typer.Option(help="What happened, e.g. claim.documents.received.")]
where_to_look = partial(typer.Option, rich_help_panel="Where to look")
Dummy = Annotated[bool, where_to_look("--dummy", help="Look in the example files, INGEST_DUMMY_ROOT.")]
SourceType = Annotated[
    str | None,
    where_to_look(
        help="Any kind of source by its name.",
        show_default="by the scheme of --path; without one dummy in INGEST_DUMMY_ROOT, local elsewhere",
    ),
]
SourcePath = Annotated[
    str | None,
    where_to_look(help="Folder or address: /data/in, s3://bucket/in, sftp://user@host:22/in, https://host/in/."),
]
Credentials = Annotated[str | None, where_to_look(metavar="NAME", help="Stored credentials.")]
SourceFields = Annotated[
    list[str] | None,
    where_to_look(metavar="KEY=VALUE", help="Further fields of the source, e.g. region=eu-west-1; repeatable."),
]
FilePattern = Annotated[str, typer.Option(help="Glob that file names must match.")]
JobPriority = Annotated[Priority, typer.Option(help="high goes before normal before low.")]
JobId = Annotated[str | None, typer.Option(help="Sent again, it polls the source again.")]
Metadata = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Carried along to every file; repeatable.")
]


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A message that the broker has confirmed.

    Args:
        trace_id: trace id of the message; None if it has none.
        message: message as sent, or without secrets for printing.
    """

    topic: str
    trace_id: str | None
    message: Any


@app.command("file-event")
def send_file_event(
    path: Annotated[str, typer.Argument(help="Path of the file on the system that ingests it.")],
    *,
    profile: Profile = None,
    trace_id: TraceId = None,
    short: Annotated[bool, typer.Option("--short", help="Short form of older producers, on file_events.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish the event of one local file."""
    if short and (profile or trace_id):
        raise typer.BadParameter("The short form carries neither --format nor --trace-id.")
    settings = load_settings().settings
    metadata = {"format": profile} if profile else {}
    event = file_event(path, settings, metadata, trace_id or str(uuid.uuid4()))
    raw = checked(event, partial(_accepted_file_event, settings))
    # Check the path even if this host lacks the file: the allowed folders are those of the ingesting system.
    open_source({"source_type": "local"}, SourceContext(settings)).require_allowed(event.file_path)
    topics = settings.topics
    if short:
        raw = msgspec.json.encode({"file_path": event.file_path, "file_name": event.file_name})
    sent = deliver(
        Runtime(settings),
        topics.file_events if short else topics.file_event_queue,
        event.file_path,
        raw,
        None if short else event.trace_id,
    )
    print_sent(sent, f"file event for {event.file_path}", as_json=as_json)


def _accepted_file_event(settings: Settings, raw: bytes) -> FileEvent:
    """Decode a file event like the sensor: its dataset must accept files of this type."""
    from ingest_project.readers.datasets import load_declarations  # imports Polars

    event, declarations = decode_file_event(raw), load_declarations(settings)
    declarations.require_accepted(event)
    declarations.require_profile(event.metadata, settings)
    return event


def _accepted_job(settings: Settings, raw: bytes) -> PollingJob:
    """Decode a polling job like the sensor: its reader profile must exist."""
    from ingest_project.readers.datasets import load_declarations  # imports Polars

    job = decode_polling_job(raw)
    require_known_options(job.source_config)
    load_declarations(settings).require_profile(job.metadata, settings)
    return job


@app.command("polling-job")
def send_polling_job(  # noqa: PLR0913 - one for each part of the message
    *,
    dummy: Dummy = False,
    source_type: SourceType = None,
    path: SourcePath = None,
    credentials: Credentials = None,
    source: SourceFields = None,
    pattern: FilePattern = "*",
    priority: JobPriority = "normal",
    job_id: JobId = None,
    profile: Profile = None,
    trace_id: TraceId = None,
    metadata: Metadata = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the source is polled; exit code 1 if that fails.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Maximum wait of --wait in seconds.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Request to poll a source and ingest each new file in it."""
    settings = load_settings().settings
    config = _source_config(source_type, path, settings, dummy=dummy) | pairs_of(source, "--source")
    if credentials is not None:
        config["credentials"] = credentials
    job = PollingJob(
        job_id=job_id or f"job_{datetime.now(UTC):%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:6]}",
        source_config=config,
        file_pattern=pattern,
        priority=priority,
        metadata=pairs_of(metadata, "--metadata") | ({"format": profile} if profile else {}),
        trace_id=trace_id or str(uuid.uuid4()),
    )
    services = Runtime(settings)
    raw = checked(job, partial(_accepted_job, settings))
    sent = deliver(services, settings.topics.polling_queue, job.job_id, raw, job.trace_id)
    if not (wait and as_json):
        print_sent(sent, f"polling job {job.job_id}: {job.source_type} {job.path}, files {pattern}", as_json=as_json)
    if wait:
        _print_end(_finished(JobQueue(services.engine), job, timeout), job, timeout, as_json=as_json)


@app.command("attachment-event")
def send_attachment_event(  # noqa: PLR0913 - one for each part of the message
    urls: Annotated[list[str] | None, typer.Argument(metavar="URL...", help="Addresses of its attachments.")] = None,
    *,
    domain: Domain,
    event_type: EventType = "",
    payload: Annotated[
        str | None, typer.Option(metavar="JSON", help="Content of the event, in which a JSONPath may find addresses.")
    ] = None,
    trace_id: TraceId = None,
    as_json: AsJson = False,
) -> None:
    """Send an event whose attachments are downloaded and stored."""
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
    sent = deliver(Runtime(settings), settings.topics.events_raw, event.trace_id, raw, event.trace_id)
    # The payload may contain signed addresses anywhere.
    shown = msgspec.structs.replace(event, attachments=[redacted_url(one) for one in urls or ()], payload=None)
    sent = msgspec.structs.replace(sent, message=shown)
    print_sent(sent, f"an event of {domain} with {counted(len(event.attachments), 'attachment')}", as_json=as_json)


@app.command("download-task")
def send_download_task(  # noqa: PLR0913 - one for each part of the message
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the file.")],
    *,
    domain: Domain,
    event_type: EventType = "",
    destination: Annotated[
        str, typer.Option(metavar="PATH", help="Path in the store.", show_default="by the template")
    ] = "",
    file_name: Annotated[str | None, typer.Option(help="File name.")] = None,
    content_type: Annotated[str | None, typer.Option(help="Expected media type, e.g. image/jpeg.")] = None,
    expected_size: Annotated[
        int | None, typer.Option(min=0, max=MAX_SIZE_BYTES, help="Expected size in bytes.")
    ] = None,
    checksum: Annotated[str | None, typer.Option(help="Expected checksum, sha256:... or md5:...")] = None,
    trace_id: TraceId = None,
    as_json: AsJson = False,
) -> None:
    """Request the download of one file. Sending it again for the same trace retries a dead one."""
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
    sent = deliver(Runtime(settings), settings.topics.downloads_pending, key, raw, task.trace_id)
    shown = msgspec.structs.replace(task, attachment_url=redacted_url(url))
    sent = msgspec.structs.replace(sent, message=shown)
    print_sent(sent, f"the task to download {redacted_url(url)}, attachment {key}", as_json=as_json)


def file_event(path: str, settings: Settings, metadata: dict[str, Any], trace_id: str) -> FileEvent:
    """Return the event of one local file, with its current version if this host has the file.

    Raises:
        ForbiddenPathError: the file exists outside the folders that may be read.
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


def config_of(kind: str, address: str) -> dict[str, Any]:
    """Return the `source_config` for an address as people write it, e.g. `sftp://user@host:22/in`."""
    if kind not in SERVERS or "://" not in address:
        return {"source_type": kind, "path": absolute_if_here(kind, address)}
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise typer.BadParameter(f"--path: {error}.") from error
    if parts.scheme != kind or not parts.hostname:
        raise typer.BadParameter(f"Addresses of {kind} sources are like {kind}://user@host:port/folder.")
    if parts.password is not None:
        raise typer.BadParameter("Messages carry no passwords: store it, and name it with --credentials.")
    config = {"source_type": kind, "host": parts.hostname, "path": unquote(parts.path) or "/"}
    if port is not None:
        config["port"] = str(port)
    return config | ({"username": unquote(parts.username)} if parts.username else {})


def deliver(services: Runtime, topic: str, key: str, raw: bytes, trace_id: str | None) -> Sent:
    """Write one message and wait for the broker's confirmation.

    Raises:
        BrokerUnavailableError: the message was not confirmed.
    """
    record = ProducerRecord(raw, key=key.encode(), headers=tracing.publish(topic, trace_id))
    services.writer.send_all(topic, [record])
    return Sent(topic=topic, trace_id=trace_id, message=msgspec.json.decode(raw))


def checked(message: msgspec.Struct, decode: Callable[[bytes], object]) -> bytes:
    """Encode the message; reject one that the reader would reject."""
    try:
        raw = encode(message)
        decode(raw)
    except UnreadableMessageError as error:
        raise typer.BadParameter(str(error)) from error
    except UnicodeEncodeError as error:
        raise typer.BadParameter("Messages are UTF-8, and one of the values is not.") from error
    return raw


def print_sent(sent: Sent, what: str, *, as_json: bool) -> None:
    """Print what was sent, and to which topic."""
    if as_json:
        print_json(sent)
        return
    say(f"Sent to {sent.topic}: {what}.")
    if sent.trace_id:
        say(f"Its trace id is {sent.trace_id}.")
    say("`ingest status` shows how far it is.")


def absolute_if_here(source_type: str, path: str) -> str:
    """Return a local path as an absolute one, so that it is valid for a process in another folder.

    A path that this host does not have is returned unchanged: the ingesting system may run elsewhere.
    """
    return str(Path(path).absolute()) if source_type == "local" and os.path.lexists(path) else path


def pairs_of(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Parse the values of a repeatable option KEY=VALUE."""
    pairs: dict[str, Any] = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise typer.BadParameter(f"{option} takes KEY=VALUE, not {text!r}.")
        pairs[name] = value
    return pairs


def _source_config(source_type: str | None, path: str | None, settings: Settings, *, dummy: bool) -> dict[str, Any]:
    """Return the source for these options; the example files if they specify none."""
    if source_type is not None and dummy:
        raise typer.BadParameter("--dummy is a kind of source itself: leave out --source-type.")
    kind = source_type or ("dummy" if dummy or path is None else _kind_of(path, settings))
    if kind not in SOURCES:
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(SOURCES)}.")
    if path is None and kind != "dummy":
        raise typer.BadParameter("--path must name the folder or address.")
    return config_of(kind, DUMMY_PATH if path is None else path)


def _kind_of(path: str, settings: Settings) -> str:
    """Return the kind of source for an address by its scheme, or for a folder by its location."""
    scheme, separator, _ = path.partition("://")
    if separator:
        return SCHEMES.get(scheme.lower(), scheme)
    return "dummy" if Path(path).resolve().is_relative_to(settings.polling.dummy_root.resolve()) else "local"


def _finished(jobs: JobQueue, job: PollingJob, timeout_seconds: float) -> JobRecord | None:
    """Return the job once it has ended; None after the timeout."""
    until = time.monotonic() + timeout_seconds
    while time.monotonic() < until:
        for record in jobs.list(text=job.trace_id, limit=1):
            if record.state.finished:
                return record
        time.sleep(POLL_SECONDS)
    return None


def _print_end(record: JobRecord | None, job: PollingJob, timeout_seconds: float, *, as_json: bool) -> None:
    if record is None:
        complain(f"{job.job_id} was not done within {timeout_seconds:g} s. `ingest status` shows how far it is.")
        raise typer.Exit(1)
    if as_json:
        print_json(record)
    elif record.state is JobState.DONE:
        found = counted(record.files_found or 0, "file")
        say(f"Found {found}, announced {record.files_published or 0:,}.")
        if record.skipped:
            say(f"Not announced: {counts(record.skipped)}")
    else:
        complain(f"It failed: {record.reason}")
    if record.state is JobState.FAILED:
        raise typer.Exit(1)


def _json(text: str | None) -> Any:  # noqa: ANN401 - any JSON
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise typer.BadParameter(f"--payload is not JSON: {error}.") from None
