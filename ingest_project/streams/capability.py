"""The streams, as definitions, operations and commands see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

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
    of_trace,
    rows_where,
)
from ingest_project.platform.database import reading
from ingest_project.platform.database.declared_tables import columns_of_table
from ingest_project.streams.crm.records import opportunities, projects, unidentified_messages
from ingest_project.streams.delta.queries import rows_of_trace
from ingest_project.streams.engine import is_failing
from ingest_project.streams.positions import SinkPosition, message_counts, stream_failures
from ingest_project.streams.resources import DeclaredStreamResources

if TYPE_CHECKING:
    from ingest_project.platform.delta.table import DeltaStore
    from ingest_project.streams.declaration import StreamDeclaration

STREAM_MESSAGES = "ingest_stream_messages"
UNIDENTIFIED = "ingest_unidentified_messages"
FAILED_ATTEMPTS = "ingest_stream_failed_attempts"

MAX_HOURS = 1_000
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Streams(Capability[DeclaredStreamResources]):
    """Topics to tables, each Kafka offset exactly once: user activity, CRM, and declared ones."""

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
        """Import and return what Dagster loads of each stream; a declared one that fails is left out."""
        from ingest_project.streams.crm import definitions as crm  # noqa: PLC0415 - imports dagster
        from ingest_project.streams.declaration import load_streams  # noqa: PLC0415 - brings Polars
        from ingest_project.streams.declared import parts_of_stream  # noqa: PLC0415 - the same
        from ingest_project.streams.user_activity import definitions as activity  # noqa: PLC0415 - the same

        return {
            "user_activity": DagsterParts(activity.user_activity, activity.external_assets, activity.STORED),
            "crm": DagsterParts(crm.crm, crm.external_assets, crm.STORED),
            **{one.name: parts_of_stream(one) for one in load_streams(settings).usable},
        }

    def topics(self, services: DeclaredStreamResources) -> tuple[ConsumedTopic, ...]:
        """Return the topics of the streams: a message that cannot be stored becomes a dead letter automatically."""
        topics = services.settings.topics
        return (
            ConsumedTopic(topics.user_activity_events, "user_activity_events_sensor", skippable=False),
            ConsumedTopic(topics.sales_events, "sales_events_sensor", skippable=False),
            *(
                ConsumedTopic(one.topic, f"{one.name}_sensor", skippable=False, dead_letters=one.dlq)
                for one in services.declared_streams.usable
            ),
        )

    def read_work(self, services: DeclaredStreamResources, *, detailed: bool) -> WorkState:
        """Read the positions of the streams, and in detail count hours whose statistics are to be computed now."""
        streams = services.stream_positions
        positions = {stream.topic: stream.all() for stream in streams}
        gauges: dict[str, dict[tuple[str, ...], float]] = {
            UNIDENTIFIED: {(): float(_unidentified(services.engine))},
            FAILED_ATTEMPTS: _attempts(positions),
        }
        failing = (f"{one}: {one.reason}" for known in positions.values() for one in known if is_failing(one))
        broken = (f"stream {one.name}: {one.problem}" for one in services.declared_streams.broken)
        problems = (*failing, *broken)
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

    def delta_tables(self, services: DeclaredStreamResources) -> Mapping[str, Callable[[], DeltaStore]]:
        """Return the tables of user activity and of declared streams."""
        declared = [one for one in services.declared_streams.usable if one.is_delta]
        return {
            "user_activity_events": lambda: services.user_activity_events,
            **{one.name: partial(_store_of, services, one) for one in declared},
        }

    def trace(self, services: DeclaredStreamResources, trace_id: str) -> Sequence[Moment]:
        """Return the records, unidentified messages and events of a trace."""
        with reading(services.engine) as connection:
            records = [
                _record(table.name, row)
                for table in (opportunities, projects)
                for row in rows_where(connection, table, of_trace(table, trace_id))
            ]
            unidentified = rows_where(connection, unidentified_messages, of_trace(unidentified_messages, trace_id))
        found = [moment for row in unidentified for moment in _unidentified_history(row)]
        declared = [moment for one in services.declared_streams.usable for moment in _declared(services, one, trace_id)]
        return [*records, *found, *_events(services, trace_id), *declared]

    def correct_future_times(self, services: DeclaredStreamResources, now: datetime, skew_seconds: float) -> int:
        """Set times in the future to now."""
        streams = services.stream_positions
        return sum(stream.correct_future_times(now, skew_seconds) for stream in streams)


def _store_of(services: DeclaredStreamResources, declaration: StreamDeclaration) -> DeltaStore:
    return services.delta_stream(declaration).store


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


def _events(services: DeclaredStreamResources, trace_id: str) -> Iterator[Moment]:
    try:
        rows = rows_of_trace(services.user_activity_events, trace_id, ("event_id", "event_type", "timestamp"))
    except StoreUnavailableError as away:
        complain(f"User activity could not be searched: {away}")
        return
    for row in rows:
        at = row["kafka_timestamp"] or row["timestamp"]
        yield Moment(at, f"event {row['event_id']}", str(row["event_type"]), kafka_position(row))


def _declared(services: DeclaredStreamResources, declaration: StreamDeclaration, trace_id: str) -> Iterator[Moment]:
    """Yield the rows of a trace in a declared stream."""
    rows: Sequence[Mapping[str, Any] | sa.RowMapping]
    try:
        if declaration.is_delta:
            rows = rows_of_trace(services.delta_stream(declaration).store, trace_id, ())
        else:
            from ingest_project.streams.sql.declared import table_of  # noqa: PLC0415 - brings Polars

            table = table_of(declaration)
            if not columns_of_table(services.engine, table.name):
                return
            with reading(services.engine) as connection:
                rows = rows_where(connection, table, of_trace(table, trace_id))
    except StoreUnavailableError as away:
        complain(f"The stream {declaration.name} could not be searched: {away}")
        return
    for row in rows:
        at = row["kafka_timestamp"] or row.get("stored_at") or BEGINNING
        yield Moment(at, f"row of {declaration.name}", "stored", kafka_position(row))
