"""`ingest dlq messages` and `ingest dlq message`: what could not be read at all, on every topic of dead letters.

Such a message became no job, file or attachment, so that no ledger knows it: the topics themselves are looked at.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated

import msgspec
import typer

from ingest_project.contracts.attachments import decode_download_task
from ingest_project.core.console import (
    AsJson,
    add_row,
    ago,
    complain,
    print_json,
    say,
    shortened,
    show_facts,
    show_list,
    stdout,
    table,
)
from ingest_project.core.errors import IngestError
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.kafka.dead_letters import DeadLetter, as_text, letter_at, newest_letters

MAX_SHOWN_REASON = 80
MAX_PAGE_BYTES = 4_096
PLACE = re.compile(r"([^/]+)/([0-9]{1,9})/([0-9]{1,18})")

Topic = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Only this topic; may be given again.", show_default="every topic of dead letters"
    ),
]
Place = Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET", help="Where it is, as the list says.")]


class DeadMessageList(msgspec.Struct, frozen=True):
    """Some of the messages that could not be read.

    Args:
        more: whether there are others that were not asked for.
    """

    messages: tuple[DeadLetter, ...]
    more: bool


def list_messages(
    *,
    topic: Topic = None,
    limit: Annotated[int, typer.Option(min=1, help="Most messages to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List messages that could not be read at all, the newest first, with where they were, why and how they begin."""
    services = SystemResources(load_settings().settings)
    found = _newest(services, topic or services.settings.topics.dead_letters, limit)
    if as_json:
        print_json(found)
        return
    made = table("Place", "Failed", "Was", "Error class", "Bytes", "Reason", "Begins", numbers=["Bytes"])
    for one in found.messages:
        failed = ago(one.failed_at) if one.failed_at else None
        reason = shortened(one.reason or "", MAX_SHOWN_REASON)
        add_row(made, one.place, failed, one.original_location, one.error_class, one.size_bytes, reason, one.begins)
    show_list(made, "messages", more=found.more, which="newest")


def show_message(
    place: Place,
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Write its bytes as they are, and nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one message that could not be read: its headers and its bytes. Exit code 1 when it is not there."""
    letter = letter_at(SystemResources(load_settings().settings).range_reader, *_place(place))
    if letter is None:
        complain(f"There is no message at {place}, or none any more.")
        raise typer.Exit(1)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
    elif as_json:
        print_json(letter)
    else:
        _show(letter)


def _newest(services: SystemResources, topics: list[str] | tuple[str, ...], limit: int) -> DeadMessageList:
    downloads = services.settings.topics.downloads_dlq
    found = [
        letter
        for topic in topics
        for letter in newest_letters(
            services.range_reader, topic, limit + 1, is_no_task if topic == downloads else lambda _: True
        )
    ]
    found.sort(key=lambda letter: letter.failed_at.timestamp() if letter.failed_at else 0.0, reverse=True)
    return DeadMessageList(tuple(found[:limit]), more=len(found) > limit)


def is_no_task(value: bytes | None) -> bool:
    """Whether a letter on `downloads.dlq` is of no attachment: those of attachments are in the ledger."""
    try:
        decode_download_task(value)
    except IngestError:
        return True
    return False


def _place(text: str) -> tuple[str, int, int]:
    if (place := PLACE.fullmatch(text)) is None:
        raise typer.BadParameter(f"{text!r} is no place. Example: events.raw.dlq/0/17.")
    return place[1], int(place[2]), int(place[3])


def _show(letter: DeadLetter) -> None:
    show_facts(
        [
            ("place", letter.place),
            ("was", letter.original_location),
            ("failed", letter.failed_at),
            ("error class", letter.error_class),
            ("reason", letter.reason),
            ("attempt", letter.attempt),
            ("trace id", letter.trace_id),
            ("key", letter.key),
            ("bytes", letter.size_bytes),
        ]
    )
    stdout().print()
    say(as_text(letter.value and letter.value[:MAX_PAGE_BYTES]) or "It has no bytes.")
    if letter.size_bytes > MAX_PAGE_BYTES:
        complain(f"The first {MAX_PAGE_BYTES:,} bytes; --raw writes all of them.")
