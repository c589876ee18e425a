"""The streams, as definitions, operations and commands see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ingest_project.core.console import complain, counted
from ingest_project.core.errors import StoreUnavailableError
from ingest_project.core.settings import Settings
from ingest_project.platform.capability import (
    Amount,
    Capability,
    ConsumedTopic,
    DagsterParts,
    Failure,
    Metric,
    Moment,
    WorkState,
    kafka_position,
    rows_where,
)
from ingest_project.platform.database import reading
from ingest_project.streams.crm.records import opportunities, projects, unidentified_messages
from ingest_project.streams.engine import is_failing
from ingest_project.streams.positions import SinkPosition, message_counts, stream_failures
from ingest_project.streams.user_activity.event_queries import events_of_trace
from ingest_project.streams.user_activity.resources import UserActivityResources

if TYPE_CHECKING:
    from ingest_project.platform.delta.table import DeltaStore

STREAM_MESSAGES = "ingest_stream_messages"
UNIDENTIFIED = "ingest_unidentified_messages"
FAILED_ATTEMPTS = "ingest_stream_failed_attempts"

MAX_HOURS = 1_000


class Streams(Capability[UserActivityResources]):
    """Topics to tables, each Kafka offset exactly once: user activity and CRM."""

    name = "streams"
    metrics = (Metric(STREAM_MESSAGES, ("topic", "outcome"), "Messages of streams, by their outcome."),)
    gauges = (
        Metric(UNIDENTIFIED, (), "CRM messages that are stored apart and not identified."),
        Metric(
            FAILED_ATTEMPTS,
            ("topic", "partition"),
            "Runs in a row that did not move a partition of a stream, one that is under way included.",
        ),
    )

    def dagster_parts(self, settings: Settings) -> Mapping[str, DagsterParts]:
        """Import and return what Dagster loads of each stream."""
        del settings
        from ingest_project.streams.crm import definitions as crm  # noqa: PLC0415 - imports dagster
        from ingest_project.streams.user_activity import definitions as activity  # noqa: PLC0415 - the same

        return {
            "user_activity": DagsterParts(activity.user_activity, activity.external_assets, activity.STORED),
            "crm": DagsterParts(crm.crm, crm.external_assets, crm.STORED),
        }

    def topics(self, services: UserActivityResources) -> tuple[ConsumedTopic, ...]:
        """Return the topics of the streams: a message that cannot be stored becomes a dead letter automatically."""
        topics = services.settings.topics
        return (
            ConsumedTopic(topics.user_activity_events, "user_activity_events_sensor", skippable=False),
            ConsumedTopic(topics.sales_events, "sales_events_sensor", skippable=False),
        )

    def read_work(self, services: UserActivityResources, *, detailed: bool) -> WorkState:
        """Read the positions of the streams, and in detail count hours whose statistics are to be computed now."""
        streams = (services.activity_positions, services.crm_positions)
        positions = {stream.topic: stream.all() for stream in streams}
        gauges: dict[str, dict[tuple[str, ...], float]] = {
            UNIDENTIFIED: {(): float(_unidentified(services.engine))},
            FAILED_ATTEMPTS: _attempts(positions),
        }
        problems = tuple(f"{one}: {one.reason}" for known in positions.values() for one in known if is_failing(one))
        if not detailed:
            return WorkState(problems=problems, gauges=gauges)
        lost = {stream.topic: {"messages": sum(one.messages for one in stream.lost())} for stream in streams}
        # After the positions: messages that were stored meanwhile have marked their hours before.
        pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
        hours = len(services.activity_hours.due(datetime.now(UTC), pause, MAX_HOURS))
        return WorkState(
            going_on=(f"{counted(hours, 'hour')} of user activity to be counted",) if hours else (),
            facts={
                "Stored": {topic: _outcomes(known) for topic, known in positions.items()},
                "Lost": {topic: counts for topic, counts in lost.items() if any(counts.values())},
                "Hours to be counted": hours,
            },
            problems=problems,
            gauges=gauges,
        )

    def running_totals(self, connection: sa.Connection) -> Iterator[Amount]:
        """Yield the messages of all streams: their positions keep totals of their own."""
        for labels, number in message_counts(connection).items():
            yield Amount(STREAM_MESSAGES, labels, number)

    def failures(self, connection: sa.Connection, limit: int) -> Iterator[Failure]:
        """Yield partitions whose last run failed, and the lost offsets that were found last."""
        failed, lost = stream_failures(connection, limit)
        for one in failed:
            yield Failure("stream_partition", str(one), "failed", one.reason, one.updated_at, one.run_id, None)
        for gone in lost:
            yield Failure("lost_offsets", str(gone.offsets), "lost", gone.reason, gone.found_at, None, None)

    def delta_tables(self, services: UserActivityResources) -> Mapping[str, Callable[[], DeltaStore]]:
        """Return the table of user activity."""
        return {"user_activity_events": lambda: services.user_activity_events}

    def trace(self, services: UserActivityResources, trace_id: str) -> Sequence[Moment]:
        """Return the records, unidentified messages and events of a trace."""
        with reading(services.engine) as connection:
            records = [
                _record(table.name, row)
                for table in (opportunities, projects)
                for row in rows_where(connection, table, table.c.trace_id == trace_id)
            ]
            unidentified = rows_where(connection, unidentified_messages, unidentified_messages.c.trace_id == trace_id)
        found = [moment for row in unidentified for moment in _unidentified_history(row)]
        return [*records, *found, *_events(services, trace_id)]

    def correct_future_times(self, services: UserActivityResources, now: datetime, skew_seconds: float) -> int:
        """Set times in the future to now."""
        streams = (services.activity_positions, services.crm_positions)
        return sum(stream.correct_future_times(now, skew_seconds) for stream in streams)


def _attempts(positions: Mapping[str, Sequence[SinkPosition]]) -> dict[tuple[str, ...], float]:
    return {(topic, str(one.partition)): float(one.attempts) for topic, known in positions.items() for one in known}


def _outcomes(known: Sequence[SinkPosition]) -> dict[str, int]:
    totals = Counter[str]()
    for one in known:
        totals.update(one.outcome)
    return dict(totals)


def _unidentified(engine: sa.Engine) -> int:
    query = sa.select(sa.func.count()).where(unidentified_messages.c.identified_at.is_(None))
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())


def _record(table: str, row: sa.RowMapping) -> Moment:
    version = f"version of {row['last_modified']:%Y-%m-%d %H:%M:%S} UTC from {kafka_position(row)}"
    return Moment(row["stored_at"], f"{table} {row['event_id']}", "stored", version)


def _unidentified_history(row: sa.RowMapping) -> Iterator[Moment]:
    subject = f"message {row['message_id']}"
    yield Moment(row["received_at"], subject, "unidentified", row["reason"])
    if row["identified_at"]:
        yield Moment(row["identified_at"], subject, "identified", f"{row['identified_as']} {row['event_id']}")


def _events(services: UserActivityResources, trace_id: str) -> Iterator[Moment]:
    try:
        rows = events_of_trace(services.user_activity_events, trace_id)
    except StoreUnavailableError as away:
        complain(f"User activity could not be searched: {away}")
        return
    for row in rows:
        at = row["kafka_timestamp"] or row["timestamp"]
        yield Moment(at, f"event {row['event_id']}", str(row["event_type"]), kafka_position(row))
