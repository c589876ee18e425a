"""`ingest activity` and `ingest crm`: query and repair the shipped streams.

`activity` shows the statistics of an hour and reads the topic again from its beginning. `crm` lists the messages that
are neither opportunity nor project, and retries them after a fix.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from ingest_project.core.console import (
    AsJson,
    add_row,
    ago,
    complain,
    counted,
    print_json,
    say,
    shortened,
    show,
    show_facts,
    show_list,
    stdout,
    table,
)
from ingest_project.core.errors import PermanentError
from ingest_project.core.keys import hour_key, parse_hour_key
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.database.engine import reading
from ingest_project.streams.crm.unidentified_store import KeptMessage, find, get
from ingest_project.streams.user_activity.hourly_statistics import HourOfType, statistics_of

activity_app = typer.Typer(help="What arrived on user-activity-events.", no_args_is_help=True)

Hour = Annotated[str | None, typer.Argument(metavar="HOUR", help="As Dagster calls it: 2026-01-15-10:00.")]


class HourFigures(msgspec.Struct, frozen=True):
    """What happened in an hour, the type with most events first."""

    hour: str
    types: tuple[HourOfType, ...]


class ReadAgain(msgspec.Struct, frozen=True):
    """Offsets that were read again or are planned to be read, by partition."""

    offsets: dict[int, int]


def register_activity(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(activity_app, name="activity")


@activity_app.command("hour")
def show_hour(hour: Hour = None, *, as_json: AsJson = False) -> None:
    """Show the events, users and sessions of an hour by type of event; of the present one where none is named."""
    begin = _parsed(hour) if hour else datetime.now(UTC)
    found = HourFigures(hour_key(begin), statistics_of(_services().engine, parse_hour_key(hour_key(begin))))
    if as_json:
        print_json(found)
    elif not found.types:
        complain(f"No events are counted for {found.hour}.")
    else:
        _show_hour(found)


@activity_app.command("from-beginning")
def from_beginning(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the topic from its first message: what was left out is stored, what is stored is replaced, each once.

    Turn the sensor user_activity_events_sensor off before, and on again afterwards.
    """
    from ingest_project.streams.user_activity.recompute_hours import read_again_from_beginning  # noqa: PLC0415 - imports dagster

    services = _services()
    topic = services.settings.topics.user_activity_events
    if services.stream_ranges.in_flight_batches(topic):
        raise PermanentError(
            f"Events of {topic} are being stored. Turn user_activity_events_sensor off and wait for its runs."
        )
    if not yes:
        typer.confirm(f"Read all of {topic} again?", abort=True)
    read = ReadAgain(read_again_from_beginning(services))
    if as_json:
        print_json(read)
    else:
        say(f"{counted(sum(read.offsets.values()), 'offset')} of {counted(len(read.offsets), 'partition')}.")


def _parsed(hour: str) -> datetime:
    try:
        return parse_hour_key(hour)
    except ValueError:
        raise typer.BadParameter(f"{hour!r} is no hour. Write it like 2026-01-15-10:00.") from None


def _show_hour(found: HourFigures) -> None:
    made = table("Type", "Events", "Users", "Sessions", "p50 ms", "p95 ms", numbers=["Events", "Users", "Sessions"])
    for one in found.types:
        add_row(made, one.event_type, one.events, one.users, one.sessions, *_times(one))
    show(made, found.hour)


def _times(one: HourOfType) -> tuple[str, str]:
    p50, p95 = one.processing_ms_p50, one.processing_ms_p95
    return ("" if p50 is None else f"{p50:g}", "" if p95 is None else f"{p95:g}")


crm_app = typer.Typer(help="What arrived on sales_events.", no_args_is_help=True)
unidentified_app = typer.Typer(help="Messages that are neither opportunity nor project.", no_args_is_help=True)
crm_app.add_typer(unidentified_app, name="unidentified")

MAX_SHOWN_REASON = 100
MAX_SHOWN_MESSAGE = 4_000

Limit = Annotated[int, typer.Option(min=1, help="Most messages to list.")]
MessageId = Annotated[str, typer.Argument(metavar="ID", help="The message's id, or the beginning of it.")]


class MessageList(msgspec.Struct, frozen=True):
    """Some of the messages.

    Args:
        more: whether there are others that were not asked for.
    """

    messages: tuple[KeptMessage, ...]
    more: bool


class RetryResult(msgspec.Struct, frozen=True):
    """What trying again brought, by message id."""

    identified: tuple[str, ...]
    unidentified: tuple[str, ...]


def register_crm(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(crm_app, name="crm")


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
    found = MessageList(messages[:limit], more=len(messages) > limit)
    if as_json:
        print_json(found)
    else:
        _show_list(found)


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
    """Look at messages again by today's rules; what is identified now becomes a record, once.

    Exit code 1 when one of the messages that were named is still not identified.
    """
    if bool(message_ids) == everything:
        raise typer.BadParameter("Name the messages, or say --all.")
    services = _services()
    # Every id is looked up before anything changes: a misspelt one changes nothing.
    chosen = [_find(services, message_id).message_id for message_id in message_ids] if message_ids else None
    from ingest_project.streams.crm.unidentified import retry as try_again  # noqa: PLC0415 - imports dagster

    done = try_again(services.engine, chosen)
    if as_json:
        print_json(RetryResult(done.identified, done.unidentified))
    else:
        _tell(done.identified, done.unidentified)
    if chosen and done.unidentified:
        raise typer.Exit(1)


def _services() -> SystemResources:
    return SystemResources(load_settings().settings)


def _find(services: SystemResources, message_id: str) -> KeptMessage:
    with reading(services.engine) as connection:
        message = get(connection, message_id)
    if message is None:
        raise PermanentError(f"No one message is called {message_id!r}. See: ingest crm unidentified list --all.")
    return message


def _show_list(found: MessageList) -> None:
    made = table("Id", "Received", "Bytes", "Reason", numbers=["Bytes"])
    for message in found.messages:
        state = f"became {message.identified_as} {message.event_id}" if message.identified_at else message.reason
        reason = shortened(state, MAX_SHOWN_REASON)
        add_row(made, message.message_id, ago(message.received_at), message.size_bytes, reason)
    show_list(made, "messages", more=found.more)


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


def _tell(identified: Sequence[str], unidentified: Sequence[str]) -> None:
    for message_id in identified:
        say(f"{message_id} is identified and stored.")
    for message_id in unidentified:
        complain(f"{message_id} is still not identified.")
    if not identified and not unidentified:
        say("Nothing waits to be identified.")
    else:
        say(f"{counted(len(identified), 'message')} identified.")
