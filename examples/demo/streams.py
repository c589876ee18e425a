"""The demo's streams: user activity and CRM messages, from two files that come with the project.

Events of users happened in three hours; one is late, one delivered twice, and one message is no event. CRM messages are
versions of opportunities and projects in no order, and one that is neither. Ids and times in the files are fixed: a
second demo finds their messages stored, and does not send them again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from examples.demo.commands import CommandError, ingest, messages_on, publish
from examples.demo.printing import note, say, show_table

FOLDER = "streams"
ACTIVITY_FILE, CRM_FILE = "user_activity_events.jsonl", "sales_events.jsonl"
HOURLY_PAUSE = "INGEST_USER_ACTIVITY_HOURLY_REFRESH_SECONDS"
# Tables of the warehouse, and how the ids of their records begin.
RECORDS = {"opportunities": "opp_", "projects": "proj_"}
NEITHER = "unidentified_messages"


class HourOfType(msgspec.Struct, frozen=True):
    """Figures of one type of event in one hour."""

    hour: datetime
    event_type: str
    events: int
    deliveries: int
    users: int
    sessions: int


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
    """The messages of one demo, one a line.

    Args:
        activity: for `user-activity-events`.
        crm: for `sales_events`.
    """

    def __init__(self, activity: list[bytes], crm: list[bytes]) -> None:
        self._activity, self._crm = activity, crm
        self._expected = _events_by_hour(activity)
        self._ids = _ids_by_table(crm)
        self._earlier = (False, False)

    def send(self, settings: Mapping[str, Any]) -> None:
        """Publish the messages that no earlier demo has stored."""
        found = self.report(settings)
        self._earlier = (not found.user_activity.missing, not found.crm.missing)
        brokers, sent = settings["kafka.bootstrap_servers"], []
        if not self._earlier[0]:
            publish(brokers, settings["topics.user_activity_events"], self._activity)
            sent.append(f"{len(self._activity)} events of users")
        if not self._earlier[1]:
            publish(brokers, settings["topics.sales_events"], self._crm)
            sent.append(f"{len(self._crm)} CRM messages")
        if sent:
            note(f"Sent {' and '.join(sent)}.")

    def report(self, settings: Mapping[str, Any]) -> StreamsReport:
        """Query what is stored."""
        hours = sorted({hour for hour, _ in self._expected})
        types = [one for hour in hours for one in ingest("activity", "hour", hour)["types"]]
        found = msgspec.convert(types, tuple[HourOfType, ...], strict=False)
        counts = {(f"{one.hour:%Y-%m-%d-%H:00}", one.event_type): one.events for one in found}
        dead_letters = settings["topics.user_activity_events_dlq"]
        activity = DemoActivity(
            topic=settings["topics.user_activity_events"],
            earlier=self._earlier[0],
            hours=found,
            dead_letters=messages_on(settings["kafka.bootstrap_servers"], dead_letters),
            missing=tuple(
                f"{len(ids) - counts.get(one, 0)} of {len(ids)} events {one[1]} of {one[0]}"
                for one, ids in self._expected.items()
                if len(ids) > counts.get(one, 0)
            ),
        )
        return StreamsReport(user_activity=activity, crm=DemoCrm(earlier=self._earlier[1], tables=self._tables()))

    def _tables(self) -> tuple[DemoTable, ...]:
        stored = _stored_records(self._ids)
        stored[NEITHER] = len(ingest("crm", "unidentified", "list", "--all")["messages"])
        return tuple(
            DemoTable(table=table, messages=len(ids), expected=len(set(ids)), rows=min(stored[table], len(set(ids))))
            for table, ids in self._ids.items()
        )


def _events_by_hour(messages: Iterable[bytes]) -> Mapping[tuple[str, str], set[str]]:
    """Return event ids by hour and type, without the message that is no event: its user is a number."""
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for event in map(json.loads, messages):
        if isinstance(event["user_id"], str):
            hour = f"{datetime.fromisoformat(event['timestamp']):%Y-%m-%d-%H:00}"
            found[hour, event["event_type"]].add(event["event_id"])
    return dict(sorted(found.items()))


def _ids_by_table(messages: Iterable[bytes]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {table: [] for table in (*RECORDS, NEITHER)}
    for message in messages:
        event_id = json.loads(message)["event_id"]
        table = next((table for table, prefix in RECORDS.items() if event_id.startswith(prefix)), NEITHER)
        found[table].append(event_id)
    return found


def _stored_records(ids: Mapping[str, list[str]]) -> dict[str, int]:
    """Count the records with these ids in the warehouse, by table."""
    queries = []
    for table in RECORDS:
        wanted = ", ".join(f"'{one}'" for one in ids[table])
        queries.append(f"SELECT '{table}', count(*) FROM {table} WHERE event_id IN ({wanted})")
    # It becomes psql's own process, so that it cannot be called in this one.
    command = [sys.executable, "-m", "ingest_project.cli.main", "psql", "-At", "-c", " UNION ALL ".join(queries)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode:
        raise CommandError("`ingest psql` failed.")
    return {table: int(rows) for table, rows in (line.split("|") for line in done.stdout.split())}


def streaming(settings: Mapping[str, Any], *, chosen: bool) -> tuple[dict[str, str], DemoStreams | None]:
    """Return the demo's streams, and variables by which the figures of an hour are recomputed at once.

    Args:
        settings: of the system.
        chosen: a person has set the pause between two computations, which stays as it is.

    Returns:
        the streams are None where the sample files are missing; a message says so.
    """
    folder = Path(settings["polling.dummy_root"]) / FOLDER
    try:
        activity, crm = ((folder / name).read_bytes().splitlines() for name in (ACTIVITY_FILE, CRM_FILE))
    except FileNotFoundError as error:
        note(f"Streams are left out: there is no file {error.filename}.")
        return {}, None
    return ({} if chosen else {HOURLY_PAUSE: "0"}), DemoStreams(activity, crm)


def show_streams(report: StreamsReport) -> None:
    """Print the tables for a person."""
    activity, crm = report.user_activity, report.crm
    show_table(
        f"User activity by hour{_already(activity.earlier)}",
        ["Hour", "Type", "#Events", "#Deliveries", "#Users", "#Sessions"],
        [
            (f"{one.hour:%Y-%m-%d-%H:00}", one.event_type, one.events, one.deliveries, one.users, one.sessions)
            for one in activity.hours
        ],
    )
    if activity.dead_letters:
        say(f"{activity.dead_letters} in the dead letters of {activity.topic}: no event.")
    rows = [(one.table, one.messages, one.rows) for one in crm.tables]
    show_table(f"Stored CRM messages{_already(crm.earlier)}", ["Table", "#Messages", "#Rows"], rows)


def _already(earlier: bool) -> str:  # noqa: FBT001 - private
    return " (already stored)" if earlier else ""
