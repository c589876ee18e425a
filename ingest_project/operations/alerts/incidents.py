"""Incidents in the database, and the messages about them: one when an incident begins, one when it is over.

One process at a time assesses the conditions, the holder of a lease; another takes over when the lease has expired.
An incident opens after its condition has held for the time of its rule, and is resolved after it has been gone for a
while, which doubles each time the same incident comes back within hours. A message is a row for each channel, queued
in the transaction that opens or resolves the incident and claimed before it is sent: it survives a restart, and two
processes do not send it twice. One that is killed between sending and recording sends it again.

Incidents are kept in the warehouse, and in a file of the state folder while that does not answer.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.core.errors import IngestError
from ingest_project.core.settings import Settings
from ingest_project.core.settings.alerts import CONDITIONS, AlertSettings, Policy, Severity
from ingest_project.operations.alerts import Alert
from ingest_project.platform.database import (
    database_address,
    fetch,
    follow_secret,
    migrate,
    open_engine,
    postgres_options,
    reading,
    writing,
)
from ingest_project.platform.database.sql import Double, Json, UtcTime, insert_into, metadata, partial_index

WAITING, SENT, DROPPED, FAILED = "waiting", "sent", "dropped", "failed"
PENDING, OPEN, RESOLVED = "pending", "open", "resolved"
LEASE = "conditions"
LEASE_SECONDS = 45.0
CLAIM_SECONDS = 120.0
MESSAGES_AT_A_TIME = 50
LONGEST_RETRY = timedelta(days=1)
KEPT = timedelta(days=90)
COMEBACK = timedelta(hours=6)
COMEBACK_SECONDS = 60.0
LONGEST_QUIET_SECONDS = 3_600.0
SAMPLE_SECONDS = 60.0

# In the words of the index: otherwise neither database uses it.
UNRESOLVED = "state <> 'resolved'"
incidents = sa.Table(
    "incidents",
    metadata,
    Col("incident_id", sa.Text, primary_key=True),
    Col("name", sa.Text, nullable=False),
    Col("condition", sa.Text, nullable=False),
    Col("severity", sa.Text, nullable=False),
    Col("owner", sa.Text),
    Col("summary", sa.Text, nullable=False),
    Col("link", sa.Text, nullable=False),
    Col("value", Double),
    Col("threshold", Double),
    Col("examples", Json, nullable=False),
    Col("state", sa.Text, nullable=False),
    Col("since", UtcTime, nullable=False),
    Col("opened_at", UtcTime),
    Col("seen_at", UtcTime, nullable=False),
    # Since when the condition has not held any more.
    Col("gone_at", UtcTime),
    Col("resolved_at", UtcTime),
    partial_index("incidents_unresolved", UNRESOLVED, "name", unique=True),
    sa.Index("incidents_by_end", "resolved_at"),
)
alert_messages = sa.Table(
    "alert_messages",
    metadata,
    Col("incident_id", sa.Text, primary_key=True),
    # firing, reminder/0001, resolved: in this order they are sent.
    Col("kind", sa.Text, primary_key=True),
    Col("channel", sa.Text, primary_key=True),
    Col("state", sa.Text, nullable=False),
    Col("attempts", sa.Integer, nullable=False),
    Col("reason", sa.Text),
    Col("created_at", UtcTime, nullable=False),
    Col("due_at", UtcTime, nullable=False),
    Col("claimed_until", UtcTime),
    Col("sent_at", UtcTime),
    partial_index("alert_messages_waiting", "state = 'waiting'", "channel", "created_at"),
)
# Values over time, as steps: a row only where a value has changed.
alert_samples = sa.Table(
    "alert_samples",
    metadata,
    Col("series", sa.Text, primary_key=True),
    Col("at", UtcTime, primary_key=True),
    Col("value", Double, nullable=False),
)
alert_leases = sa.Table(
    "alert_leases",
    metadata,
    Col("name", sa.Text, primary_key=True),
    Col("holder", sa.Text, nullable=False),
    Col("until", UtcTime, nullable=False),
)
TABLES = (incidents, alert_messages, alert_samples, alert_leases)


class Finding(NamedTuple):
    """A condition that holds for a subject.

    Args:
        name: stable name of the incident, e.g. `quarantine/orders`.
        condition: its name in CONDITIONS.
        summary: one sentence for a person.
        link: where to look.
        policy: the values that apply.
        owner: who is responsible, if anyone.
        value: what was measured, if anything.
        examples: a line each.
    """

    name: str
    condition: str
    summary: str
    link: str
    policy: Policy
    owner: str | None = None
    value: float | None = None
    examples: tuple[str, ...] = ()


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """An incident on record; see the table."""

    incident_id: str
    name: str
    condition: str
    severity: str
    owner: str | None
    summary: str
    link: str
    value: float | None
    threshold: float | None
    examples: tuple[str, ...]
    state: str
    since: datetime
    opened_at: datetime | None
    resolved_at: datetime | None


class FailingChannel(msgspec.Struct, frozen=True):
    """A channel that did not accept its last messages.

    Args:
        waiting: messages that are sent again.
        attempts: of the one that failed most often.
        reason: reason of the last failure.
    """

    channel: str
    waiting: int
    attempts: int
    reason: str

    def __str__(self) -> str:
        """Describe it for people."""
        return f"The alert channel {self.channel} does not accept messages ({self.waiting} wait): {self.reason}"


class AlertState(msgspec.Struct, frozen=True):
    """The alerts at one moment: open incidents, newest first, and channels that fail."""

    incidents: tuple[Incident, ...] = ()
    failing_channels: tuple[FailingChannel, ...] = ()


class History:
    """Values over time, as far as they are on record.

    Args:
        steps: by series, the moments at which a value changed, oldest first.
    """

    def __init__(self, steps: Mapping[str, Sequence[tuple[datetime, float]]]) -> None:
        self._steps = steps

    def value_at(self, series: str, moment: datetime) -> float | None:
        """Return the value at a moment; None before the first one."""
        return next((value for at, value in reversed(self._steps.get(series, ())) if at <= moment), None)

    def first(self, series: str) -> float | None:
        """Return the oldest value."""
        steps = self._steps.get(series)
        return steps[0][1] if steps else None

    def changed_at(self, series: str) -> datetime | None:
        """Return when the value changed last; None for an unknown series."""
        steps = self._steps.get(series)
        return steps[-1][0] if steps else None


class Message(NamedTuple):
    """A claimed message."""

    incident_id: str
    kind: str
    attempts: int
    created_at: datetime
    alert: Alert


def lead(connection: sa.Connection, holder: str, now: datetime) -> bool:
    """Take or renew the lease of the process that assesses conditions; return False while another one holds it."""
    until = now + timedelta(seconds=LEASE_SECONDS)
    statement = insert_into(connection, alert_leases).values(name=LEASE, holder=holder, until=until)
    # A clock that was set back must not leave a lease for as long as it had been ahead.
    ahead = alert_leases.c.until > until + timedelta(seconds=LEASE_SECONDS)
    free = sa.or_(alert_leases.c.holder == holder, alert_leases.c.until < now, ahead)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"holder": holder, "until": until}, where=free)
    )
    return connection.execute(sa.select(alert_leases.c.holder)).scalar() == holder


def release(engine: sa.Engine, holder: str) -> None:
    """Give the lease back, so that another process takes over at once."""
    with writing(engine) as connection:
        connection.execute(sa.delete(alert_leases).where(alert_leases.c.holder == holder))


def record_samples(
    connection: sa.Connection, values: Mapping[str, float], now: datetime, kept_seconds: float
) -> History:
    """Record values that have changed, at most one a minute for each series, and return all on record."""
    steps: defaultdict[str, list[tuple[datetime, float]]] = defaultdict(list)
    for series, at, value in connection.execute(sa.select(alert_samples).order_by(alert_samples.c.at)):
        steps[series].append((at, value))
    cutoff = now - timedelta(seconds=kept_seconds)
    for series, value in values.items():
        known = steps[series]
        if not known or (known[-1][1] != value and (now - known[-1][0]).total_seconds() >= SAMPLE_SECONDS):
            known.append((now, value))
            insert = insert_into(connection, alert_samples).values(series=series, at=now, value=value)
            connection.execute(insert.on_conflict_do_nothing())
        # The newest one before the cutoff is the value at the cutoff.
        while len(known) > 1 and known[1][0] <= cutoff:
            old = known.pop(0)[0]
            connection.execute(
                sa.delete(alert_samples).where(alert_samples.c.series == series, alert_samples.c.at == old)
            )
    return History(steps)


def unresolved(connection: sa.Connection) -> dict[str, sa.RowMapping]:
    """Return the pending and open incidents by name."""
    rows = connection.execute(sa.select(incidents).where(sa.text(UNRESOLVED))).mappings()
    return {row["name"]: row for row in rows}


@dataclass(frozen=True)
class IncidentBook:
    """The incidents of one database, changed in a transaction under the lease.

    Args:
        connection: connection of the transaction.
        now: when the findings were made.
        settings: settings of alerts.
        channels_of: returns the channels that get the alerts of an owner.
    """

    connection: sa.Connection
    now: datetime
    settings: AlertSettings
    channels_of: Callable[[str | None], Collection[str]]

    def update(self, findings: Iterable[Finding], assessed: Collection[str], elsewhere: Collection[str] = ()) -> None:
        """Open, keep and resolve incidents, and queue the messages.

        Args:
            findings: what is wrong now.
            assessed: conditions that could be assessed; incidents of the others stay as they are.
            elsewhere: names of incidents that are not kept in this database.
        """
        known = unresolved(self.connection)
        found = {one.name: one for one in findings if one.name not in elsewhere}
        for one in found.values():
            self._keep(one, known.get(one.name))
        for name, row in known.items():
            if name not in found and name not in elsewhere and row["condition"] in assessed:
                self._end(row)

    def _keep(self, one: Finding, row: sa.RowMapping | None) -> None:
        values = _values(one, self.now)
        if row is None:
            incident_id, since, state = uuid.uuid4().hex, self.now, PENDING
            begun = {"incident_id": incident_id, "name": one.name, "since": since, "state": state}
            self.connection.execute(sa.insert(incidents).values(**begun, **values))
        else:
            incident_id, since, state = row["incident_id"], row["since"], row["state"]
            self._set(incident_id, **values)
        if state == PENDING and (self.now - since).total_seconds() >= one.policy.after_seconds:
            self._set(incident_id, state=OPEN, opened_at=self.now)
            self._queue(incident_id, one.policy.severity, "firing", self.channels_of(one.owner))
        elif state == OPEN and self.settings.reminder_hours:
            self._remind(incident_id, one, self.settings.reminder_hours)

    def _end(self, row: sa.RowMapping) -> None:
        incident_id, gone_at = row["incident_id"], row["gone_at"] or self.now
        if row["state"] == PENDING:
            self.connection.execute(sa.delete(incidents).where(incidents.c.incident_id == incident_id))
        elif (self.now - gone_at).total_seconds() < self._quiet_seconds(row["name"]):
            self._set(incident_id, gone_at=gone_at)
        else:
            self._set(incident_id, state=RESOLVED, gone_at=gone_at, resolved_at=self.now)
            self._queue(incident_id, row["severity"], "resolved", self._told(incident_id))
            old = sa.select(incidents.c.incident_id).where(incidents.c.resolved_at < self.now - KEPT)
            self.connection.execute(sa.delete(alert_messages).where(alert_messages.c.incident_id.in_(old)))
            self.connection.execute(sa.delete(incidents).where(incidents.c.resolved_at < self.now - KEPT))

    def _set(self, incident_id: str, **values: object) -> None:
        self.connection.execute(sa.update(incidents).where(incidents.c.incident_id == incident_id).values(**values))

    def _queue(self, incident_id: str, severity: Severity, kind: str, channels: Collection[str]) -> None:
        """Queue a message for each channel; in quiet hours it is due when they end."""
        quiet = self.settings.quiet_hours.get(severity)
        due = (quiet.end_of(self.now) if quiet else None) or self.now
        for channel in channels:
            message = {"incident_id": incident_id, "kind": kind, "channel": channel, "state": WAITING}
            values = message | {"attempts": 0, "created_at": self.now, "due_at": due}
            self.connection.execute(
                insert_into(self.connection, alert_messages).values(values).on_conflict_do_nothing()
            )

    def _remind(self, incident_id: str, one: Finding, hours: float) -> None:
        columns = alert_messages.c
        messages = sa.select(sa.func.count(columns.kind.distinct()), sa.func.max(columns.created_at))
        number, last = self.connection.execute(messages.where(columns.incident_id == incident_id)).one()
        if last is not None and self.now - last >= timedelta(hours=hours):
            self._queue(incident_id, one.policy.severity, f"reminder/{number:04d}", self.channels_of(one.owner))

    def _quiet_seconds(self, name: str) -> float:
        """Return how long an incident must be gone before it is over."""
        columns, shortest = incidents.c, self.settings.resolve_after_seconds
        earlier = sa.select(sa.func.count()).where(columns.name == name, columns.resolved_at > self.now - COMEBACK)
        comebacks = self.connection.execute(earlier).scalar_one()
        doubled = max(shortest, COMEBACK_SECONDS) * 2.0 ** min(comebacks - 1, 10)
        return min(doubled, max(LONGEST_QUIET_SECONDS, shortest)) if comebacks else shortest

    def _told(self, incident_id: str) -> list[str]:
        """Return the channels that know of an incident; a message that quiet hours held back is dropped instead."""
        columns = alert_messages.c
        of_incident = columns.incident_id == incident_id
        held = sa.and_(of_incident, columns.state == WAITING, columns.attempts == 0, columns.due_at > self.now)
        self.connection.execute(sa.update(alert_messages).where(held).values(state=DROPPED))
        begun = sa.select(columns.channel).where(of_incident, columns.kind == "firing", columns.state != DROPPED)
        return list(self.connection.execute(begun).scalars())


def _values(one: Finding, now: datetime) -> dict[str, Any]:
    return {
        "condition": one.condition,
        "severity": one.policy.severity,
        "owner": one.owner,
        "summary": one.summary,
        "link": one.link,
        "value": one.value,
        "threshold": one.policy.threshold,
        "examples": list(one.examples),
        "seen_at": now,
        "gone_at": None,
    }


def drop_messages(connection: sa.Connection, channels: Collection[str]) -> None:
    """Drop the waiting messages of channels that are not configured any more."""
    gone = sa.and_(alert_messages.c.state == WAITING, alert_messages.c.channel.not_in(channels))
    connection.execute(sa.update(alert_messages).where(gone).values(state=DROPPED))


def claim(engine: sa.Engine, channel: str, now: datetime) -> Claimed:
    """Claim the messages of a channel that are due, oldest first; a resolution never before its beginning."""
    columns = alert_messages.c
    query = (
        sa.select(alert_messages, *(column for column in incidents.c if column.name not in {"incident_id", "state"}))
        .join(incidents, incidents.c.incident_id == columns.incident_id)
        .where(columns.channel == channel, columns.state == WAITING)
        # Critical ones first.
        .order_by(columns.created_at, incidents.c.severity, incidents.c.name, columns.kind)
        .with_for_update(of=alert_messages, skip_locked=True)
    )
    claimed = Claimed(engine, channel, [])
    late: set[str] = set()
    with writing(engine) as connection:
        for row in connection.execute(query).mappings():
            if row["due_at"] > now or (row["claimed_until"] and row["claimed_until"] > now):
                late.add(row["incident_id"])
            elif row["incident_id"] not in late and len(claimed.messages) < MESSAGES_AT_A_TIME:
                message = Message(row["incident_id"], row["kind"], row["attempts"], row["created_at"], _alert(row))
                claimed.messages.append(message)
        claimed.change(connection, lambda _: {"claimed_until": now + timedelta(seconds=CLAIM_SECONDS)})
    return claimed


@dataclass(frozen=True)
class Claimed:
    """Messages that one process sends by one channel now.

    Args:
        engine: engine of the database that has them.
        channel: the channel that gets them.
        messages: oldest first.
    """

    engine: sa.Engine
    channel: str
    messages: list[Message]

    def record(self, now: datetime, problem: str | None, delay: Callable[[int], timedelta]) -> None:
        """Record that the channel has accepted them, or why not: they are sent again after a pause, for a day.

        Args:
            now: when the attempt ended.
            problem: why it failed; None where it did not.
            delay: returns the pause after so many attempts.
        """

        def outcome(message: Message) -> dict[str, Any]:
            attempts = message.attempts + 1
            values = {"attempts": attempts, "claimed_until": None, "reason": problem}
            if problem is None:
                return values | {"state": SENT, "sent_at": now}
            if now - message.created_at > LONGEST_RETRY:
                return values | {"state": FAILED}
            return values | {"due_at": now + delay(attempts)}

        with writing(self.engine) as connection:
            self.change(connection, outcome)

    def change(self, connection: sa.Connection, values: Callable[[Message], dict[str, Any]]) -> None:
        """Set values of each message that still waits."""
        columns = alert_messages.c
        for message in self.messages:
            key = (columns.incident_id == message.incident_id, columns.kind == message.kind)
            waiting = (columns.channel == self.channel, columns.state == WAITING)
            connection.execute(sa.update(alert_messages).where(*key, *waiting).values(values(message)))


def _alert(row: sa.RowMapping) -> Alert:
    return Alert(
        status=row["kind"].partition("/")[0],
        incident=row["name"],
        summary=row["summary"],
        link=row["link"],
        since=row["since"],
        ended_at=row["gone_at"] if row["kind"] == "resolved" else None,
        condition=row["condition"],
        severity=row["severity"],
        owner=row["owner"],
        value=_number(row["value"]),
        threshold=_number(row["threshold"]),
        examples=tuple(row["examples"]),
        remedy=CONDITIONS[row["condition"]].remedy_for(row["name"]) if row["condition"] in CONDITIONS else "",
    )


def read_alerts(engine: sa.Engine) -> AlertState:
    """Return the open incidents and the channels that fail."""
    columns = alert_messages.c
    failing = (
        sa.select(columns.channel, sa.func.count(), sa.func.max(columns.attempts), sa.func.max(columns.reason))
        .where(columns.state == WAITING, columns.attempts > 0)
        .group_by(columns.channel)
        .order_by(columns.channel)
    )
    with reading(engine) as connection:
        channels = [FailingChannel(*row) for row in connection.execute(failing)]
        opened = sa.select(incidents).where(incidents.c.state == OPEN).order_by(incidents.c.opened_at.desc())
        return AlertState(tuple(map(_incident, connection.execute(opened).mappings())), tuple(channels))


def recent_incidents(engine: sa.Engine, since: datetime, limit: int) -> list[Incident]:
    """Return incidents that were resolved after a moment, newest first."""
    query = (
        sa.select(incidents)
        .where(incidents.c.resolved_at > since)
        .order_by(incidents.c.resolved_at.desc())
        .limit(limit)
    )
    return [_incident(row) for row in fetch(engine, query).mappings()]


def _incident(row: sa.RowMapping) -> Incident:
    known = {field: row[field] for field in Incident.__struct_fields__}
    measured = {field: _number(row[field]) for field in ("value", "threshold")}
    return Incident(**known | measured | {"examples": tuple(row["examples"])})


def _number(value: float | None) -> float | None:
    """Return a whole number without decimals, as the JSON of everything else has it."""
    return int(value) if value is not None and value.is_integer() else value


# A database that has vanished silently must not hold up the message about that.
NO_ANSWER_MILLISECONDS = "10000"


class AlertStores:
    """The warehouse, and the file that stands in for it. Both have the same tables.

    Args:
        settings: settings of the system.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.state_dir.absolute() / "alerts.db"

    @cached_property
    def warehouse(self) -> sa.Engine | None:
        """The warehouse; None where none is set. Its connections are this module's own.

        Raises:
            DatabaseUnavailableError: it does not answer.
        """
        warehouse = self._settings.warehouse
        if not (url := warehouse.database_url.get_secret_value()):
            return None
        address = database_address(url)
        if address.get_backend_name() == "postgresql":
            address = address.update_query_dict({"tcp_user_timeout": NO_ANSWER_MILLISECONDS})
        engine = open_engine(address.render_as_string(hide_password=False), warehouse.connect_timeout_seconds)
        further = postgres_options(warehouse.connect_timeout_seconds) | {"tcp_user_timeout": NO_ANSWER_MILLISECONDS}
        follow_secret(engine, warehouse.database_url, further)
        migrate(engine)
        return engine

    @cached_property
    def local(self) -> sa.Engine:
        """The file, with its tables."""
        engine = open_engine(f"sqlite:///{self._path}")
        metadata.create_all(engine, tables=TABLES)
        return engine

    @property
    def has_local(self) -> bool:
        """Tell whether the file was ever needed."""
        return self._path.exists()

    def each(self) -> Iterator[sa.Engine]:
        """Yield those that have something and answer."""
        if self.has_local:
            yield self.local
        try:
            if (warehouse := self.warehouse) is not None:
                yield warehouse
        except IngestError:
            return

    def read(self) -> AlertState:
        """Return open incidents and failing channels of both; the warehouse's only while it answers."""
        states = []
        for engine in self.each():
            try:
                states.append(read_alerts(engine))
            except IngestError:
                continue
        return AlertState(
            tuple(incident for state in states for incident in state.incidents),
            tuple(channel for state in states for channel in state.failing_channels),
        )

    def close(self) -> None:
        """Disconnect."""
        for name in ("warehouse", "local"):
            if engine := self.__dict__.pop(name, None):
                engine.dispose()
