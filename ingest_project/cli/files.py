"""`ingest files`: what became of the files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ingest_project.cli.file_page import page_of, show_page
from ingest_project.cli.key_lookup import find_file
from ingest_project.cli.output import AsJson, add_row, ago, print_json, shortened, show_list, table
from ingest_project.ledger.states import FileState  # noqa: TC001 - Typer reads the annotations
from ingest_project.resources import Services
from ingest_project.settings import load_settings

if TYPE_CHECKING:
    from ingest_project.ledger.file_record import FileRecord

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
    found = listed(Services(load_settings().settings), state, search, limit)
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
    services = Services(load_settings().settings)
    page = page_of(find_file(services.files, key), services, rows)
    if as_json:
        print_json(page)
    else:
        show_page(page)


def listed(services: Services, state: FileState | None, search: str | None, limit: int) -> FileList:
    """The files that were asked for, and whether there are more."""
    found = services.files.list(state=state, text=search, limit=limit + 1)
    return FileList(found[:limit], more=len(found) > limit)
