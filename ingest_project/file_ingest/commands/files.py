"""`ingest files` and `ingest quarantine`: list files, show one in detail, release quarantined ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated

import typer
from msgspec.structs import replace

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.console import (
    AsJson,
    Limit,
    Rows,
    add_row,
    ago,
    complain,
    counts,
    find_by_key,
    print_json,
    say,
    shortened,
    show_list,
    table,
)
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.file_queue import FileQueue, FileRecord
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.actions import MAX_LIMIT, ActionRequest, login_name, perform_command
from ingest_project.platform.http import without_query
from ingest_project.platform.items import ItemRef, ItemView, print_item
from ingest_project.platform.runtime import Runtime

MAX_SHOWN_REASON = 120

files_app = typer.Typer(help="Files and their outcomes.", no_args_is_help=True)
quarantine_app = typer.Typer(help="Quarantined files: why, and how to release them.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="The file's key, or the beginning of it.")]
Reason = Annotated[str, typer.Option(help="Why, for the record of operators' actions.")]
Search = Annotated[str | None, typer.Option(help="Only files with this text in key, path, job id, trace id or reason.")]


@files_app.command("list")
def list_files(
    *,
    state: Annotated[FileState | None, typer.Option(help="Only files in this state.")] = None,
    search: Search = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List files, the last changed first."""
    found, more = _listed(state, search, limit)
    if as_json:
        print_json({"files": found, "more": more})
        return
    apart = _distinguishing_columns(found)
    columns = ("State", "Accepted", "Refused", "Changed", "Broken rules", "Reason")
    made = table("Key", *apart, *columns, numbers=["Accepted", "Refused"])
    for record, *which in zip(found, *apart.values(), strict=True):
        rules, reason = counts(record.rule_counts or {}), shortened(record.reason or "", MAX_SHOWN_REASON)
        values = (record.state, record.rows_accepted, record.rows_quarantined, ago(record.updated_at), rules, reason)
        add_row(made, record.file_key, *which, *values)
    show_list(made, "files", more=more)


@files_app.command("show")
def show_file(key: Key, *, rows: Rows = 10, as_json: AsJson = False) -> None:
    """Show everything that is known of one file."""
    print_item(*_view_of(key), rows, as_json=as_json)


@quarantine_app.command("list")
def list_quarantined(*, search: Search = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List the files that were quarantined whole, the last first."""
    list_files(state=FileState.QUARANTINED, search=search, limit=limit, as_json=as_json)


@quarantine_app.command("show")
def show_quarantined(key: Key, *, rows: Rows = 20, as_json: AsJson = False) -> None:
    """Show why a file, or some of its rows, were quarantined. Exit code 1 when nothing of it was."""
    view, settings = _view_of(key)
    if not (view.state == FileState.QUARANTINED or view.rows["rejected"].total):
        complain(f"Nothing of {view.ref.key} is in quarantine: it is {view.state}.")
        raise typer.Exit(1)
    print_item(view, settings, rows, as_json=as_json)
    if not as_json:
        say(f"Once that is fixed: ingest quarantine release {view.ref.key}")


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
    request = ActionRequest(parameters=given, limit=MAX_LIMIT, reason=reason, who=login_name())
    perform_command(services, RELEASE, request, as_json=as_json)


def _view_of(key: str) -> tuple[ItemView, Settings]:
    """Return the record of one file, and the settings.

    Args:
        key: of the file, or the beginning of it.

    Raises:
        UnknownKeyError: no file, or more than one, has a key that begins like this.
    """
    from ingest_project.file_ingest.capability import FileIngest  # imports what it reports of all files
    from ingest_project.file_ingest.resources import FileIngestResources  # imports Polars

    services = FileIngestResources(load_settings().settings)
    ref = ItemRef("file", _find(services.files, key).file_key)
    return FileIngest().require_item(services, ref), services.settings


def _listed(state: FileState | None, search: str | None, limit: int) -> tuple[Sequence[FileRecord], bool]:
    """Return the newest files that match, up to the limit, and whether there are others."""
    found = FileQueue(Runtime(load_settings().settings).engine).list(state=state, text=search, limit=limit + 1)
    return [_without_secrets(record) for record in found[:limit]], len(found) > limit


def _without_secrets(record: FileRecord) -> FileRecord:
    """Return the record with its addresses as they may be printed."""
    event, config = record.event, record.event.source_config
    shown = {name: without_query(value) if isinstance(value, str) else value for name, value in config.items()}
    event = replace(event, file_path=without_query(event.file_path), source_config=shown)
    return replace(record, location=without_query(record.location), event=event)


def _distinguishing_columns(records: Sequence[FileRecord]) -> dict[str, list[str]]:
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
