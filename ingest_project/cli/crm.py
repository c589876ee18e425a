"""`ingest crm`: messages that are neither opportunity nor project: why, and trying them again after a fix."""

from __future__ import annotations

from collections.abc import Sequence
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
    show_facts,
    show_list,
    stdout,
    table,
)
from ingest_project.core.errors import PermanentError
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.database.engine import reading
from ingest_project.streams.crm.unidentified_store import KeptMessage, find, get

app = typer.Typer(help="What arrived on sales_events.", no_args_is_help=True)
unidentified_app = typer.Typer(help="Messages that are neither opportunity nor project.", no_args_is_help=True)
app.add_typer(unidentified_app, name="unidentified")

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


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="crm")


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
        _show(message)


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
    made = table("Id", "ConsumerRecord", "Bytes", "Reason", numbers=["Bytes"])
    for message in found.messages:
        state = f"became {message.identified_as} {message.event_id}" if message.identified_at else message.reason
        reason = shortened(state, MAX_SHOWN_REASON)
        add_row(made, message.message_id, ago(message.received_at), message.size_bytes, reason)
    show_list(made, "messages", more=found.more)


def _show(message: KeptMessage) -> None:
    say(message.message_id, style="bold")
    became = f"{message.identified_as} {message.event_id}" if message.identified_at else None
    show_facts(
        [
            ("Reason", message.reason),
            ("Became", became),
            ("Position", str(message.position)),
            ("Written", message.kafka_timestamp),
            ("ConsumerRecord", message.received_at),
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
