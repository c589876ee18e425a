"""`ingest topics` and `ingest dlq`: skip messages that stop a topic, and show messages that could not be read at all.

A message that could not be read became no job, file or attachment, so no work queue knows it: `dlq messages` reads the
dead-letter topics themselves.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from ingest_project.attachments.commands import dlq_app
from ingest_project.contracts.attachments import decode_download_task
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
from ingest_project.core.errors import IngestError
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations.redrive import dead_letter_topics
from ingest_project.operations.snapshot import consumed_topics
from ingest_project.operations.topics import cluster_of, saved_positions
from ingest_project.platform.capability import ConsumedTopic
from ingest_project.platform.dagster.run_records import DagsterRecords, DagsterRecordsUnavailableError
from ingest_project.platform.kafka.dead_letters import DeadLetter, SkippedOffsets, as_text, letter_at, newest_letters

MAX_SKIPPED = 100_000
MAX_SHOWN_REASON = 80
MAX_SHOWN_BYTES = 4_096
LOCATION = re.compile(r"([^/]+)/([0-9]{1,9})/([0-9]{1,18})")

topics_app = typer.Typer(help="Messages that stop a topic, and how to skip them.", no_args_is_help=True)

Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="Topic that is read, e.g. file-event-queue.")]
Partition = Annotated[int, typer.Argument(metavar="PARTITION", min=0, help="Of the topic.")]
Offset = Annotated[int, typer.Argument(metavar="OFFSET", min=0, help="Of the first message to skip.")]
Count = Annotated[int, typer.Option(min=1, max=MAX_SKIPPED, help="How many messages to skip.")]
Reason = Annotated[str, typer.Option(help="Why; it is stored with each of them.")]
Limit = Annotated[int, typer.Option(min=1, help="Most to list.")]
Topics = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Only this topic; may be given again.", show_default="every topic of dead letters"
    ),
]
Location = Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET", help="As `ingest dlq messages` lists it.")]


class DeadMessageList(msgspec.Struct, frozen=True):
    """Some of the messages that could not be read.

    Args:
        more: there are others.
    """

    messages: tuple[DeadLetter, ...]
    more: bool


def register_topics(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(topics_app, name="topics")


def register_dlq(app: typer.Typer) -> None:
    """Add the commands: those of attachments, and those of messages that could not be read."""
    app.add_typer(dlq_app, name="dlq")


@topics_app.command("skip")
def skip(topic: Topic, partition: Partition, offset: Offset, *, reason: Reason, count: Count = 1) -> None:
    """Skip messages: they become dead letters, bytes and headers unchanged, and the topic goes on.

    Safe while everything runs: the next tick of the topic's sensor that reads them skips them. Exit code 1 when one of
    them has been consumed already or does not exist yet; nothing changes then.
    """
    services = SystemResources(load_settings().settings)
    consumed = _consumed_topic(services, topic)
    cluster = cluster_of(consumed, services)
    topic_id = cluster.reader.topic_id(cluster.topic)
    _require_ahead(services, consumed, cluster.topic, partition, offset)
    _require_existing(cluster.reader.end_offsets(cluster.topic), topic, partition, offset + count)
    skipped_offsets = SkippedOffsets(
        topic=cluster.topic,
        topic_id=topic_id,
        partition=partition,
        first_offset=offset,
        end_offset=offset + count,
        reason=reason,
        asked_by=_user(),
        asked_at=datetime.now(UTC),
    )
    if services.skipped_offsets.add(skipped_offsets):
        say(f"{counted(count, 'message')} of {topic}[{partition}] from offset {offset} on will be skipped.")
    else:
        say("These are skipped already.")


@topics_app.command("skipped")
def skipped(*, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List skipped offsets, the newest first."""
    services = SystemResources(load_settings().settings)
    found = services.skipped_offsets.list(limit + 1)
    if as_json:
        print_json({"skipped": found[:limit], "more": len(found) > limit})
        return
    made = table("Topic", "Partition", "From", "To", "Requested", "By", "Reason", numbers=["Partition", "From", "To"])
    for one in found[:limit]:
        last = one.end_offset - 1
        add_row(made, one.topic, one.partition, one.first_offset, last, ago(one.asked_at), one.asked_by, one.reason)
    show_list(made, "requests", more=len(found) > limit)


@dlq_app.command("messages")
def list_messages(
    *,
    topic: Topics = None,
    limit: Annotated[int, typer.Option(min=1, help="Most messages to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List messages that could not be read at all, the newest first, with location, reason and first bytes."""
    services = SystemResources(load_settings().settings)
    found = _newest(services, topic or list(dead_letter_topics(services)), limit)
    if as_json:
        print_json(found)
        return
    made = table("Location", "Failed", "Was", "Error class", "Bytes", "Reason", "Begins", numbers=["Bytes"])
    for one in found.messages:
        failed = ago(one.failed_at) if one.failed_at else None
        reason = shortened(one.reason or "", MAX_SHOWN_REASON)
        add_row(made, one.place, failed, one.original_location, one.error_class, one.size_bytes, reason, one.begins)
    show_list(made, "messages", more=found.more, which="newest")


@dlq_app.command("message")
def show_message(
    location: Location,
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Write its bytes as they are, and nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one message that could not be read: its headers and its bytes. Exit code 1 when it does not exist."""
    letter = letter_at(SystemResources(load_settings().settings).range_reader, *_parsed(location))
    if letter is None:
        complain(f"There is no message at {location}; it may have expired.")
        raise typer.Exit(1)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
    elif as_json:
        print_json(letter)
    else:
        _show(letter)


def _consumed_topic(services: SystemResources, name: str) -> ConsumedTopic:
    topics = consumed_topics(services)
    found = next((topic for topic in topics if topic.topic == name), None)
    if found is None:
        known = ", ".join(topic.topic for topic in topics if topic.skippable)
        raise IngestError(f"{name} is not read here. Read are: {known}.")
    if not found.skippable:
        raise IngestError(
            f"{name} is a stream, where a message that cannot be stored becomes a dead letter or is kept apart. "
            "There is nothing to skip."
        )
    return found


def _require_ahead(services: SystemResources, consumed: ConsumedTopic, topic: str, partition: int, offset: int) -> None:
    """Raise IngestError where the saved cursor has passed the offset."""
    try:
        sensors = DagsterRecords(services.settings).sensors()
    except DagsterRecordsUnavailableError as error:
        complain(f"{error} It is unknown if these messages have been consumed already.")
        return
    positions = saved_positions(consumed.sensor, topic, sensors)
    reached = positions.next_offsets.get(partition, 0) if positions else 0
    if offset < reached:
        raise IngestError(
            f"{topic}[{partition}] has been read to offset {reached}: {offset} has been consumed already."
        )


def _require_existing(ends: dict[int, int], topic: str, partition: int, end: int) -> None:
    if partition not in ends:
        raise IngestError(f"{topic} has no partition {partition}.")
    if end > ends[partition]:
        raise IngestError(f"{topic}[{partition}] ends before offset {ends[partition]}: name messages that exist.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _newest(services: SystemResources, topics: list[str] | tuple[str, ...], limit: int) -> DeadMessageList:
    downloads = services.settings.topics.downloads_dlq
    found = [
        letter
        for topic in topics
        for letter in newest_letters(
            services.range_reader, topic, limit + 1, _is_no_task if topic == downloads else lambda _: True
        )
    ]
    found.sort(key=lambda letter: letter.failed_at.timestamp() if letter.failed_at else 0.0, reverse=True)
    return DeadMessageList(tuple(found[:limit]), more=len(found) > limit)


def _is_no_task(value: bytes | None) -> bool:
    """Tell whether a letter on `downloads.dlq` belongs to no attachment: those of attachments are in a work queue."""
    try:
        decode_download_task(value)
    except IngestError:
        return True
    return False


def _parsed(text: str) -> tuple[str, int, int]:
    if (found := LOCATION.fullmatch(text)) is None:
        raise typer.BadParameter(f"{text!r} is no location. Example: events.raw.dlq/0/17.")
    return found[1], int(found[2]), int(found[3])


def _show(letter: DeadLetter) -> None:
    show_facts(
        [
            ("location", letter.place),
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
    say(as_text(letter.value and letter.value[:MAX_SHOWN_BYTES]) or "It has no bytes.")
    if letter.size_bytes > MAX_SHOWN_BYTES:
        complain(f"The first {MAX_SHOWN_BYTES:,} bytes; --raw writes all of them.")
