"""The demo's streams: user activity and CRM messages, from two files that come with the project.

Events of users happened in three hours; one is late, one delivered twice, and one message is no event. CRM messages are
versions of opportunities and projects in no order, and one that is neither. Ids and times in the files are fixed: a
second demo finds their messages stored, and does not send them again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from ingest_project.contracts.crm_event import CrmKind, decode_crm_event
from ingest_project.contracts.enriched_event import decode_enriched_event
from ingest_project.core.console import add_row, complain, counted, say, show, table
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.items import hour_key, parse_hour_key
from ingest_project.core.settings import LoadedSettings
from ingest_project.devstack.state_folder import is_chosen, with_addresses
from ingest_project.operations import SystemResources
from ingest_project.platform.database import reading
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.crm.records import TABLES, unidentified_messages
from ingest_project.streams.user_activity.hours import HourOfType, statistics_of

if TYPE_CHECKING:
    from rich.table import Table

FOLDER = "streams"
ACTIVITY_FILE, CRM_FILE = "user_activity_events.jsonl", "sales_events.jsonl"
HOURLY_PAUSE = "user_activity.hourly_refresh_seconds"


class DemoActivity(msgspec.Struct, frozen=True, kw_only=True):
    """Stored statistics of the events.

    Args:
        earlier: an earlier demo had stored them already.
        hours: what happened, by hour and type of event.
        dead_letters: messages of the topic that are no events.
        missing: events without statistics, a phrase for each hour and type.
    """

    topic: str
    earlier: bool
    hours: tuple[HourOfType, ...]
    dead_letters: int
    missing: tuple[str, ...] = ()


class ActivitySample:
    """The messages of a file, one a line, and the events that must be stored."""

    def __init__(self, path: Path) -> None:
        self._messages = path.read_bytes().splitlines()
        self._expected = _events_by_hour(self._messages)

    def __len__(self) -> int:
        """Number of messages."""
        return len(self._messages)

    @property
    def hours(self) -> list[str]:
        """The hours in which the events happened."""
        return sorted({hour for hour, _ in self._expected})

    def is_stored(self, services: SystemResources) -> bool:
        """Return whether all events are counted in their hours."""
        return not self._missing(self._statistics(services))

    def send(self, services: SystemResources) -> None:
        """Publish the messages on their topic."""
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
        missing = {one: len(ids) - counts.get(one, 0) for one, ids in self._expected.items()}
        return [
            f"{number} of {counted(len(self._expected[hour, kind]), f'event {kind}', f'events {kind}')} of {hour}"
            for (hour, kind), number in missing.items()
            if number > 0
        ]


def show_activity(report: DemoActivity) -> None:
    """Print what happened for a person."""
    already = " (already stored)" if report.earlier else ""
    show(_hours_table(report), f"User activity by hour{already}")
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
    """Return event ids by hour and type, without the message that is no event."""
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for message in messages:
        try:
            event, _ = decode_enriched_event(message)
        except UnreadableMessageError:
            continue
        found[hour_key(datetime.fromisoformat(event.timestamp)), event.event_type].add(event.event_id)
    return dict(sorted(found.items()))


class DemoTable(msgspec.Struct, frozen=True, kw_only=True):
    """Stored rows of the messages of one kind.

    Args:
        messages: versions that the demo has.
        expected: rows that must come of them.
        rows: those that are stored.
    """

    table: str
    messages: int
    expected: int
    rows: int


class DemoCrm(msgspec.Struct, frozen=True, kw_only=True):
    """Stored rows of the CRM messages, by table.

    Args:
        earlier: an earlier demo had stored them already.
        tables: opportunities, projects, and what is neither.
    """

    earlier: bool
    tables: tuple[DemoTable, ...]

    @property
    def missing(self) -> list[str]:
        """Describe each table that lacks rows."""
        short = [one for one in self.tables if one.rows < one.expected]
        return [f"{one.expected - one.rows} of {one.expected} rows of {one.table}" for one in short]


class CrmSample:
    """The messages of a file, one a line."""

    def __init__(self, path: Path) -> None:
        self._messages = path.read_bytes().splitlines()
        self._ids: dict[CrmKind, list[str]] = {kind: [] for kind in CrmKind}
        self._neither: list[bytes] = []
        for message in self._messages:
            try:
                event = decode_crm_event(message)
            except UnreadableMessageError:
                self._neither.append(message)
            else:
                self._ids[event.kind].append(event.event_id)

    def __len__(self) -> int:
        """Number of messages."""
        return len(self._messages)

    def is_stored(self, services: SystemResources) -> bool:
        """Return whether each record and each unidentified message is in its table."""
        return not self.report(services, earlier=True).missing

    def send(self, services: SystemResources) -> None:
        """Publish the messages on their topic."""
        topic = services.settings.topics.sales_events
        services.writer.send_all(topic, [ProducerRecord(message) for message in self._messages])

    def report(self, services: SystemResources, *, earlier: bool) -> DemoCrm:
        """Count the stored rows."""
        with reading(services.engine) as connection:
            found = [_table(connection, TABLES[kind].c.event_id, ids, len(set(ids))) for kind, ids in self._ids.items()]
            neither = _table(connection, unidentified_messages.c.payload, self._neither, len(set(self._neither)))
        return DemoCrm(earlier=earlier, tables=(*found, neither))


def show_crm(report: DemoCrm) -> None:
    """Print the tables for a person."""
    numbers = ("Messages", "Rows")
    made = table("Table", *numbers, numbers=numbers)
    for one in report.tables:
        add_row(made, one.table, one.messages, one.rows)
    already = " (already stored)" if report.earlier else ""
    show(made, f"Stored CRM messages{already}")


def _table(
    connection: sa.Connection, column: sa.Column[str] | sa.Column[bytes], values: Collection[object], expected: int
) -> DemoTable:
    """Count how many of these values a table has, each once."""
    query = sa.select(sa.func.count(sa.distinct(column))).where(column.in_(set(values)))
    rows = int(connection.execute(query).scalar_one())
    return DemoTable(table=str(column.table.name), messages=len(values), expected=expected, rows=rows)


class StreamsReport(msgspec.Struct, frozen=True, kw_only=True):
    """Stored data of both streams."""

    user_activity: DemoActivity
    crm: DemoCrm

    @property
    def missing(self) -> list[str]:
        """Describe what is not stored."""
        return [*self.user_activity.missing, *self.crm.missing]

    @property
    def earlier(self) -> list[str]:
        """The streams that an earlier demo had stored."""
        both = {"the events of users": self.user_activity.earlier, "the CRM messages": self.crm.earlier}
        return [name for name, earlier in both.items() if earlier]


class DemoStreams:
    """The messages of one demo.

    Args:
        activity: for `user-activity-events`.
        crm: for `sales_events`.
    """

    def __init__(self, activity: ActivitySample, crm: CrmSample) -> None:
        self._activity = activity
        self._crm = crm
        self._earlier = {"activity": False, "crm": False}

    def send(self, services: SystemResources) -> None:
        """Publish the messages that no earlier demo has stored."""
        self._earlier = {"activity": self._activity.is_stored(services), "crm": self._crm.is_stored(services)}
        sent = []
        if not self._earlier["activity"]:
            self._activity.send(services)
            sent.append(counted(len(self._activity), "event of users", "events of users"))
        if not self._earlier["crm"]:
            self._crm.send(services)
            sent.append(counted(len(self._crm), "CRM message"))
        if sent:
            complain(f"Sent {' and '.join(sent)}.")

    def report(self, services: SystemResources) -> StreamsReport:
        """Query what is stored."""
        return StreamsReport(
            user_activity=self._activity.report(services, earlier=self._earlier["activity"]),
            crm=self._crm.report(services, earlier=self._earlier["crm"]),
        )


def streaming(loaded: LoadedSettings) -> tuple[LoadedSettings, DemoStreams | None]:
    """Return the demo's streams, and settings that recompute the figures of an hour as soon as its events have changed.

    The streams are None where the sample files are missing; a message says so.
    """
    folder = loaded.settings.polling.dummy_root / FOLDER
    try:
        streams = DemoStreams(ActivitySample(folder / ACTIVITY_FILE), CrmSample(folder / CRM_FILE))
    except FileNotFoundError as error:
        complain(f"Streams are left out: there is no file {error.filename}.")
        return loaded, None
    return (loaded if is_chosen(loaded, HOURLY_PAUSE) else with_addresses(loaded, {HOURLY_PAUSE: 0})), streams


def show_streams(report: StreamsReport) -> None:
    """Print the tables for a person."""
    show_activity(report.user_activity)
    show_crm(report.crm)
