"""`ingest attachments`: list attachments and show all that is known of one, without signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import msgspec
import typer

from ingest_project.attachments.attempts import Attempt, Replay, attempts_at, replays_of
from ingest_project.attachments.queue import AttachmentRecord
from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.key_lookup import find_attachment
from ingest_project.contracts.decoding import encode
from ingest_project.core.console import (
    AsJson,
    add_row,
    ago,
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
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.http.urls import printable_url

if TYPE_CHECKING:
    from rich.table import Table


class AttachmentPage(msgspec.Struct, frozen=True, kw_only=True):
    """All of one attachment.

    Args:
        attachment: its addresses without query.
        ui: address of its partition in the Dagster UI.
        attempts: those that have ended, the first one first.
        replays: each time that it began anew.
    """

    attachment: AttachmentRecord
    ui: str
    attempts: tuple[Attempt, ...]
    replays: tuple[Replay, ...]


def page_of(record: AttachmentRecord, services: SystemResources) -> AttachmentPage:
    """Gather the page of one attachment."""
    key = record.attachment_key
    return AttachmentPage(
        attachment=without_secrets(record),
        ui=partition_url(services.settings, key),
        attempts=attempts_at(services.engine, [key]).get(key, ()),
        replays=replays_of(services.engine, key),
    )


def without_secrets(record: AttachmentRecord) -> AttachmentRecord:
    """The record with its address, in the task as well, as it may be printed: a signed address is a secret."""
    task = record.this_task
    task = msgspec.structs.replace(task, attachment_url=printable_url(task.attachment_url))
    return msgspec.structs.replace(
        record, attachment_url=printable_url(record.attachment_url), task=encode(task).decode()
    )


def partition_url(settings: Settings, attachment_key: str) -> str:
    """Where the Dagster UI shows this attachment."""
    base = settings.dagster.webserver_url.rstrip("/")
    return f"{base}/assets/onelake_attachments?view=partitions&partition={quote(attachment_key, safe='')}"


def show_page(page: AttachmentPage) -> None:
    """Print it for a person."""
    say(page.attachment.attachment_key, style="bold")
    show_facts(_facts(page))
    if page.attempts:
        show(_attempts(page), "Attempts")
    if page.replays:
        show(_replays(page), "Replays")


def _facts(page: AttachmentPage) -> list[tuple[str, object]]:
    record, task = page.attachment, page.attachment.this_task
    finished = record.state.finished
    return [
        ("State", record.state),
        ("Reason", record.reason),
        ("Error class", record.error_class),
        ("HTTP status", record.http_status),
        ("Source", record.attachment_url),
        ("Domain", record.domain),
        ("Event type", task.event_type),
        ("Trace id", record.trace_id),
        ("Came from", _origin(record)),
        ("Attempt", record.attempt),
        ("Replays", record.replays or None),
        ("Next attempt", None if finished else record.next_attempt_at),
        ("Arrived", record.intake.at or record.created_at),
        ("Failed first", record.first_failed_at),
        ("Finished", _finished(record)),
        ("Bytes", record.size_bytes),
        ("Content type", record.content_type),
        ("SHA-256", record.sha256),
        ("Destination", record.destination_path),
        ("Stored", record.stored_path),
        ("Run", record.run_id),
        ("Batch", record.batch_id),
        ("Dagster UI", page.ui),
    ]


def _origin(record: AttachmentRecord) -> str:
    return f"{'an event' if record.event_key else 'a task'} at {record.intake}"


def _finished(record: AttachmentRecord) -> str | None:
    if record.finished_at is None:
        return None
    return f"{moment(record.finished_at)}, {length_of(record.finished_at - record.created_at)} after it was taken in"


def _attempts(page: AttachmentPage) -> Table:
    numbers = ("Replay", "Attempt", "HTTP", "Bytes")
    made = table("Replay", "Attempt", "Ended", "How", "HTTP", "Bytes", "Again at", "Why", numbers=numbers)
    for one in page.attempts:
        values = (one.completed_at, one.status, one.http_status, one.size_bytes, one.next_attempt_at, one.problems)
        add_row(made, one.replays, one.attempt, *values)
    return made


def _replays(page: AttachmentPage) -> Table:
    made = table("Replay", "Asked by", "At", "What had been wrong", numbers=["Replay"])
    for one in page.replays:
        add_row(made, one.replays, one.asked_by, one.asked_at, one.earlier_reason)
    return made


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
    records = SystemResources(load_settings().settings).attachments.list(state=state, text=search, limit=limit + 1)
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
    services = SystemResources(load_settings().settings)
    page = page_of(find_attachment(services.attachments, key), services)
    if as_json:
        print_json(page)
    else:
        show_page(page)


def shortened_list(records: Sequence[AttachmentRecord], limit: int) -> AttachmentList:
    """The first of these records as they may be printed, and whether there are more."""
    return AttachmentList(tuple(without_secrets(record) for record in records[:limit]), more=len(records) > limit)
