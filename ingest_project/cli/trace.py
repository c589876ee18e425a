"""`ingest trace ID`: the whole story of one trace, from the message that began it to the stored rows and files."""

from __future__ import annotations

from typing import Annotated

import typer

from ingest_project.core import console as output
from ingest_project.core.errors import StoreUnavailableError
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.operations.traces import Moment, story_of
from ingest_project.streams.user_activity.events_schema import events_of_trace

NOT_FOUND = 1


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trace")(show_trace)


def show_trace(
    trace_id: Annotated[str, typer.Argument(help="Trace id, as messages, logs and tables carry it.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Tell everything that is on record of one trace, in time order."""
    services = SystemResources(load_settings().settings)
    moments = sorted([*story_of(services.engine, trace_id), *_events(services, trace_id)])
    if as_json:
        output.print_json({"trace_id": trace_id, "moments": moments})
    elif moments:
        table = output.table("Time", "What", "Happened", "Detail")
        for moment in moments:
            output.add_row(table, moment.at, moment.subject, moment.what, moment.detail)
        output.show(table)
    if not moments:
        output.complain(f"Nothing is on record of the trace {trace_id}.")
        raise typer.Exit(NOT_FOUND)


def _events(services: SystemResources, trace_id: str) -> list[Moment]:
    try:
        rows = events_of_trace(services.user_activity_events, trace_id)
    except StoreUnavailableError as away:
        output.complain(f"User activity could not be searched: {away}")
        return []
    return [
        Moment(
            row["kafka_timestamp"] or row["timestamp"],
            f"event {row['event_id']}",
            str(row["event_type"]),
            f"{row['kafka_topic']}[{row['kafka_partition']}]@{row['kafka_offset']}",
        )
        for row in rows
    ]
