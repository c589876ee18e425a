"""Store incidents in the database, with the messages about them: one when an incident opens, one when it is resolved.

Only the holder of a lease assesses the conditions; another process takes over when the lease has expired. An incident
opens after its condition has held for the time of its rule, and is resolved after the condition has not held for a
while, which doubles each time the same incident comes back within hours. Each channel gets a row per message, queued in
the transaction that opens or resolves the incident and claimed before it is sent: it survives a restart, and two
processes do not send it twice. A process killed between sending and recording causes a second delivery.

Incidents are stored in the warehouse, or in a file of the state folder while the warehouse does not answer.
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

# Condition written exactly as in the index: otherwise neither database uses it.
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
    # Time since which the condition no longer holds.
    Col("gone_at", UtcTime),
    Col("resolved_at", UtcTime),
    partial_index("incidents_unresolved", UNRESOLVED, "name", unique=True),
    sa.Index("incidents_by_end", "resolved_at"),
)
alert_messages = sa.Table(
    "alert_messages",
    metadata,
    Col("incident_id", sa.Text, primary_key=True),
    # firing, reminder/0001, resolved: the alphabetical order is the order of sending.
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
# History of values as steps: one row for each change of a value.
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
        condition: name of the condition in CONDITIONS.
        summary: one sentence for a person.
        link: address of a page about it.
        policy: values of the rules that apply.
        owner: responsible owner, if any.
        value: measured value, if any.
        examples: examples of one line each.
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
    """A stored incident; see the table."""

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
        waiting: number of messages that will be sent again.
        attempts: highest number of attempts of one of them.
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
    """The stored history of values.

    Args:
        steps: times and values of changes by series, oldest first.
    """

    def __init__(self, steps: Mapping[str, Sequence[tuple[datetime, float]]]) -> None:
        self._steps = steps

    def value_at(self, series: str, moment: datetime) -> float | None:
        """Return the value at a time; None before the first one."""
        return next((value for at, value in reversed(self._steps.get(series, ())) if at <= moment), None)

    def first(self, series: str) -> float | None:
        """Return the oldest value."""
        steps = self._steps.get(series)
        return steps[0][1] if steps else None

    def changed_at(self, series: str) -> datetime | None:
        """Return when the value last changed; None for an unknown series."""
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
    """Acquire or renew the lease for assessing conditions; return False while another process holds it."""
    until = now + timedelta(seconds=LEASE_SECONDS)
    statement = insert_into(connection, alert_leases).values(name=LEASE, holder=holder, until=until)
    # After a clock was set back, a lease must not last as long as the clock had been ahead.
    ahead = alert_leases.c.until > until + timedelta(seconds=LEASE_SECONDS)
    free = sa.or_(alert_leases.c.holder == holder, alert_leases.c.until < now, ahead)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"holder": holder, "until": until}, where=free)
    )
    return connection.execute(sa.select(alert_leases.c.holder)).scalar() == holder


def release(engine: sa.Engine, holder: str) -> None:
    """Release the lease, so that another process takes over immediately."""
    with writing(engine) as connection:
        connection.execute(sa.delete(alert_leases).where(alert_leases.c.holder == holder))


def record_samples(
    connection: sa.Connection, values: Mapping[str, float], now: datetime, kept_seconds: float
) -> History:
    """Store changed values, at most one per minute and series, and return the whole history."""
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
        # Keep the newest one before the cutoff, which is the value at the cutoff.
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
    """Changes the incidents of one database, in a transaction under the lease.

    Args:
        connection: connection with the transaction.
        now: time of the findings.
        settings: settings of alerts.
        channels_of: returns the channels for an owner's alerts.
    """

    connection: sa.Connection
    now: datetime
    settings: AlertSettings
    channels_of: Callable[[str | None], Collection[str]]

    def update(self, findings: Iterable[Finding], assessed: Collection[str], elsewhere: Collection[str] = ()) -> None:
        """Open, update and resolve incidents, and queue the messages.

        Args:
            findings: current findings.
            assessed: conditions that could be assessed; incidents of other conditions stay unchanged.
            elsewhere: names of incidents that are stored in another database.
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
            self._queue(incident_id, row["severity"], "resolved", self._notified(incident_id))
            old = sa.select(incidents.c.incident_id).where(incidents.c.resolved_at < self.now - KEPT)
            self.connection.execute(sa.delete(alert_messages).where(alert_messages.c.incident_id.in_(old)))
            self.connection.execute(sa.delete(incidents).where(incidents.c.resolved_at < self.now - KEPT))

    def _set(self, incident_id: str, **values: object) -> None:
        self.connection.execute(sa.update(incidents).where(incidents.c.incident_id == incident_id).values(**values))

    def _queue(self, incident_id: str, severity: Severity, kind: str, channels: Collection[str]) -> None:
        """Queue a message for each channel; in quiet hours, it is due at their end."""
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
        """Return the time a condition must not hold before its incident is resolved, in seconds."""
        columns, shortest = incidents.c, self.settings.resolve_after_seconds
        earlier = sa.select(sa.func.count()).where(columns.name == name, columns.resolved_at > self.now - COMEBACK)
        comebacks = self.connection.execute(earlier).scalar_one()
        doubled = max(shortest, COMEBACK_SECONDS) * 2.0 ** min(comebacks - 1, 10)
        return min(doubled, max(LONGEST_QUIET_SECONDS, shortest)) if comebacks else shortest

    def _notified(self, incident_id: str) -> list[str]:
        """Return the channels that were notified of an incident; drop messages that quiet hours have delayed."""
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
    """Drop the waiting messages of channels that are no longer configured."""
    gone = sa.and_(alert_messages.c.state == WAITING, alert_messages.c.channel.not_in(channels))
    connection.execute(sa.update(alert_messages).where(gone).values(state=DROPPED))


def claim(engine: sa.Engine, channel: str, now: datetime) -> Claimed:
    """Claim the due messages of a channel, oldest first; a resolution is never claimed before its opening message."""
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
    """Messages that one process is about to send through one channel.

    Args:
        engine: engine of the database with the messages.
        channel: name of the channel.
        messages: messages, oldest first.
    """

    engine: sa.Engine
    channel: str
    messages: list[Message]

    def record(self, now: datetime, problem: str | None, delay: Callable[[int], timedelta]) -> None:
        """Record that the channel accepted the messages, or why not; they are then retried with pauses for a day.

        Args:
            now: time of the end of the attempt.
            problem: reason of its failure; None if it succeeded.
            delay: returns the pause after a number of attempts.
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
        """Set column values of each message that is still waiting."""
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
    """Return the open incidents and the failing channels."""
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
    """Return incidents that were resolved after a time, newest first."""
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
    """Return a whole number as an int, as in all other JSON output."""
    return int(value) if value is not None and value.is_integer() else value


# A database that vanished silently must not delay the alert about that.
NO_ANSWER_MILLISECONDS = "10000"


class AlertStores:
    """The warehouse, and the file that replaces it during an outage. Both have the same tables.

    Args:
        settings: settings of the system.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.state_dir.absolute() / "alerts.db"

    @cached_property
    def warehouse(self) -> sa.Engine | None:
        """Return an engine of the warehouse with its own connections; None if no warehouse is set.

        Raises:
            DatabaseUnavailableError: the warehouse does not answer.
        """
        warehouse = self._settings.warehouse
        if not (url := warehouse.database_url.get_secret_value()):
            return None
        address = database_address(url)
        if address.get_backend_name() == "postgresql":
            address = address.update_query_dict({"tcp_user_timeout": NO_ANSWER_MILLISECONDS})
        engine = open_engine(address.render_as_string(hide_password=False), warehouse.connect_timeout_seconds)
        further = postgres_options(address, warehouse.connect_timeout_seconds)
        follow_secret(engine, warehouse.database_url, further | {"tcp_user_timeout": NO_ANSWER_MILLISECONDS})
        migrate(engine)
        return engine

    @cached_property
    def local(self) -> sa.Engine:
        """Return an engine of the file, with its tables created."""
        engine = open_engine(f"sqlite:///{self._path}")
        metadata.create_all(engine, tables=TABLES)
        return engine

    @property
    def has_local(self) -> bool:
        """Return True if the file exists, because it was needed before."""
        return self._path.exists()

    def each(self) -> Iterator[sa.Engine]:
        """Yield the stores that exist and answer."""
        if self.has_local:
            yield self.local
        try:
            if (warehouse := self.warehouse) is not None:
                yield warehouse
        except IngestError:
            return

    def read(self) -> AlertState:
        """Return open incidents and failing channels of both stores, as far as they answer."""
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
