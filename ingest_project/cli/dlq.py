"""`ingest dlq`: attachments that failed for good, why, and the way back; and messages that could not be read at all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ingest_project.cli.attachment_page import page_of, show_page
from ingest_project.cli.attachments import Limit, shortened_list
from ingest_project.cli.dead_messages import list_messages, show_message
from ingest_project.cli.key_lookup import find_attachment
from ingest_project.cli.output import (
    AsJson,
    add_row,
    ago,
    complain,
    counted,
    moment,
    print_json,
    say,
    shortened,
    show_list,
    stdout,
    table,
)
from ingest_project.cli.replaying import replay
from ingest_project.cli.times import moment_of
from ingest_project.ledger.attachments import FailedFilter
from ingest_project.ledger.states import AttachmentState
from ingest_project.resources import Services
from ingest_project.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest_project.cli.replaying import ReplayResult
    from ingest_project.ledger.attachment_record import AttachmentRecord

app = typer.Typer(
    help="Attachments that failed for good: why, and the way back. Messages that could not be read.",
    no_args_is_help=True,
)
app.command("messages")(list_messages)
app.command("message")(show_message)

MAX_SHOWN_REASON = 120
MOST_NAMED = 20

Key = Annotated[str, typer.Argument(metavar="KEY", help="The attachment's key, or the beginning of it.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY...", help="Keys, or the beginnings of them.")]
TraceId = Annotated[str | None, typer.Option(help="Only those of this trace.")]
Domain = Annotated[str | None, typer.Option(help="Only those of this domain.")]
ErrorClass = Annotated[str | None, typer.Option(help="Only those that failed so, e.g. DownloadRefused.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Failed then or later: 2026-01-15T10:30 (UTC), 2h.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Failed before: a time, or how long ago.")]


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="dlq")


@app.command("list")
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
    """List dead attachments, those that failed first in front."""
    wanted = _wanted(trace_id, domain, error_class, since, until)
    services = Services(load_settings().settings)
    found = shortened_list(services.attachments.failed(wanted, limit=limit + 1), limit)
    if as_json:
        print_json(found)
        return
    made = table("Key", "Domain", "Failed", "Error class", "Replays", "Reason", numbers=["Replays"])
    for record in found.attachments:
        values = (ago(record.finished_at or record.updated_at), record.error_class, record.replays)
        add_row(made, record.attachment_key, record.domain, *values, shortened(record.reason or "", MAX_SHOWN_REASON))
    show_list(made, "attachments", more=found.more)


@app.command("show")
def show_dead(key: Key, *, as_json: AsJson = False) -> None:
    """Show why an attachment is dead, and every attempt at it. Exit code 1 when it is not."""
    services = Services(load_settings().settings)
    page = page_of(find_attachment(services.attachments, key), services)
    record = page.attachment
    dead = record.state is AttachmentState.FAILED
    if as_json:
        print_json(page)
    elif dead:
        show_page(page)
        stdout().print()
        say(f"Once that is mended: ingest dlq replay {record.attachment_key}")
    else:
        complain(f"{record.attachment_key} is not dead: it is {record.state}.")
    if not dead:
        raise typer.Exit(1)


@app.command("replay")
def replay_dead(  # noqa: PLR0913 - one for each way to choose
    keys: Keys = None,
    *,
    trace_id: TraceId = None,
    domain: Domain = None,
    error_class: ErrorClass = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead attachment.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most to replay now, those that failed first.")] = 10_000,
    per_second: Annotated[
        float | None, typer.Option(min=0.001, help="How many become due a second.", show_default="by the settings")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replayed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have dead attachments tried anew, after what was wrong is mended.

    What is chosen in more than one way must fit all of them. Each replay is entered in the ledger with who asked for
    it. Exit code 1 when nothing was found, or one of them has been replayed as often as is allowed.
    """
    wanted = _wanted(trace_id, domain, error_class, since, until)
    if everything == (bool(keys) or wanted != FailedFilter()):
        raise typer.BadParameter("Name keys, say which by options, or say --all.")
    services = Services(load_settings().settings)
    if keys:
        # Every key is looked up before anything changes: a misspelt one changes nothing.
        wanted = wanted._replace(keys=_dead_keys([find_attachment(services.attachments, key) for key in keys]))
    found = services.attachments.failed(wanted, limit=limit + 1)
    more = len(found) > limit
    done = replay(services, found[:limit], datetime.now(UTC), per_second=per_second, dry_run=dry_run, more=more)
    if as_json:
        print_json(done)
    else:
        _tell(done, services.settings.attachments.max_replays)
    if done.exhausted or not done.replayed:
        raise typer.Exit(1)


def _wanted(
    trace_id: str | None, domain: str | None, error_class: str | None, since: str | None, until: str | None
) -> FailedFilter:
    now = datetime.now(UTC)
    return FailedFilter(
        trace_id=trace_id,
        domain=domain,
        error_class=error_class,
        since=moment_of(since, "--since", now),
        until=moment_of(until, "--until", now),
    )


def _dead_keys(records: Sequence[AttachmentRecord]) -> tuple[str, ...]:
    for record in records:
        if record.state is not AttachmentState.FAILED:
            complain(f"{record.attachment_key} is not dead: it is {record.state}.")
    return tuple(record.attachment_key for record in records)


def _tell(done: ReplayResult, max_replays: int) -> None:
    for key in done.replayed[:MOST_NAMED]:
        say(f"{key} {'would be' if done.dry_run else 'is'} tried anew.")
    if len(done.replayed) > MOST_NAMED:
        say(f"... and {len(done.replayed) - MOST_NAMED:,} more.")
    for key in done.exhausted:
        complain(f"{key} stays dead: it has been replayed {counted(max_replays, 'time')} (INGEST_MAX_REPLAYS).")
    if not done.replayed and not done.exhausted:
        complain("No dead attachments are like that.")
    if done.replayed and done.last_due_at:
        what = f"{counted(len(done.replayed), 'attachment')} {'would be replayed' if done.dry_run else 'replayed'}"
        say(f"{what}, {done.per_second:g} a second; the last one is due at {moment(done.last_due_at)}.")
    if done.more:
        complain("There are others; replay again for those, or raise --limit.")
