"""`ingest dlq`: dead letters and dead attachments, and how to try them again; `ingest topics`: skip messages.

A message that could not be read did not become a job, file or attachment, so it is in no work queue: these commands
read the dead-letter topics themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ingest_project.attachments import commands as of_attachments
from ingest_project.attachments.commands import Domain, ErrorClass, Since, TraceId, Until
from ingest_project.cli.actions import DryRun, Limit, Reason
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
    show,
    show_facts,
    show_list,
    stdout,
    table,
)
from ingest_project.core.console import Limit as MostToList
from ingest_project.core.errors import IngestError
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import MAX_SKIPPED, SKIP
from ingest_project.operations.redrive import (
    REDRIVE,
    InspectedLetter,
    LetterFilter,
    Redriver,
    dead_letter_topics,
    failed_last,
)
from ingest_project.operations.topics import dead_letters_on
from ingest_project.platform.actions import DEFAULT_LIMIT, ActionRequest, checked, login_name, perform, perform_command
from ingest_project.platform.items import LARGEST_OFFSET, Position
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.dead_letters import as_text, shown_text

MAX_SHOWN_REASON = 80
MAX_SHOWN_CHARACTERS = 4_096

app = typer.Typer(help="Dead letters and dead attachments: show the reasons, and retry them.", no_args_is_help=True)
topics_app = typer.Typer(help="Skip messages that block a topic.", no_args_is_help=True)

TopicOrLocation = Annotated[
    str, typer.Argument(metavar="TOPIC", help="Topic of dead letters, or the location of one: TOPIC/PARTITION/OFFSET.")
]
Letters = Annotated[
    list[str] | None, typer.Option(metavar="TOPIC/PARTITION/OFFSET", help="Only this one; may be given again.")
]
ReasonText = Annotated[str | None, typer.Option(help="Only those with this text in their reason.")]
LetterPartition = Annotated[
    int | None, typer.Option(min=0, max=LARGEST_OFFSET, help="Only this partition of the dead-letter topic.")
]
FirstOffset = Annotated[
    int | None, typer.Option(min=0, max=LARGEST_OFFSET, help="With a partition: from this offset on.")
]
LastOffset = Annotated[int | None, typer.Option(min=0, max=LARGEST_OFFSET, help="With a partition: up to this offset.")]
Again = Annotated[bool, typer.Option("--again", help="Also those that were redriven before.")]
Topics = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Only this topic; repeatable.", show_default="every dead-letter topic"),
]
Topic = Annotated[
    str | None,
    typer.Argument(
        metavar="TOPIC", help="List the dead letters of this topic.", show_default="dead attachments instead"
    ),
]
LocationOrKey = Annotated[
    str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET|KEY", help="Location of a letter, or key of an attachment.")
]
Partition = Annotated[int, typer.Argument(metavar="PARTITION", min=0, help="Of the topic.")]
Offset = Annotated[int, typer.Argument(metavar="OFFSET", min=0, help="Offset of the first message to skip.")]
Count = Annotated[int, typer.Option(min=1, max=MAX_SKIPPED, help="Number of messages to skip.")]
SkippedTopic = Annotated[str, typer.Argument(metavar="TOPIC", help="Topic with the messages, e.g. file-event-queue.")]
WhySkipped = Annotated[str, typer.Option(help="Reason; stored with each of them.")]
Raw = Annotated[bool, typer.Option("--raw", help="Write only the letter's unchanged bytes.")]

app.command("replay")(of_attachments.replay_dead)


@app.command("topics")
def list_topics(*, as_json: AsJson = False) -> None:
    """List the dead-letter topics with their numbers of letters and the topics that the letters come from."""
    services = SystemResources(load_settings().settings)
    found = [
        (topic, [one.topic for one in origins], letters)
        for topic, origins in dead_letter_topics(services).items()
        if (letters := dead_letters_on(services, topic))
    ]
    if as_json:
        topics = [
            {"topic": topic, "of": origins, "written": letters.written, "kept": letters.kept}
            for topic, origins, letters in found
        ]
        print_json({"topics": topics})
        return
    made = table("Topic", "Kept", "Ever written", "Letters of", numbers=["Kept", "Ever written"])
    for topic, origins, letters in found:
        add_row(made, topic, letters.kept, letters.written, ", ".join(origins))
    show(made)


@app.command("list")
def list_dead(  # noqa: PLR0913 - one for each way to choose
    topic: Topic = None,
    *,
    trace_id: TraceId = None,
    domain: Domain = None,
    error_class: ErrorClass = None,
    since: Since = None,
    until: Until = None,
    limit: MostToList = 50,
    as_json: AsJson = False,
) -> None:
    """List the dead letters of a topic, the newest first; without a topic, dead attachments."""
    chosen = {"trace_id": trace_id, "error_class": error_class, "since": since, "until": until}
    if topic is None:
        of_attachments.list_dead(domain=domain, limit=limit, as_json=as_json, **chosen)
        return
    if domain:
        raise typer.BadParameter("Dead letters have no domain; without TOPIC, dead attachments are listed.")
    given = {"topic": topic} | {name: value for name, value in chosen.items() if value}
    wanted = LetterFilter.of(checked(REDRIVE, ActionRequest(parameters=given, dry_run=True)))
    found = Redriver(SystemResources(load_settings().settings), topic).newest(wanted.includes, limit + 1)
    _print_list(found, limit, as_json=as_json)


@app.command("messages")
def list_messages(*, topic: Topics = None, limit: MostToList = 50, as_json: AsJson = False) -> None:
    """List messages that became dead letters, newest first, with location, reason and first bytes."""
    services = SystemResources(load_settings().settings)
    wanted = LetterFilter.of(ActionRequest())
    found: list[InspectedLetter] = []
    for one in topic or dead_letter_topics(services):
        is_downloads = one == services.settings.topics.downloads_dlq
        found += Redriver(services, one).newest(_no_task if is_downloads else wanted.includes, limit + 1)
    _print_list(sorted(found, key=failed_last, reverse=True), limit, as_json=as_json)


@app.command("show")
def show_dead(name: LocationOrKey, *, raw: Raw = False, as_json: AsJson = False) -> None:
    """Show one dead letter, or why an attachment is dead with all its attempts. Exit code 1 if it does not exist."""
    if place := Position.parse(name):
        _show_message(place, raw=raw, as_json=as_json)
    else:
        of_attachments.show_dead(name, as_json=as_json)


def _show_message(place: Position, *, raw: bool, as_json: bool) -> None:
    letter = Redriver(SystemResources(load_settings().settings), place.topic).letter_at(place)
    if letter is None:
        complain(f"There is no message at {place}; it may have expired.")
        raise typer.Exit(1)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
    elif as_json:
        print_json(letter)
    else:
        _show(letter)


@app.command("redrive")
def redrive(  # noqa: PLR0913 - one for each way to choose
    topic: TopicOrLocation,
    *,
    letter: Letters = None,
    error_class: ErrorClass = None,
    text: ReasonText = None,
    trace_id: TraceId = None,
    since: Since = None,
    until: Until = None,
    partition: LetterPartition = None,
    first_offset: FirstOffset = None,
    last_offset: LastOffset = None,
    again: Again = False,
    limit: Limit = DEFAULT_LIMIT,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """After a fix, publish the original messages of dead letters to their topic again, each once.

    For a dead attachment task, replay the attachment. Exit code 1 if one of the letters could not be redriven.
    """
    letters = list(letter or ())
    if "/" in topic:
        letters, topic = [*letters, topic], _parsed(topic).topic
    given = {
        "topic": topic,
        "key": "\n".join(letters),
        "error_class": error_class,
        "text": text,
        "trace_id": trace_id,
        "since": since,
        "until": until,
        "partition": partition,
        "first_offset": first_offset,
        "last_offset": last_offset,
        "again": "yes" if again else None,
    }
    parameters = {name: str(value) for name, value in given.items() if value is not None}
    request = ActionRequest(parameters=parameters, limit=limit, reason=reason, who=login_name(), dry_run=dry_run)
    perform_command(SystemResources(load_settings().settings), REDRIVE, request, as_json=as_json)


@topics_app.command("skip")
def skip(topic: SkippedTopic, partition: Partition, offset: Offset, *, reason: WhySkipped, count: Count = 1) -> None:
    """Skip messages: they become dead letters with unchanged bytes and headers, and the topic continues.

    Safe while everything runs: the tick of the topic's sensor that reads them skips them. Exit code 1, without any
    change, if one of them has been consumed already or does not exist yet.
    """
    services = SystemResources(load_settings().settings)
    parameters = {"topic": topic, "partition": str(partition), "offset": str(offset), "count": str(count)}
    done = perform(services, SKIP, ActionRequest(parameters=parameters, reason=reason, who=login_name()))
    for note in done.notes:
        complain(note)
    say(done.detail or f"{counted(count, 'message')} of {topic}[{partition}] from offset {offset} on will be skipped.")


@topics_app.command("skipped")
def skipped(*, limit: MostToList = 50, as_json: AsJson = False) -> None:
    """List skipped offsets, newest first."""
    services = SystemResources(load_settings().settings)
    found = services.skipped_offsets.list(limit + 1)
    if as_json:
        print_json({"skipped": found[:limit], "more": len(found) > limit})
        return
    made = table("Topic", "Partition", "From", "To", "Requested", "By", "Reason", numbers=["Partition", "From", "To"])
    for one in found[:limit]:
        offsets = map(str, (one.partition, one.first_offset, one.end_offset - 1))
        add_row(made, one.topic, *offsets, ago(one.asked_at), one.asked_by, one.reason)
    show_list(made, "requests", more=len(found) > limit)


def _no_task(letter: ConsumerRecord) -> bool:
    """Return True if a letter on `downloads.dlq` belongs to no attachment: attachments are in a work queue."""
    try:
        decode_download_task(letter.value)
    except IngestError:
        return True
    return False


def _parsed(text: str) -> Position:
    if (position := Position.parse(text)) is None:
        raise typer.BadParameter(f"{text!r} is no location. Example: events.raw.dlq/0/17.")
    return position


def _print_list(found: Sequence[InspectedLetter], limit: int, *, as_json: bool) -> None:
    shown, more = found[:limit], len(found) > limit
    if as_json:
        print_json({"messages": shown, "more": more})
        return
    made = table("Location", "Failed", "Was", "Error class", "Bytes", "Redriven", "Reason", "Begins", numbers=["Bytes"])
    for one in shown:
        failed = ago(one.failed_at) if one.failed_at else None
        reason, redriven = shortened(one.reason or "", MAX_SHOWN_REASON), "yes" if one.redriven else None
        values = (one.original_location, one.error_class, one.size_bytes, redriven, reason, one.begins)
        add_row(made, one.place, failed, *values)
    show_list(made, "messages", more=more, which="newest")


def _show(letter: InspectedLetter) -> None:
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
            ("redriven before it failed", letter.redrives or None),
            ("redriven", "yes" if letter.redriven else None),
            ("not redriven", letter.refusal),
        ]
    )
    stdout().print()
    shown = shown_text(letter.value, MAX_SHOWN_CHARACTERS)
    say(shown or "It has no bytes.")
    if shown != as_text(letter.value):
        complain(f"At most {MAX_SHOWN_CHARACTERS:,} characters, without secrets; --raw writes all of its bytes.")
    if not letter.redriven and not letter.refusal:
        say(f'\nOnce that is fixed: ingest dlq redrive {letter.place} --reason "..."')
