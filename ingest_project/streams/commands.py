"""`ingest streams`, `ingest activity` and `ingest crm`: query and repair the shipped streams.

`streams` shows how far each partition is stored. `activity` shows the statistics of an hour. `crm` lists the messages
that are neither opportunity nor project, and retries them after a fix. Each reads its topic again from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from ingest_project.core.console import (
    AsJson,
    Limit,
    add_row,
    ago,
    complain,
    counted,
    print_json,
    report_check,
    say,
    shortened,
    show,
    show_facts,
    show_list,
    stdout,
    table,
)
from ingest_project.core.errors import BrokerUnavailableError, PermanentError
from ingest_project.core.items import hour_key, parse_hour_key
from ingest_project.core.settings import load_settings
from ingest_project.platform.database import reading
from ingest_project.streams.crm.unidentified import KeptMessage, find, get
from ingest_project.streams.positions import LostOffsets
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.user_activity.hours import HourOfType, statistics_of

streams_app = typer.Typer(help="How far the streams are stored.", no_args_is_help=True)
activity_app = typer.Typer(help="What arrived on user-activity-events.", no_args_is_help=True)
crm_app = typer.Typer(help="What arrived on sales_events.", no_args_is_help=True)
unidentified_app = typer.Typer(help="Messages that are neither opportunity nor project.", no_args_is_help=True)
crm_app.add_typer(unidentified_app, name="unidentified")

MAX_SHOWN_REASON = 100
MAX_SHOWN_MESSAGE = 4_000
MAX_LOST = 50

Hour = Annotated[str | None, typer.Argument(metavar="HOUR", help="As Dagster calls it: 2026-01-15-10:00.")]
FromBeginning = Annotated[
    bool,
    typer.Option(
        "--read-from-beginning", help="Store everything that the topic still has, each message once, and end."
    ),
]
MessageId = Annotated[str, typer.Argument(metavar="ID", help="The message's id, or the beginning of it.")]


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One partition of a stream.

    Args:
        next_offset: the first offset that is not stored.
        waiting: messages after it; None where the broker does not answer or has no such partition any more.
        attempts: runs in a row that did not move the position.
        reason: why the last run failed.
    """

    stream: str
    topic: str
    topic_id: str
    partition: int
    next_offset: int
    waiting: int | None
    attempts: int
    reason: str | None
    updated_at: datetime


class StreamList(msgspec.Struct, frozen=True):
    """Partitions of all streams, the offsets that were lost last, and why the broker cannot be queried."""

    partitions: tuple[PartitionStatus, ...]
    lost: tuple[LostOffsets, ...]
    problem: str | None


@streams_app.command("positions")
def show_positions(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also of topics that were created again since.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show position, lag and last failure of each partition, and the offsets that were lost.

    Exit code 1 when Kafka does not answer: then no lag is known.
    """
    found = _stream_list(_services(), everything=everything)
    if as_json:
        print_json(found)
    else:
        _print_positions(found)
    if found.problem:
        raise typer.Exit(1)


def _print_positions(found: StreamList) -> None:
    made = table("Topic", "Partition", "Next offset", "Waiting", "Moved", "Failures", "Reason", numbers=["Waiting"])
    for one in found.partitions:
        waiting = "unknown" if one.waiting is None else one.waiting
        why = shortened(one.reason or "", MAX_SHOWN_REASON)
        add_row(made, one.topic, one.partition, str(one.next_offset), waiting, ago(one.updated_at), one.attempts, why)
    show_list(made, "partitions", more=False)
    for lost in found.lost:
        complain(f"Lost: {lost}")
    if found.problem:
        complain(found.problem)


@streams_app.command("check")
def check_streams(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH...]", help="YAML files, or folders of them.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check the declared streams of the settings, or these. Exit code 1 when one is broken.

    Declared datasets are checked by `ingest dataset check`.
    """
    from ingest_project.readers.datasets import check_declarations
    from ingest_project.streams.declaration import load_streams, read_stream

    found = check_declarations(paths, read_stream, load_streams)
    report_check(found.problems, counted(len(found.usable), "stream"), found.others_by("dataset"), as_json=as_json)


def _stream_list(services: StreamResources, *, everything: bool) -> StreamList:
    partitions: list[PartitionStatus] = []
    lost: list[LostOffsets] = []
    problem: str | None = None
    for positions in (one.positions for one in services.streams):
        ends: dict[int, int] = {}
        if problem is None:
            try:
                ends = services.reader.end_offsets(positions.topic)
            except BrokerUnavailableError as error:
                problem = str(error)
        current = {one.topic_partition for one in positions.current().values()}
        for one in positions.all():
            if not (everything or one.topic_partition in current):
                continue
            end = ends.get(one.partition) if one.topic_partition in current else None
            own = {name: getattr(one, name) for name in PartitionStatus.__struct_fields__ if name != "waiting"}
            partitions.append(PartitionStatus(**own, waiting=None if end is None else max(0, end - one.next_offset)))
        lost += positions.lost(limit=MAX_LOST)
    return StreamList(tuple(partitions), tuple(lost), problem)


@activity_app.command("hour")
def show_hour(hour: Hour = None, *, as_json: AsJson = False) -> None:
    """Show the events, users and sessions of an hour by type of event; of the present one where none is named."""
    named = hour_key(_parsed(hour) if hour else datetime.now(UTC))
    types = statistics_of(_services().engine, parse_hour_key(named))
    if as_json:
        print_json({"hour": named, "types": types})
    elif not types:
        complain(f"No events are counted for {named}.")
    else:
        show(_types(types), named)


@activity_app.callback(invoke_without_command=True)
def activity(context: typer.Context, *, read_from_beginning: FromBeginning = False) -> None:
    """Query and repair the stream of user-activity-events."""
    _replay_or_help(context, "activity", read_from_beginning)


@crm_app.callback(invoke_without_command=True)
def crm(context: typer.Context, *, read_from_beginning: FromBeginning = False) -> None:
    """Query and repair the stream of sales_events."""
    _replay_or_help(context, "crm", read_from_beginning)


@streams_app.command("read-from-beginning")
def stream_from_beginning(
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="activity, crm, or a declared stream.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Store everything that a stream's topic still has, each message once; its sensor is stopped meanwhile."""
    _read_from_beginning(stream, as_json=as_json)


def _replay_or_help(context: typer.Context, stream: str, wanted: bool) -> None:  # noqa: FBT001 - an option
    if wanted and context.invoked_subcommand:
        raise typer.BadParameter("--read-from-beginning is a command of its own.")
    if wanted:
        _read_from_beginning(stream, as_json=False)


def _read_from_beginning(stream: str, *, as_json: bool) -> None:
    from ingest_project.streams.from_beginning import read_from_beginning  # brings Kafka's client

    offsets = read_from_beginning(_services(), stream)
    if as_json:
        print_json({"offsets": offsets})
    else:
        say(f"{counted(sum(offsets.values()), 'offset')} of {counted(len(offsets), 'partition')}.")


def _parsed(hour: str) -> datetime:
    try:
        return parse_hour_key(hour)
    except ValueError:
        raise typer.BadParameter(f"{hour!r} is no hour. Write it like 2026-01-15-10:00.") from None


def _types(types: Sequence[HourOfType]) -> Table:
    made = table("Type", "Events", "Users", "Sessions", "p50 ms", "p95 ms", numbers=["Events", "Users", "Sessions"])
    for one in types:
        add_row(made, one.event_type, one.events, one.users, one.sessions, *_times(one))
    return made


def _times(one: HourOfType) -> tuple[str, str]:
    p50, p95 = one.processing_ms_p50, one.processing_ms_p95
    return ("" if p50 is None else f"{p50:g}", "" if p95 is None else f"{p95:g}")


@unidentified_app.command("list")
def list_unidentified(
    *,
    search: Annotated[str | None, typer.Option(help="Only messages with this text in id, reason or message.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were identified later.")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List messages that could not be identified, in the order of their ids."""
    with reading(_services().engine) as connection:
        messages = find(connection, open_only=not everything, text=search, limit=limit + 1)
    more = len(messages) > limit
    if as_json:
        print_json({"messages": messages[:limit], "more": more})
    else:
        show_list(_messages(messages[:limit]), "messages", more=more)


@unidentified_app.command("show")
def show_unidentified(message_id: MessageId, *, as_json: AsJson = False) -> None:
    """Show a message whole, with its position and the reason."""
    message = _find(_services(), message_id)
    if as_json:
        print_json(message)
    else:
        _show_message(message)


@unidentified_app.command("retry")
def retry_unidentified(
    message_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Ids of messages, or the beginnings of them.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every message that is not identified.")] = False,
    as_json: AsJson = False,
) -> None:
    """Identify messages again by today's rules; what is identified now becomes a record, once.

    Exit code 1 when one of the messages that were named is still not identified.
    """
    if bool(message_ids) == everything:
        raise typer.BadParameter("Name the messages, or say --all.")
    services = _services()
    # Every id is looked up before anything changes: a misspelt one changes nothing.
    chosen = [_find(services, message_id).message_id for message_id in message_ids] if message_ids else None
    from ingest_project.streams.crm.sink import retry as try_again  # heavy

    done = try_again(services.engine, chosen)
    if as_json:
        print_json({"identified": done.identified, "unidentified": done.unidentified})
    else:
        _show_result(done.identified, done.unidentified)
    if chosen and done.unidentified:
        raise typer.Exit(1)


def _services() -> StreamResources:
    return StreamResources(load_settings().settings)


def _find(services: StreamResources, message_id: str) -> KeptMessage:
    with reading(services.engine) as connection:
        message = get(connection, message_id)
    if message is None:
        raise PermanentError(f"No one message is called {message_id!r}. See: ingest crm unidentified list --all.")
    return message


def _messages(messages: Sequence[KeptMessage]) -> Table:
    made = table("Id", "Received", "Bytes", "Reason", numbers=["Bytes"])
    for message in messages:
        state = f"became {message.identified_as} {message.event_id}" if message.identified_at else message.reason
        reason = shortened(state, MAX_SHOWN_REASON)
        add_row(made, message.message_id, ago(message.received_at), message.size_bytes, reason)
    return made


def _show_message(message: KeptMessage) -> None:
    say(message.message_id, style="bold")
    became = f"{message.identified_as} {message.event_id}" if message.identified_at else None
    show_facts(
        [
            ("Reason", message.reason),
            ("Became", became),
            ("Position", str(message.position)),
            ("Written", message.kafka_timestamp),
            ("Received", message.received_at),
            ("Tried again", f"{message.retries} times" if message.retries else None),
            ("Bytes", message.size_bytes),
        ]
    )
    stdout().print()
    if message.payload_text is None:
        say("Not UTF-8; --json has its bytes in base64." if message.payload else "It has no bytes.")
    else:
        say(shortened(message.payload_text, MAX_SHOWN_MESSAGE))


def _show_result(identified: Sequence[str], unidentified: Sequence[str]) -> None:
    for message_id in identified:
        say(f"{message_id} is identified and stored.")
    for message_id in unidentified:
        complain(f"{message_id} is still not identified.")
    if not identified and not unidentified:
        say("Nothing waits to be identified.")
    else:
        say(f"{counted(len(identified), 'message')} identified.")
