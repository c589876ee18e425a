"""The demo's user activity: events of three hours, one late, one delivered twice, and a message that is none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ingest_project.contracts.enriched_event import decode_enriched_event
from ingest_project.core.console import add_row, counted, say, show, table
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.keys import hour_key, parse_hour_key
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.user_activity.hours import HourOfType, statistics_of

if TYPE_CHECKING:
    from rich.table import Table


class DemoActivity(msgspec.Struct, frozen=True, kw_only=True):
    """Stored statistics of the events.

    Args:
        earlier: an earlier demo had stored them already.
        hours: what happened, by hour and type of event.
        dead_letters: messages of the topic that are no events.
        missing: what is not there, a phrase for each.
    """

    topic: str
    earlier: bool
    hours: tuple[HourOfType, ...]
    dead_letters: int
    missing: tuple[str, ...] = ()


class ActivitySample:
    """The messages of a file, one a line, and what must come of them."""

    def __init__(self, path: Path) -> None:
        self._messages = path.read_bytes().splitlines()
        self._expected = _events_by_hour(self._messages)

    def __len__(self) -> int:
        """How many messages."""
        return len(self._messages)

    @property
    def hours(self) -> list[str]:
        """The hours in which the events happened."""
        return sorted({hour for hour, _ in self._expected})

    def is_stored(self, services: SystemResources) -> bool:
        """Return whether all events are counted in their hours."""
        return not self._missing(self._statistics(services))

    def send(self, services: SystemResources) -> None:
        """Put the messages on their topic."""
        topic = services.settings.topics.user_activity_events
        services.writer.send_all(topic, [ProducerRecord(message) for message in self._messages])

    def report(self, services: SystemResources, *, earlier: bool) -> DemoActivity:
        """Query what is stored."""
        found = self._statistics(services)
        topic = services.settings.topics.user_activity_events
        return DemoActivity(
            topic=topic,
            earlier=earlier,
            hours=found,
            dead_letters=_dead_letters(services),
            missing=tuple(self._missing(found)),
        )

    def _statistics(self, services: SystemResources) -> tuple[HourOfType, ...]:
        return tuple(one for hour in self.hours for one in statistics_of(services.engine, parse_hour_key(hour)))

    def _missing(self, found: Iterable[HourOfType]) -> list[str]:
        counts = {(hour_key(one.hour), one.event_type): one.events for one in found}
        return [
            f"{len(ids) - counts.get(place, 0)} of {counted(len(ids), f'event {place[1]}', f'events {place[1]}')}"
            f" of {place[0]}"
            for place, ids in self._expected.items()
            if counts.get(place, 0) < len(ids)
        ]


def show_activity(report: DemoActivity) -> None:
    """Print what happened for a person."""
    already = " (already stored)" if report.earlier else ""
    show(_hours_table(report), f"What users did, by the hour{already}")
    if report.dead_letters:
        messages = counted(report.dead_letters, "message was no event and is", "messages were no events and are")
        say(f"{messages} in the dead letters of {report.topic}.")


def _hours_table(report: DemoActivity) -> Table:
    numbers = ("Events", "Deliveries", "Users", "Sessions")
    made = table("Hour", "Type", *numbers, numbers=numbers)
    for one in report.hours:
        add_row(made, hour_key(one.hour), one.event_type, one.events, one.deliveries, one.users, one.sessions)
    return made


def _dead_letters(services: SystemResources) -> int:
    """Count dead letters by the positions: the embedded broker loses its topics when it stops."""
    return sum(one.outcome.get("dead_letters", 0) for one in services.activity_positions.all())


def _events_by_hour(messages: Iterable[bytes]) -> Mapping[tuple[str, str], set[str]]:
    """Event ids by hour and type; what is no event is left out."""
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for message in messages:
        try:
            event, _ = decode_enriched_event(message)
        except UnreadableMessageError:
            continue
        found[hour_key(datetime.fromisoformat(event.timestamp)), event.event_type].add(event.event_id)
    return dict(sorted(found.items()))
