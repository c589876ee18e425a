"""Moments as people type them: a time, or how long ago."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
import typer

from ingest_project.attachments.queue import AttachmentRecord, FailedFilter
from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.attachments import Limit, page_of, shortened_list, show_page
from ingest_project.cli.key_lookup import find_attachment
from ingest_project.cli.unreadable_messages import list_messages, show_message
from ingest_project.core.console import (
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
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AGO = re.compile(r"(\d{1,5})([smhd])")


def moment_of(text: str | None, option: str, now: datetime) -> datetime | None:
    """The moment that is meant; None for none.

    Args:
        text: `2026-01-15`, `2026-01-15T10:30`, with or without an offset (UTC without one), or how long ago: `30m`,
            `2h`, `7d`.
        option: to name in the complaint.
        now: what `ago` counts from.

    Raises:
        typer.BadParameter: it is none of these.
    """
    if text is None:
        return None
    if ago := _AGO.fullmatch(text.strip()):
        return now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{option} takes a time like 2026-01-15T10:30 or 2h, not {text!r}.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class ReplayResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did, or would do.

    Args:
        dry_run: whether nothing was changed.
        replayed: attachments that are tried again, in the order they become due.
        exhausted: those that have been replayed as often as INGEST_MAX_REPLAYS allows; they stay dead.
        per_second: how fast they become due.
        first_due_at: None where none is tried again; the same for the last one.
        more: whether others were found that were too many for one replay.
    """

    dry_run: bool
    replayed: tuple[str, ...]
    exhausted: tuple[str, ...]
    per_second: float
    first_due_at: datetime | None
    last_due_at: datetime | None
    more: bool = False


def replay(  # noqa: PLR0913 - each is a choice of its own
    services: SystemResources,
    dead: Sequence[AttachmentRecord],
    now: datetime,
    *,
    per_second: float | None = None,
    dry_run: bool = False,
    more: bool = False,
) -> ReplayResult:
    """Have dead attachments tried anew. Doing it again finds them not dead any more, and leaves them alone.

    Args:
        services: the ledger, and how often and how fast is allowed.
        dead: in the order in which they are to be tried.
        now: the first is due.
        per_second: how fast they become due; INGEST_REPLAYS_PER_SECOND by default.
        dry_run: only say what would be done.
        more: whether others were found that are not among these.
    """
    settings = services.settings.attachments
    rate = per_second or settings.replays_per_second
    keys = [record.attachment_key for record in dead]
    if dry_run:
        exhausted = {record.attachment_key for record in dead if record.replays >= settings.max_replays}
        replayed, worn_out = [key for key in keys if key not in exhausted], [key for key in keys if key in exhausted]
    else:
        done = services.attachments.replay(keys, asked_by(), settings.max_replays, rate, now)
        replayed, worn_out = list(done.keys), list(done.exhausted)
    last = now + timedelta(seconds=(len(replayed) - 1) / rate) if replayed else None
    return ReplayResult(
        dry_run=dry_run,
        replayed=tuple(replayed),
        exhausted=tuple(worn_out),
        per_second=rate,
        first_due_at=now if replayed else None,
        last_due_at=last,
        more=more,
    )


def asked_by() -> str:
    """Who asks, for the audit: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


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
ErrorClass = Annotated[str | None, typer.Option(help="Only those that failed so, e.g. DownloadRejectedError.")]
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
    services = SystemResources(load_settings().settings)
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
    services = SystemResources(load_settings().settings)
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
    """Have dead attachments tried again, after what was wrong is mended.

    What is chosen in more than one way must fit all of them. Each replay is entered in the ledger with who asked for
    it. Exit code 1 when nothing was found, or one of them has been replayed as often as is allowed.
    """
    wanted = _wanted(trace_id, domain, error_class, since, until)
    if everything == (bool(keys) or wanted != FailedFilter()):
        raise typer.BadParameter("Name keys, say which by options, or say --all.")
    services = SystemResources(load_settings().settings)
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
