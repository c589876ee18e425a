"""`ingest send polling-job`: ask for a look into a source, and wait for what it finds if wanted."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from ingest_project.cli.send_messages import Profile, TraceId, absolute_if_here, checked, deliver, pairs_of, tell
from ingest_project.contracts.files import PollingJob, Priority, decode_polling_job
from ingest_project.core.console import AsJson, complain, counted, counts, print_json, say
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.polling.job_queue import JobRecord
from ingest_project.sources.registry import known_source_types

DUMMY_PATH = "./dummy_data"
POLL_SECONDS = 0.5
# The kinds whose address names a host beside the path.
SERVERS = ("ftp", "sftp")


def register(to: typer.Typer) -> None:
    """Add the command."""
    to.command("polling-job")(send_polling_job)


def _address(kind: str, example: str) -> Any:  # noqa: ANN401 - what Typer's option is
    return typer.Option(metavar="ADDRESS", help=f"Look in {kind}, e.g. {example}.", rich_help_panel="Where to look")


def send_polling_job(  # noqa: PLR0913 - one for each part of the message
    *,
    local: Annotated[str | None, _address("a folder", "/data/in")] = None,
    s3: Annotated[str | None, _address("S3", "s3://bucket/prefix")] = None,
    ftp: Annotated[str | None, _address("FTP", "ftp://host/in")] = None,
    sftp: Annotated[str | None, _address("SFTP", "sftp://user@host:22/in")] = None,
    http: Annotated[str | None, _address("a web listing", "https://host/in/")] = None,
    onelake: Annotated[str | None, _address("OneLake", "workspace/item.Lakehouse/Files/in")] = None,
    dummy: Annotated[
        bool, typer.Option("--dummy", help="Look in the example files.", rich_help_panel="Where to look")
    ] = False,
    source_type: Annotated[
        str | None, typer.Option(help="Any kind of source by its name.", rich_help_panel="Where to look")
    ] = None,
    path: Annotated[
        str | None, typer.Option(help="Folder, prefix or listing address.", rich_help_panel="Where to look")
    ] = None,
    credentials: Annotated[
        str | None, typer.Option(metavar="NAME", help="Stored credentials.", rich_help_panel="Where to look")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="What else the source needs, e.g. region=eu-west-1; repeatable.",
            rich_help_panel="Where to look",
        ),
    ] = None,
    pattern: Annotated[str, typer.Option(help="Glob that file names must match.")] = "*",
    priority: Annotated[Priority, typer.Option(help="high goes before normal before low.")] = "normal",
    job_id: Annotated[str | None, typer.Option(help="Sending it again asks for another look.")] = None,
    profile: Profile = None,
    trace_id: TraceId = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Carried along to every file; repeatable.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until the source was looked at; 1 where that failed.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that --wait waits at most.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Ask for a look into a source: each new file in it is ingested."""
    by_address = {"local": local, "s3": s3, "ftp": ftp, "sftp": sftp, "http": http, "onelake": onelake}
    config = _source_config(by_address, source_type, path, dummy=dummy) | pairs_of(source, "--source")
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
    services = SystemResources(load_settings().settings)
    raw = checked(job, decode_polling_job)
    sent = deliver(services, services.settings.topics.polling_queue, job.job_id, raw, job.trace_id)
    if not (wait and as_json):
        tell(sent, f"polling job {job.job_id}: {job.source_type} {job.path}, files {pattern}", as_json=as_json)
    if wait:
        _tell_end(_finished(services, job, timeout), job, timeout, as_json=as_json)


def _source_config(
    by_address: dict[str, str | None], source_type: str | None, path: str | None, *, dummy: bool
) -> dict[str, Any]:
    """The one source that the options name; the example files where they name none."""
    named = {kind: address for kind, address in by_address.items() if address is not None}
    if len(named) + (source_type is not None) + dummy > 1:
        raise typer.BadParameter("Name one source: the options under 'Where to look' exclude each other.")
    if named:
        ((kind, address),) = named.items()
        return config_of(kind, address)
    kind = source_type or "dummy"
    if kind not in known_source_types():
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(known_source_types())}.")
    if path is None and kind != "dummy":
        raise typer.BadParameter("--path says where to look.")
    return {"source_type": kind, "path": DUMMY_PATH if path is None else absolute_if_here(kind, path)}


def config_of(kind: str, address: str) -> dict[str, Any]:
    """The `source_config` of an address as people write it, e.g. `sftp://user@host:22/in`."""
    if kind not in SERVERS:
        return {"source_type": kind, "path": absolute_if_here(kind, address)}
    try:
        parts = urlsplit(address if "://" in address else f"{kind}://{address}")
        port = parts.port
    except ValueError as error:
        raise typer.BadParameter(f"--{kind}: {error}.") from error
    if parts.scheme != kind or not parts.hostname:
        raise typer.BadParameter(f"--{kind} takes {kind}://user@host:port/folder.")
    if parts.password is not None:
        raise typer.BadParameter("Messages carry no passwords: store it, and name it with --credentials.")
    config = {"source_type": kind, "host": parts.hostname, "path": unquote(parts.path) or "/"}
    if port is not None:
        config["port"] = str(port)
    return config | ({"username": unquote(parts.username)} if parts.username else {})


def _finished(services: SystemResources, job: PollingJob, timeout_seconds: float) -> JobRecord | None:
    """The job once nothing more happens to it by itself; None where that takes too long."""
    until = time.monotonic() + timeout_seconds
    while time.monotonic() < until:
        for record in services.polling_jobs.list(text=job.trace_id, limit=1):
            if record.state.finished:
                return record
        time.sleep(POLL_SECONDS)
    return None


def _tell_end(record: JobRecord | None, job: PollingJob, timeout_seconds: float, *, as_json: bool) -> None:
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
