"""What every `ingest send` does with its message: refuse what a reader would refuse, deliver, and say so."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ingest_project.contracts.decoding import encode
from ingest_project.core.console import print_json, say
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.kafka.producer import ProducerRecord

Profile = Annotated[str | None, typer.Option("--format", metavar="PROFILE", help="Reader profile of the files.")]
TraceId = Annotated[str | None, typer.Option(help="Follows the message through logs and ledger; made up if absent.")]


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A message that the broker has.

    Args:
        topic: where it is.
        trace_id: to find it by; None where the message has no place for one.
        message: as it was sent, or as it may be printed.
    """

    topic: str
    trace_id: str | None
    message: Any


def deliver(services: SystemResources, topic: str, key: str, raw: bytes, trace_id: str | None) -> Sent:
    """Write one message and wait for the broker's confirmation.

    Raises:
        BrokerUnavailableError: it was not confirmed.
    """
    headers = (("trace-id", trace_id.encode()),) if trace_id else ()
    services.writer.send_all(topic, [ProducerRecord(raw, key=key.encode(), headers=headers)])
    return Sent(topic=topic, trace_id=trace_id, message=msgspec.json.decode(raw))


def checked(message: msgspec.Struct, decode: Callable[[bytes], object]) -> bytes:
    """The message as bytes, refused here if the reader would refuse it: a dead letter helps nobody."""
    try:
        raw = encode(message)
        decode(raw)
    except UnreadableMessageError as error:
        raise typer.BadParameter(str(error)) from error
    except UnicodeEncodeError as error:
        raise typer.BadParameter("Messages are UTF-8, and one of the values is not.") from error
    return raw


def tell(sent: Sent, what: str, *, as_json: bool) -> None:
    """Say what was sent and where."""
    if as_json:
        print_json(sent)
        return
    say(f"Sent to {sent.topic}: {what}.")
    if sent.trace_id:
        say(f"Its trace id is {sent.trace_id}.")
    say("`ingest status` shows how far it is.")


def absolute_if_here(source_type: str, path: str) -> str:
    """A local path from the root, so that it means the same to a process in another folder.

    What this host does not have is left as it is: the system that ingests it may run elsewhere.
    """
    return str(Path(path).absolute()) if source_type == "local" and os.path.lexists(path) else path


def pairs_of(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """The values of a repeatable option KEY=VALUE."""
    pairs: dict[str, Any] = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise typer.BadParameter(f"{option} takes KEY=VALUE, not {text!r}.")
        pairs[name] = value
    return pairs
