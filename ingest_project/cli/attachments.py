"""`ingest attachments`: what became of the attachments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from ingest_project.cli.attachment_page import page_of, show_page, without_secrets
from ingest_project.cli.key_lookup import find_attachment
from ingest_project.cli.output import AsJson, add_row, ago, print_json, shortened, show_list, table
from ingest_project.ledger.states import AttachmentState  # noqa: TC001 - Typer reads the annotations
from ingest_project.resources import Services
from ingest_project.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest_project.ledger.attachment_record import AttachmentRecord

app = typer.Typer(help="What became of the attachments.", no_args_is_help=True)

MAX_SHOWN_REASON = 100

Key = Annotated[str, typer.Argument(metavar="KEY", help="The attachment's key, or the beginning of it.")]
Limit = Annotated[int, typer.Option(min=1, help="Most attachments to list.")]


class AttachmentList(msgspec.Struct, frozen=True):
    """Some of the attachments.

    Args:
        more: whether there are others that were not asked for.
    """

    attachments: tuple[AttachmentRecord, ...]
    more: bool


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="attachments")


@app.command("list")
def list_attachments(
    *,
    state: Annotated[AttachmentState | None, typer.Option(help="Only attachments in this state.")] = None,
    search: Annotated[
        str | None, typer.Option(help="Only attachments with this text in key, trace id, address or reason.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List attachments, the last changed first."""
    records = Services(load_settings().settings).attachments.list(state=state, text=search, limit=limit + 1)
    found = shortened_list(records, limit)
    if as_json:
        print_json(found)
        return
    made = table("Key", "State", "Domain", "Attempt", "Bytes", "Changed", "Reason", numbers=["Attempt", "Bytes"])
    for record in found.attachments:
        values = (record.domain, record.attempt, record.size_bytes, ago(record.updated_at))
        add_row(made, record.attachment_key, record.state, *values, shortened(record.reason or "", MAX_SHOWN_REASON))
    show_list(made, "attachments", more=found.more)


@app.command("show")
def show_attachment(key: Key, *, as_json: AsJson = False) -> None:
    """Show everything of one attachment: its state, every attempt, replays, where it is stored."""
    services = Services(load_settings().settings)
    page = page_of(find_attachment(services.attachments, key), services)
    if as_json:
        print_json(page)
    else:
        show_page(page)


def shortened_list(records: Sequence[AttachmentRecord], limit: int) -> AttachmentList:
    """The first of these records as they may be printed, and whether there are more."""
    return AttachmentList(tuple(without_secrets(record) for record in records[:limit]), more=len(records) > limit)
