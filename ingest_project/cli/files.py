"""`ingest files`: list files and show all that is known of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import msgspec
import typer

from ingest_project.cli.key_lookup import find_file
from ingest_project.core.console import (
    AsJson,
    add_row,
    ago,
    counted,
    counts,
    length_of,
    moment,
    print_json,
    say,
    shortened,
    show,
    show_facts,
    show_list,
    table,
)
from ingest_project.core.errors import IngestError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.object_store.content_store import object_name
from ingest_project.platform.work_queue.queue import KafkaPosition

if TYPE_CHECKING:
    from rich.table import Table

MAX_SHOWN_TEXT = 160


class QuarantineNote(msgspec.Struct, frozen=True):
    """What the quarantine store keeps of a file that was refused whole.

    Args:
        location: of its bytes.
        reason: the JSON beside them.
    """

    location: str
    reason: dict[str, Any]


class FilePage(msgspec.Struct, frozen=True, kw_only=True):
    """All of one file.

    Args:
        ui: address of its partition in the Dagster UI.
        landed_at: address of its bytes; None where it never got that far.
        metrics: by device and sensor type.
        quarantined_rows: the first of them: line_number, raw_text, reasons.
        quarantine: None where it was not refused whole.
        problems: what could not be asked.
    """

    file: FileRecord
    ui: str
    landed_at: str | None
    metrics: Sequence[dict[str, Any]]
    quarantined_rows: Sequence[dict[str, Any]]
    quarantine: QuarantineNote | None
    problems: Sequence[str] = ()


def page_of(record: FileRecord, services: SystemResources, rows: int) -> FilePage:
    """Gather the page of one file.

    Args:
        record: of the file.
        services: the stores; one of bytes that does not answer is named on the page.
        rows: most quarantined rows to bring.
    """
    problems: list[str] = []
    note = None
    try:
        if found := services.quarantine.get(record.file_key):
            note = QuarantineNote(found.location, found.reason)
    except IngestError as error:
        problems.append(str(error))
    settings = services.settings
    return FilePage(
        file=record,
        ui=partition_url(settings, record.file_key),
        landed_at=f"{settings.landing_url.rstrip('/')}/{object_name(record.sha256)}" if record.sha256 else None,
        metrics=[metric._asdict() for metric in services.warehouse.metrics_of(record.file_key)],
        quarantined_rows=[row._asdict() for row in services.warehouse.quarantined_rows_of(record.file_key, rows)],
        quarantine=note,
        problems=problems,
    )


def partition_url(settings: Settings, file_key: str) -> str:
    """Where the Dagster UI shows this file."""
    base = settings.dagster.webserver_url.rstrip("/")
    return f"{base}/assets/validated_sensor_data?view=partitions&partition={quote(file_key, safe='')}"


def show_page(page: FilePage) -> None:
    """Print it for a person."""
    say(page.file.file_key, style="bold")
    show_facts(_facts(page))
    if page.metrics:
        show(_metrics(page), "Metrics")
    show_quarantined_rows(page)


def show_quarantined_rows(page: FilePage) -> None:
    """Print the first refused rows, and say how many there are."""
    if not page.quarantined_rows:
        return
    total = page.file.rows_quarantined or len(page.quarantined_rows)
    shown = len(page.quarantined_rows)
    title = counted(total, "quarantined row") + (f", the first {shown:,}" if shown < total else "")
    made = table("Line", "Reasons", "Text", numbers=["Line"])
    for row in page.quarantined_rows:
        add_row(made, row["line_number"], ", ".join(row["reasons"]), shortened(row["raw_text"], MAX_SHOWN_TEXT))
    show(made, title)


def position_of(intake: KafkaPosition) -> str:
    """The Kafka position, as tools for topics write it."""
    return f"{intake.topic}[{intake.partition}]@{intake.offset}"


def _facts(page: FilePage) -> list[tuple[str, object]]:
    record = page.file
    return [
        ("State", record.state),
        ("Reason", record.reason),
        ("Error class", record.error_class),
        ("Stands for it", record.duplicate_of),
        ("Replaced by", record.replaced_by),
        ("Rows", _rows(record)),
        ("Broken rules", counts(record.rule_counts or {})),
        ("Source", record.location),
        ("Version", _version(record)),
        ("Reader profile", record.profile),
        ("Polling job", record.event.job_id),
        ("Trace id", record.event.trace_id),
        ("Kafka", position_of(record.intake)),
        ("Attempts", record.attempts),
        ("Next attempt", None if record.state.finished else record.next_attempt_at),
        ("Arrived", record.intake.at or record.created_at),
        ("Finished", _finished(record)),
        ("Run", record.run_id),
        ("Batch", record.batch_id),
        ("SHA-256", record.sha256),
        ("Landed", page.landed_at),
        ("In quarantine", page.quarantine.location if page.quarantine else None),
        ("Dagster UI", page.ui),
        *(("Not known", problem) for problem in page.problems),
    ]


def _rows(record: FileRecord) -> str | None:
    if record.rows_read is None:
        return None
    return (
        f"{record.rows_read:,} read, {record.rows_accepted or 0:,} accepted, {record.rows_quarantined or 0:,} refused"
    )


def _version(record: FileRecord) -> str:
    event = record.event
    parts = [
        None if event.size_bytes is None else f"{event.size_bytes:,} bytes",
        f"changed {moment(event.modified_at)}" if event.modified_at else None,
        f"etag {event.etag}" if event.etag else None,
    ]
    return ", ".join(part for part in parts if part)


def _finished(record: FileRecord) -> str | None:
    if record.finished_at is None:
        return None
    took = record.finished_at - record.created_at
    return f"{moment(record.finished_at)}, {length_of(took)} after it was taken in"


def _metrics(page: FilePage) -> Table:
    columns = ("Count", "Min", "Mean", "Max", "Std dev")
    made = table("Device", "Sensor type", *columns, numbers=columns)
    for metric in page.metrics:
        values = (metric["count"], metric["min"], metric["mean"], metric["max"], metric["stddev"])
        add_row(made, metric["device_id"], metric["sensor_type"], *values)
    return made


app = typer.Typer(help="What became of the files.", no_args_is_help=True)

MAX_SHOWN_REASON = 100

Key = Annotated[str, typer.Argument(metavar="KEY", help="The file's key, or the beginning of it.")]
Rows = Annotated[int, typer.Option(min=0, help="Most quarantined rows to show.")]
Limit = Annotated[int, typer.Option(min=1, help="Most files to list.")]


class FileList(msgspec.Struct, frozen=True):
    """Some of the files, the last changed first.

    Args:
        more: whether there are others that were not asked for.
    """

    files: tuple[FileRecord, ...]
    more: bool


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="files")


@app.command("list")
def list_files(
    *,
    state: Annotated[FileState | None, typer.Option(help="Only files in this state.")] = None,
    search: Annotated[
        str | None, typer.Option(help="Only files with this text in key, path, job id, trace id or reason.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List files, the last changed first."""
    found = listed(SystemResources(load_settings().settings), state, search, limit)
    if as_json:
        print_json(found)
        return
    made = table("Key", "State", "Accepted", "Refused", "Changed", "Reason", numbers=["Accepted", "Refused"])
    for record in found.files:
        reason = shortened(record.reason or "", MAX_SHOWN_REASON)
        values = (record.rows_accepted, record.rows_quarantined, ago(record.updated_at), reason)
        add_row(made, record.file_key, record.state, *values)
    show_list(made, "files", more=found.more)


@app.command("show")
def show_file(key: Key, *, rows: Rows = 10, as_json: AsJson = False) -> None:
    """Show everything of one file."""
    services = SystemResources(load_settings().settings)
    page = page_of(find_file(services.files, key), services, rows)
    if as_json:
        print_json(page)
    else:
        show_page(page)


def listed(services: SystemResources, state: FileState | None, search: str | None, limit: int) -> FileList:
    """The files that were asked for, and whether there are more."""
    found = services.files.list(state=state, text=search, limit=limit + 1)
    return FileList(found[:limit], more=len(found) > limit)
