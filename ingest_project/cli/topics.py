"""`ingest topics`: have messages put aside unseen that keep a topic from moving."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from ingest_project.core.console import AsJson, add_row, ago, complain, counted, print_json, say, show_list, table
from ingest_project.core.errors import IngestError
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.operations.topics import ConsumedTopic, consumed_position, intakes, saved_positions
from ingest_project.platform.dagster.run_records import DagsterRecords, DagsterRecordsUnavailableError
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.work_queue.skipped_offsets import SkippedOffsets

MOST_AT_A_TIME = 100_000

app = typer.Typer(help="Messages that keep a topic from moving, and the way past them.", no_args_is_help=True)

Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="That is read, e.g. file-event-queue.")]
Partition = Annotated[int, typer.Argument(metavar="PARTITION", min=0, help="Of the topic.")]
Offset = Annotated[int, typer.Argument(metavar="OFFSET", min=0, help="Of the first message to skip.")]
Count = Annotated[int, typer.Option(min=1, max=MOST_AT_A_TIME, help="How many messages to skip.")]
Reason = Annotated[str, typer.Option(help="Why; it is written beside each of them.")]
Limit = Annotated[int, typer.Option(min=1, help="Most to list.")]


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="topics")


@app.command("skip")
def skip(topic: Topic, partition: Partition, offset: Offset, *, reason: Reason, count: Count = 1) -> None:
    """Have messages put aside unseen: they become dead letters, bytes and headers unchanged, and the topic goes on.

    Safe while everything runs: the next tick of the topic's sensor that reads them does it. Exit code 1 when one of
    them has been taken already or is not there yet; nothing changes then.
    """
    services = SystemResources(load_settings().settings)
    intake = _intake_of(services, topic)
    place = consumed_position(intake, services)
    topic_id = place.reader.topic_id(place.topic)
    _require_ahead(services, intake, place.topic, partition, offset)
    _require_there(place.reader.end_offsets(place.topic), topic, partition, offset + count)
    asked = SkippedOffsets(
        topic=place.topic,
        topic_id=topic_id,
        partition=partition,
        first_offset=offset,
        end_offset=offset + count,
        reason=reason,
        asked_by=_user(),
        asked_at=datetime.now(UTC),
    )
    if services.skipped_offsets.add(asked):
        say(f"{counted(count, 'message')} of {topic}[{partition}] from offset {offset} on will be put aside unseen.")
    else:
        say("That was asked for before.")


@app.command("skipped")
def skipped(*, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List what was asked to be skipped, the newest first."""
    services = SystemResources(load_settings().settings)
    found = services.skipped_offsets.list(limit + 1)
    if as_json:
        print_json({"skipped": found[:limit], "more": len(found) > limit})
        return
    made = table("Topic", "Partition", "From", "To", "Asked", "By", "Reason", numbers=["Partition", "From", "To"])
    for one in found[:limit]:
        last = one.end_offset - 1
        add_row(made, one.topic, one.partition, one.first_offset, last, ago(one.asked_at), one.asked_by, one.reason)
    show_list(made, "requests", more=len(found) > limit)


def _intake_of(services: SystemResources, topic: str) -> ConsumedTopic:
    topics = intakes(services.settings)
    if topic in {intake.topic for intake in topics.streams}:
        raise IngestError(
            f"{topic} is a stream, where a message that cannot be stored becomes a dead letter or is kept apart. "
            "There is nothing to skip."
        )
    queues = [*topics.polling, *topics.files, *topics.attachments]
    found = next((intake for intake in queues if intake.topic == topic), None)
    if found is None:
        raise IngestError(f"{topic} is not read here. Read are: {', '.join(intake.topic for intake in queues)}.")
    return found


def _require_ahead(services: SystemResources, intake: ConsumedTopic, topic: str, partition: int, offset: int) -> None:
    """Refuse what the saved cursor has passed."""
    try:
        sensors = DagsterRecords(services.settings).sensors()
    except DagsterRecordsUnavailableError as error:
        complain(f"{error} Whether these messages have been taken already is not known.")
        return
    positions: Positions | None = saved_positions(intake.sensor, topic, sensors)
    reached = positions.next_offsets.get(partition, 0) if positions else 0
    if offset < reached:
        raise IngestError(f"{topic}[{partition}] has been read to offset {reached}: {offset} has been taken already.")


def _require_there(ends: dict[int, int], topic: str, partition: int, end: int) -> None:
    if partition not in ends:
        raise IngestError(f"{topic} has no partition {partition}.")
    if end > ends[partition]:
        raise IngestError(f"{topic}[{partition}] ends before offset {ends[partition]}: name messages that are there.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"
