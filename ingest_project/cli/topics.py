"""`ingest topics`: skip messages that stop a topic."""

from __future__ import annotations

from typing import Annotated

import typer

from ingest_project.core.console import (
    AsJson,
    add_row,
    ago,
    complain,
    counted,
    print_json,
    say,
    show_list,
    table,
)
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import MAX_SKIPPED, SKIP
from ingest_project.platform.actions import ActionRequest, login_name, perform

topics_app = typer.Typer(help="Messages that stop a topic, and how to skip them.", no_args_is_help=True)

Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="Topic that is read, e.g. file-event-queue.")]
Partition = Annotated[int, typer.Argument(metavar="PARTITION", min=0, help="Of the topic.")]
Offset = Annotated[int, typer.Argument(metavar="OFFSET", min=0, help="Of the first message to skip.")]
Count = Annotated[int, typer.Option(min=1, max=MAX_SKIPPED, help="How many messages to skip.")]
Reason = Annotated[str, typer.Option(help="Why; it is stored with each of them.")]
Limit = Annotated[int, typer.Option(min=1, help="Most to list.")]


def register_topics(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(topics_app, name="topics")


@topics_app.command("skip")
def skip(topic: Topic, partition: Partition, offset: Offset, *, reason: Reason, count: Count = 1) -> None:
    """Skip messages: they become dead letters, bytes and headers unchanged, and the topic goes on.

    Safe while everything runs: the next tick of the topic's sensor that reads them skips them. Exit code 1 when one of
    them has been consumed already or does not exist yet; nothing changes then.
    """
    services = SystemResources(load_settings().settings)
    parameters = {"topic": topic, "partition": str(partition), "offset": str(offset), "count": str(count)}
    done = perform(services, SKIP, ActionRequest(parameters=parameters, reason=reason, who=login_name()))
    for note in done.notes:
        complain(note)
    say(done.detail or f"{counted(count, 'message')} of {topic}[{partition}] from offset {offset} on will be skipped.")


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
