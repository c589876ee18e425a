"""Commands `ingest attachments` and the attachment part of `ingest dlq`: list, show, and replay dead ones.

Addresses are shown without their query: a signed address is a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.capability import COLUMNS, REPLAY, Attachments, conditions_of
from ingest_project.attachments.queue import AttachmentRecord
from ingest_project.attachments.tables import AttachmentState
from ingest_project.contracts import encode
from ingest_project.core.console import (
    AsJson,
    Limit,
    add_row,
    ago,
    complain,
    find_by_key,
    print_json,
    say,
    shortened,
    show_list,
    table,
)
from ingest_project.core.settings import load_settings
from ingest_project.platform.actions import (
    MAX_LIMIT,
    ActionRefusedError,
    ActionRequest,
    Performed,
    login_name,
    perform,
    print_performed,
    time_of,
)
from ingest_project.platform.http import redacted_url
from ingest_project.platform.items import ItemRef, ItemView, print_item

MAX_SHOWN_REASON = 120
MAX_NAMED = 20
# Attempts and replays of an attachment.
MAX_ROWS = 1_000

attachments_app = typer.Typer(help="Attachments and their outcomes.", no_args_is_help=True)
Key = Annotated[str, typer.Argument(metavar="KEY", help="The attachment's key, or the beginning of it.")]
Keys = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY|TRACE...", help="Keys, the beginnings of them, or trace ids: all dead ones of these."),
]
TraceId = Annotated[str | None, typer.Option(help="Only those of this trace.")]
Domain = Annotated[str | None, typer.Option(help="Only those of this domain.")]
ErrorClass = Annotated[str | None, typer.Option(help="Only those that failed so, e.g. DownloadRejectedError.")]


def _moment(text: str | None) -> str | None:
    """Return the moment that a person typed, see `time_of`, in ISO 8601; None for none."""
    try:
        return text and time_of(text).isoformat()
    except ActionRefusedError as error:
        raise typer.BadParameter(str(error)) from error


Since = Annotated[
    str | None, typer.Option(metavar="TIME", callback=_moment, help="Failed then or later: 2026-01-15T10:30 (UTC), 2h.")
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", callback=_moment, help="Failed before: a time, or how long ago.")
]


@attachments_app.command("list")
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
    records = AttachmentResources(load_settings().settings).attachments.list(state=state, text=search, limit=limit + 1)
    found, more = _shortened_list(records, limit)
    if as_json:
        print_json({"attachments": found, "more": more})
        return
    made = table("Key", "State", "Domain", "Attempt", "Bytes", "Changed", "Reason", numbers=["Attempt", "Bytes"])
    for record in found:
        values = (record.domain, record.attempt, record.size_bytes, ago(record.updated_at))
        add_row(made, record.attachment_key, record.state, *values, shortened(record.reason or "", MAX_SHOWN_REASON))
    show_list(made, "attachments", more=more)


@attachments_app.command("show")
def show_attachment(key: Key, *, as_json: AsJson = False) -> None:
    """Show everything that is known of one attachment: its state, every attempt, replays, where it is stored."""
    services = AttachmentResources(load_settings().settings)
    print_item(_view_of(services, key), services.settings, MAX_ROWS, as_json=as_json)


def list_dead(  # noqa: PLR0913 - one for each way to choose
    *,
    trace_id: TraceId = None,
    domain: Domain = None,
    error_class: ErrorClass = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List dead attachments, the last ones first."""
    services = AttachmentResources(load_settings().settings)
    wanted = conditions_of(ActionRequest(parameters=_chosen(trace_id, domain, error_class, since, until)))
    found, more = _shortened_list(services.attachments.failed(wanted, limit=limit + 1), limit)
    if as_json:
        print_json({"attachments": found, "more": more})
        return
    made = table("Key", "Domain", "Failed", "Error class", "Replays", "Reason", numbers=["Replays"])
    for record in found:
        values = (ago(record.finished_at or record.updated_at), record.error_class, record.replays)
        add_row(made, record.attachment_key, record.domain, *values, shortened(record.reason or "", MAX_SHOWN_REASON))
    show_list(made, "attachments", more=more)


def show_dead(key: Key, *, as_json: AsJson = False) -> None:
    """Show why an attachment is dead, and every attempt at it. Exit code 1 when it is not."""
    services = AttachmentResources(load_settings().settings)
    view = _view_of(services, key)
    if view.state != AttachmentState.FAILED:
        complain(f"{view.ref.key} is not dead: it is {view.state}.")
        raise typer.Exit(1)
    print_item(view, services.settings, MAX_ROWS, as_json=as_json)
    if not as_json:
        say(f"Once that is fixed: ingest dlq replay {view.ref.key}")


def replay_dead(  # noqa: PLR0913 - one for each way to choose
    keys: Keys = None,
    *,
    trace_id: TraceId = None,
    domain: Domain = None,
    error_class: ErrorClass = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead attachment.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_LIMIT, help="Most to replay now, those that failed first.")
    ] = MAX_LIMIT,
    per_second: Annotated[
        float | None, typer.Option(min=0.001, help="How many become due a second.", show_default="by the settings")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replayed.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the record of operators' actions.")] = "by ingest dlq replay",
    as_json: AsJson = False,
) -> None:
    """Replay dead attachments after a fix.

    Attachments must match all given options. Each replay is recorded with who requested it. Exit code 1 when nothing
    was found, or one of them has been replayed as often as is allowed.
    """
    given = _chosen(trace_id, domain, error_class, since, until)
    if everything == (bool(keys) or bool(given)):
        raise typer.BadParameter("Name keys, say which by options, or say --all.")
    services = AttachmentResources(load_settings().settings)
    # Every key is looked up before anything changes: a misspelt one changes nothing.
    dead = _dead_keys([record for key in keys or () for record in _named(services, key)])
    given |= {"key": "\n".join(dead), "per_second": str(per_second or "")}
    request = ActionRequest(parameters=given, limit=limit, reason=reason, who=login_name(), dry_run=dry_run)
    nothing = Performed(action=REPLAY.name, action_id="", dry_run=dry_run, keys=(), total=0, remaining=0)
    # Keys of which none is dead select nothing.
    done = perform(services, REPLAY, request) if dead or not keys else nothing
    print_performed(REPLAY, request, done, as_json=as_json)
    if done.failed or not done.keys:
        raise typer.Exit(1)


def _chosen(
    trace_id: str | None, domain: str | None, error_class: str | None, since: str | None, until: str | None
) -> dict[str, str]:
    """Return the parameters of the action `replay-attachments` that these options set."""
    given = {"trace_id": trace_id, "domain": domain, "error_class": error_class, "since": since, "until": until}
    return {name: value for name, value in given.items() if value}


def _view_of(services: AttachmentResources, key: str) -> ItemView:
    """Return the record of one attachment, by its key or the beginning of it."""
    ref = ItemRef("attachment", _find(services, key).attachment_key)
    return Attachments().require_item(services, ref)


def _without_secrets(record: AttachmentRecord) -> AttachmentRecord:
    """Return the record with its address, in the task as well, as it may be printed."""
    task = record.this_task
    task = msgspec.structs.replace(task, attachment_url=redacted_url(task.attachment_url))
    return msgspec.structs.replace(
        record, attachment_url=redacted_url(record.attachment_url), task=encode(task).decode()
    )


def _shortened_list(records: Sequence[AttachmentRecord], limit: int) -> tuple[Sequence[AttachmentRecord], bool]:
    """Return the first of these records without secrets, and whether the list is cut off."""
    return [_without_secrets(record) for record in records[:limit]], len(records) > limit


def _named(services: AttachmentResources, name: str) -> Sequence[AttachmentRecord]:
    """Return the attachments of the trace of that name, the dead ones if there are any; else that of the key."""
    if dead := services.attachments.failed([COLUMNS.trace_id == name], MAX_LIMIT):
        return dead
    same = [record for record in services.attachments.list(text=name, limit=MAX_NAMED) if record.trace_id == name]
    return same or [_find(services, name)]


def _find(services: AttachmentResources, key: str) -> AttachmentRecord:
    return find_by_key(
        services.attachments, key, lambda record: record.attachment_key, "attachment", "ingest attachments list"
    )


def _dead_keys(records: Sequence[AttachmentRecord]) -> tuple[str, ...]:
    for record in records:
        if record.state is not AttachmentState.FAILED:
            complain(f"{record.attachment_key} is not dead: it is {record.state}.")
    return tuple(record.attachment_key for record in records if record.state is AttachmentState.FAILED)
