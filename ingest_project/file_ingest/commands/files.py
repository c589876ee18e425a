"""`ingest files` and `ingest quarantine`: list files, show one in detail, release quarantined ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import typer
from rich.table import Table

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.console import (
    AsJson,
    add_row,
    ago,
    complain,
    counted,
    counts,
    find_by_key,
    length_of,
    moment,
    print_json,
    say,
    shortened,
    show,
    show_facts,
    show_list,
    stdout,
    table,
)
from ingest_project.core.errors import IngestError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.file_queue import FileQueue, FileRecord
from ingest_project.file_ingest.tables import FileState, asset_of
from ingest_project.platform.actions import (
    MAX_LIMIT,
    ActionRefusedError,
    ActionRequest,
    Performed,
    login_name,
    perform,
)
from ingest_project.platform.object_store.content_store import object_name
from ingest_project.platform.runtime import Runtime

MAX_SHOWN_TEXT = 160
TITLES = {"device_id": "Device"}
MAX_SHOWN_REASON = 120

files_app = typer.Typer(help="Files and their outcomes.", no_args_is_help=True)
quarantine_app = typer.Typer(help="Quarantined files: why, and how to release them.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="The file's key, or the beginning of it.")]
Rows = Annotated[int, typer.Option(min=0, help="Most quarantined rows to show.")]
Limit = Annotated[int, typer.Option(min=1, help="Most files to list.")]
Reason = Annotated[str, typer.Option(help="Why, for the record of operators' actions.")]
Search = Annotated[str | None, typer.Option(help="Only files with this text in key, path, job id, trace id or reason.")]


class QuarantineNote(msgspec.Struct, frozen=True):
    """The quarantine store's record of a file that was quarantined whole.

    Args:
        location: of its bytes.
        reason: the JSON stored with them.
    """

    location: str
    reason: dict[str, Any]


class FilePage(msgspec.Struct, frozen=True, kw_only=True):
    """All of one file.

    Args:
        ui: address of its partition in the Dagster UI.
        landed_at: address of its bytes; None if they were never landed.
        metrics: by device and sensor type.
        quarantined_rows: the first of them: line_number, raw_text, reasons.
        quarantine: None if it was not quarantined as a whole.
        problems: what could not be read.
    """

    file: FileRecord
    ui: str
    landed_at: str | None
    metrics: Sequence[dict[str, Any]]
    quarantined_rows: Sequence[dict[str, Any]]
    quarantine: QuarantineNote | None
    problems: Sequence[str] = ()


class FileList(msgspec.Struct, frozen=True):
    """Some of the files, the last changed first.

    Args:
        more: True if others exist.
    """

    files: tuple[FileRecord, ...]
    more: bool


class Release(msgspec.Struct, frozen=True):
    """Result of a release.

    Args:
        released: keys of the files that will be ingested again.
        unchanged: keys of those that a run works on or still reports, or that wait for one, with their state.
    """

    released: tuple[str, ...]
    unchanged: dict[str, FileState]


@files_app.command("list")
def list_files(
    *,
    state: Annotated[FileState | None, typer.Option(help="Only files in this state.")] = None,
    search: Search = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List files, the last changed first."""
    found = _listed(state, search, limit)
    if as_json:
        print_json(found)
        return
    apart = _told_apart(found.files)
    made = table("Key", *apart, "State", "Accepted", "Refused", "Changed", "Reason", numbers=["Accepted", "Refused"])
    for record, *which in zip(found.files, *apart.values(), strict=True):
        reason = shortened(record.reason or "", MAX_SHOWN_REASON)
        values = (record.rows_accepted, record.rows_quarantined, ago(record.updated_at), reason)
        add_row(made, record.file_key, *which, record.state, *values)
    show_list(made, "files", more=found.more)


@files_app.command("show")
def show_file(key: Key, *, rows: Rows = 10, as_json: AsJson = False) -> None:
    """Show everything that is known of one file."""
    page = _page_of(key, rows)
    if as_json:
        print_json(page)
    else:
        _show_page(page)


@quarantine_app.command("list")
def list_quarantined(
    *,
    search: Search = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the files that were quarantined whole, the last first."""
    found = _listed(FileState.QUARANTINED, search, limit)
    if as_json:
        print_json(found)
        return
    apart = _told_apart(found.files)
    made = table("Key", *apart, "Refused", "Broken rules", "Reason")
    for record, *which in zip(found.files, *apart.values(), strict=True):
        reason = shortened(record.reason or "", MAX_SHOWN_REASON)
        add_row(
            made,
            record.file_key,
            *which,
            ago(record.finished_at or record.updated_at),
            counts(record.rule_counts or {}),
            reason,
        )
    show_list(made, "files", more=found.more)


@quarantine_app.command("show")
def show_quarantined(key: Key, *, rows: Rows = 20, as_json: AsJson = False) -> None:
    """Show why a file, or some of its rows, were quarantined. Exit code 1 when nothing of it was."""
    page = _page_of(key, rows)
    refused = page.file.state is FileState.QUARANTINED or bool(page.quarantined_rows)
    if as_json:
        print_json(page)
    elif refused:
        _show_quarantined(page)
    else:
        complain(f"Nothing of {page.file.file_key} is in quarantine: it is {page.file.state}.")
    if not refused:
        raise typer.Exit(1)


@quarantine_app.command("release")
def release(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY...", help="Keys of files, or the beginnings of them.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every file that was quarantined whole.")] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            "--new-profile", "--profile", metavar="NAME", help="Read them by this reader profile from now on."
        ),
    ] = None,
    reason: Reason = "by ingest quarantine release",
    as_json: AsJson = False,
) -> None:
    """Ingest files again, after the source, the settings or the reader profile were fixed, or by another profile.

    Any finished file can be named, also one with only some rows in quarantine. Exit code 1 when one of them is
    not finished. It leaves the quarantine once it has been accepted. Read by another profile it has another key, and
    replaces what the former profile made of it as soon as it is accepted.
    """
    from ingest_project.file_ingest.actions import RELEASE  # imports Polars
    from ingest_project.file_ingest.resources import FileIngestResources  # the same

    if bool(keys) == everything:
        raise typer.BadParameter("Name the files, or say --all.")
    services = FileIngestResources(load_settings().settings)
    # Every key is resolved before anything changes, so that a misspelt one changes nothing.
    chosen = [_find(services.files, key).file_key for key in keys or ()]
    given = {"key": "\n".join(chosen), "new_profile": profile or ""}
    try:
        request = ActionRequest(parameters=given, limit=MAX_LIMIT, reason=reason, who=login_name())
        done = perform(services, RELEASE, request)
    except ActionRefusedError as error:
        raise typer.BadParameter(str(error)) from error
    states = {record.file_key: record.state for record in services.files.get_many([*done.in_progress])}
    released = Release(tuple(done.created.get(key, key) for key in done.done), states)
    if as_json:
        print_json(released)
    else:
        _print_release(released, done)
        if done.remaining:
            complain(f"{counted(done.remaining, 'file')} more in quarantine; release again for those.")
    if not done.is_complete:
        raise typer.Exit(1)


def _page_of(key: str, rows: int) -> FilePage:
    """Gather the page of one file; it names an object store that does not answer.

    Args:
        key: of the file, or the beginning of it.
        rows: maximum of quarantined rows.
    """
    from ingest_project.file_ingest.declared import summaries_of  # imports Polars
    from ingest_project.file_ingest.resources import FileIngestResources  # the same

    settings = load_settings().settings
    services = FileIngestResources(settings)
    record = _find(services.files, key)
    problems: list[str] = []
    note = None
    try:
        if found := services.quarantine.get(record.file_key):
            note = QuarantineNote(found.location, found.reason)
    except IngestError as error:
        problems.append(str(error))
    return FilePage(
        file=record,
        ui=_partition_url(settings, record),
        landed_at=f"{settings.landing_url.rstrip('/')}/{object_name(record.sha256)}" if record.sha256 else None,
        metrics=summaries_of(services, record),
        quarantined_rows=[row._asdict() for row in services.warehouse.quarantined_rows_of(record.file_key, rows)],
        quarantine=note,
        problems=problems,
    )


def _partition_url(settings: Settings, record: FileRecord) -> str:
    """Return the address of this file in the Dagster UI."""
    base = settings.dagster.webserver_url.rstrip("/")
    key = quote(record.file_key, safe="")
    return f"{base}/assets/{asset_of(record.dataset)}?view=partitions&partition={key}"


def _show_page(page: FilePage) -> None:
    """Print the page for a person."""
    say(page.file.file_key, style="bold")
    show_facts(_facts(page))
    if page.metrics:
        show(_metrics(page), "Metrics")
    _show_quarantined_rows(page)


def _show_quarantined_rows(page: FilePage) -> None:
    """Print the first quarantined rows, and their total."""
    if not page.quarantined_rows:
        return
    total = page.file.rows_quarantined or len(page.quarantined_rows)
    shown = len(page.quarantined_rows)
    title = counted(total, "quarantined row") + (f", the first {shown:,}" if shown < total else "")
    made = table("Line", "Reasons", "Text", numbers=["Line"])
    for row in page.quarantined_rows:
        add_row(made, str(row["line_number"]), ", ".join(row["reasons"]), shortened(row["raw_text"], MAX_SHOWN_TEXT))
    show(made, title)


def _listed(state: FileState | None, search: str | None, limit: int) -> FileList:
    """Return the newest files that match, up to the limit."""
    found = FileQueue(Runtime(load_settings().settings).engine).list(state=state, text=search, limit=limit + 1)
    return FileList(found[:limit], more=len(found) > limit)


def _told_apart(records: Sequence[FileRecord]) -> dict[str, list[str]]:
    """Return the columns that tell listed files apart: their datasets, and folders where a name occurs in several."""
    columns: dict[str, list[str]] = {}
    datasets = [record.dataset for record in records]
    if {*datasets} - {SENSOR_READINGS}:
        columns["Dataset"] = datasets
    places: dict[str, set[str]] = {}
    for record in records:
        places.setdefault(record.event.file_name, set()).add(record.location)
    folders = [_folder(record.location, places[record.event.file_name]) for record in records]
    return columns | ({"Folder": folders} if any(folders) else {})


def _folder(location: str, places: Collection[str]) -> str:
    """Return the end of a file's folder, as much of it as no other place of a file of this name has."""
    if len(places) == 1:
        return ""
    folders = [place.split("/")[:-1] for place in places]
    own = location.split("/")[:-1]
    for length in range(1, len(own)):
        if sum(folder[-length:] == own[-length:] for folder in folders) == 1:
            return "/".join(own[-length:])
    return "/".join(own)


def _find(files: FileQueue, key: str) -> FileRecord:
    return find_by_key(files, key, lambda record: record.file_key, "file", "ingest files list")


def _print_release(released: Release, done: Performed) -> None:
    for key in released.released:
        say(f"{key} will be ingested again.")
    for key, reason in done.in_progress.items():
        complain(f"{key} is in progress: {reason}.")
    for key, reason in done.failed.items():
        complain(f"{key}: {reason}.")
    if not done.total:
        say("Nothing is in quarantine.")
    else:
        say(f"{counted(len(released.released), 'file')} released. `ingest status` shows how far they are.")


def _show_quarantined(page: FilePage) -> None:
    record = page.file
    whole = record.state is FileState.QUARANTINED
    say(record.file_key, style="bold")
    pairs = [
        ("Refused", "the whole file" if whole else f"{record.rows_quarantined:,} of {record.rows_read:,} rows"),
        ("Reason", record.reason),
        ("Broken rules", counts(record.rule_counts or {})),
        ("When", record.finished_at),
        ("Source", record.location),
        ("Reader profile", record.profile),
        ("Its bytes", page.quarantine.location if page.quarantine else page.landed_at),
        *(("Not known", problem) for problem in page.problems),
    ]
    show_facts(pairs)
    _show_quarantined_rows(page)
    stdout().print()
    say(f"Once that is fixed: ingest quarantine release {record.file_key}")


def _facts(page: FilePage) -> list[tuple[str, object]]:
    record = page.file
    return [
        ("State", record.state),
        ("Reason", record.reason),
        ("Error class", record.error_class),
        ("Stands for it", record.duplicate_of),
        ("Replaced by", record.replaced_by),
        ("Corrects", record.corrects),
        ("Rows", _rows(record)),
        ("Broken rules", counts(record.rule_counts or {})),
        ("Source", record.location),
        ("Version", _version(record)),
        ("Dataset", record.dataset),
        ("Reader profile", record.profile),
        ("Polling job", record.event.job_id),
        ("Trace id", record.event.trace_id),
        ("Kafka", str(record.intake)),
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
    columns = {"Count": "count", "Min": "min", "Mean": "mean", "Max": "max", "Std dev": "stddev"}
    groups = [name for name in page.metrics[0] if name not in columns.values()]
    titles = (TITLES.get(name, name.replace("_", " ").capitalize()) for name in groups)
    made = table(*titles, *columns, numbers=[*columns])
    for metric in page.metrics:
        add_row(made, *(metric[name] for name in (*groups, *columns.values())))
    return made
