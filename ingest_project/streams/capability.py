"""The streams, as definitions, operations and commands see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import sqlalchemy as sa

from ingest_project.core.console import counted
from ingest_project.platform.capability import (
    Amount,
    Capability,
    ConsumedTopic,
    Failure,
    Metric,
    WorkState,
)
from ingest_project.platform.database import reading
from ingest_project.platform.delta import TableFigures
from ingest_project.platform.items import Hit, ItemRef, ItemView, Moment, Search
from ingest_project.streams import items
from ingest_project.streams.crm.records import unidentified_messages
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project.streams.engine import is_failing
from ingest_project.streams.positions import SinkPosition, message_totals, stream_failures
from ingest_project.streams.resources import DeclaredStreamResources

STREAM_MESSAGES = "ingest_stream_messages"
UNIDENTIFIED = "ingest_unidentified_messages"
FAILED_ATTEMPTS = "ingest_stream_failed_attempts"

MAX_HOURS = 1_000


class Streams(Capability[DeclaredStreamResources]):
    """Topics to tables, each Kafka offset exactly once: user activity, CRM, and declared ones."""

    name = "streams"
    metrics = (
        Metric(STREAM_MESSAGES, ("topic", "outcome"), "Messages of streams, by their outcome.", unit="messages"),
        Metric(
            UNIDENTIFIED, (), "CRM messages that are stored apart and not identified.", kind="gauge", unit="messages"
        ),
        Metric(
            FAILED_ATTEMPTS,
            ("topic", "partition"),
            "Runs in a row that did not move a partition of a stream, one that is under way included.",
            kind="gauge",
            unit="runs",
        ),
    )

    def topics(self, services: DeclaredStreamResources) -> tuple[ConsumedTopic, ...]:
        """Return the topics of the streams: a message that cannot be stored becomes a dead letter automatically."""
        topics = services.settings.topics
        return (
            ConsumedTopic(
                topics.user_activity_events,
                "user_activity_events_sensor",
                skippable=False,
                dead_letters=topics.user_activity_events_dlq,
            ),
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
        """Yield the messages of all streams, and their histograms: their positions keep totals of their own."""
        messages, seconds = message_totals(connection)
        yield from (Amount(STREAM_MESSAGES, labels, number) for labels, number in messages.items())
        yield from (Amount(series[0], series[1:], value) for series, value in seconds.items())

    def failures(self, connection: sa.Connection, limit: int) -> Iterator[Failure]:
        """Yield partitions whose last run failed, and the lost offsets that were found last."""
        failed, lost = stream_failures(connection, limit)
        for one in failed:
            yield Failure("stream_partition", str(one), "failed", one.reason, one.updated_at, one.run_id, None)
        for gone in lost:
            yield Failure("lost_offsets", str(gone.offsets), "lost", gone.reason, gone.found_at, None, None)

    def delta_tables(self, services: DeclaredStreamResources) -> Mapping[str, Callable[[], TableFigures | None]]:
        """Return the tables of user activity and of declared streams."""

        def user_activity() -> TableFigures | None:
            return services.user_activity_events.figures()

        declared = [one for one in services.declared_streams.usable if one.is_delta]
        return {
            "user_activity_events": user_activity,
            **{one.name: partial(_figures_of, services, one) for one in declared},
        }

    def trace(self, services: DeclaredStreamResources, trace_id: str) -> Iterator[Moment]:
        """Yield what is on record of the records, unidentified messages and events of a trace."""
        return items.trace(services, trace_id)

    def find(self, services: DeclaredStreamResources, search: Search, limit: int) -> Iterator[Hit]:
        """Yield the messages whose rows have an id, a key or a trace."""
        return items.find(services, search, limit)

    def item(self, services: DeclaredStreamResources, ref: ItemRef) -> ItemView | None:
        """Describe what became of a message of a stream."""
        return items.describe(services, ref) if ref.kind == "message" else None

    def correct_future_times(self, services: DeclaredStreamResources, now: datetime, skew_seconds: float) -> int:
        """Set times in the future to now."""
        streams = services.stream_positions
        return sum(stream.correct_future_times(now, skew_seconds) for stream in streams)


def _figures_of(services: DeclaredStreamResources, declaration: StreamDeclaration) -> TableFigures | None:
    return services.delta_stream(declaration).store.figures()


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
