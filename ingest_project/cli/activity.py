"""`ingest activity`: what users did: the figures of an hour, and reading the topic from its beginning."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from ingest_project.core.console import AsJson, add_row, complain, counted, print_json, say, show, table
from ingest_project.core.errors import PermanentError
from ingest_project.core.hours import hour_key, parse_hour_key
from ingest_project.core.settings import load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.streams.user_activity.hourly_statistics import HourOfType, statistics_of

app = typer.Typer(help="What arrived on user-activity-events.", no_args_is_help=True)

Hour = Annotated[str | None, typer.Argument(metavar="HOUR", help="As Dagster calls it: 2026-01-15-10:00.")]


class HourFigures(msgspec.Struct, frozen=True):
    """What happened in an hour, the type with most events first."""

    hour: str
    types: tuple[HourOfType, ...]


class ReadAgain(msgspec.Struct, frozen=True):
    """Offsets that were read again or are planned to be read, by partition."""

    offsets: dict[int, int]


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="activity")


@app.command("hour")
def show_hour(hour: Hour = None, *, as_json: AsJson = False) -> None:
    """Show the events, users and sessions of an hour by type of event; of the present one where none is named."""
    begin = _parsed(hour) if hour else datetime.now(UTC)
    found = HourFigures(hour_key(begin), statistics_of(_services().engine, parse_hour_key(hour_key(begin))))
    if as_json:
        print_json(found)
    elif not found.types:
        complain(f"No events are counted for {found.hour}.")
    else:
        _show(found)


@app.command("from-beginning")
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


def _services() -> SystemResources:
    return SystemResources(load_settings().settings)


def _parsed(hour: str) -> datetime:
    try:
        return parse_hour_key(hour)
    except ValueError:
        raise typer.BadParameter(f"{hour!r} is no hour. Write it like 2026-01-15-10:00.") from None


def _show(found: HourFigures) -> None:
    made = table("Type", "Events", "Users", "Sessions", "p50 ms", "p95 ms", numbers=["Events", "Users", "Sessions"])
    for one in found.types:
        add_row(made, one.event_type, one.events, one.users, one.sessions, *_times(one))
    show(made, found.hour)


def _times(one: HourOfType) -> tuple[str, str]:
    p50, p95 = one.processing_ms_p50, one.processing_ms_p95
    return ("" if p50 is None else f"{p50:g}", "" if p95 is None else f"{p95:g}")
