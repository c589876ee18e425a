"""The capability of streams: what it provides to definitions, operations and commands."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import sqlalchemy as sa

from ingest_project.core.console import counted
from ingest_project.platform.capability import Amount, Capability, ConsumedTopic, Failure, Metric, WorkState
from ingest_project.platform.database import reading
from ingest_project.platform.delta import TableFigures
from ingest_project.platform.items import Hit, ItemRef, ItemView, Moment, Search
from ingest_project.streams import items
from ingest_project.streams.crm.unidentified import count_open
from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.engine import is_failing
from ingest_project.streams.hours import HOURLY_SENSOR
from ingest_project.streams.positions import SinkPosition, message_totals, stream_failures
from ingest_project.streams.resources import StreamResources

STREAM_MESSAGES = "ingest_stream_messages"
UNIDENTIFIED = "ingest_unidentified_messages"
FAILED_ATTEMPTS = "ingest_stream_failed_attempts"

MAX_HOURS = 1_000


class Streams(Capability[StreamResources]):
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

    def topics(self, services: StreamResources) -> tuple[ConsumedTopic, ...]:
        """Return the topics of the streams: a message that cannot be stored becomes a dead letter automatically."""
        return tuple(
            ConsumedTopic(one.topic, one.sensor, skippable=False, dead_letters=one.dead_letters)
            for one in services.streams
        )

    def sensors_without_topic(self, services: StreamResources) -> Mapping[str, Callable[[datetime], bool]]:
        """Return the sensor that requests the hourly statistics of user activity."""
        pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
        return {HOURLY_SENSOR: lambda now: bool(services.user_activity.hours.due(now, pause, limit=1))}

    def read_work(self, services: StreamResources, *, detailed: bool) -> WorkState:
        """Read the positions of the streams, and in detail count hours whose statistics are to be computed now."""
        # Two streams may read the same topic.
        topics: defaultdict[str, list[SinkPosition]] = defaultdict(list)
        for stream in services.streams:
            topics[stream.topic] += stream.positions.all()
        with reading(services.engine) as connection:
            unidentified = count_open(connection)
        gauges: dict[str, dict[tuple[str, ...], float]] = {
            UNIDENTIFIED: {(): float(unidentified)},
            FAILED_ATTEMPTS: _attempts(topics),
        }
        failing = (f"{one}: {one.reason}" for known in topics.values() for one in known if is_failing(one))
        broken = (f"stream {one.name}: {one.problem}" for one in services.declared_streams.broken)
        problems = (*failing, *broken)
        if not detailed:
            return WorkState(problems=problems, gauges=gauges)
        lost = Counter[str]()
        for stream in services.streams:
            lost[stream.topic] += sum(one.messages for one in stream.positions.lost())
        # Read hours after positions: messages that are stored in between have marked their hours by then.
        pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
        hours = len(services.user_activity.hours.due(datetime.now(UTC), pause, MAX_HOURS))
        return WorkState(
            going_on=(f"{counted(hours, 'hour')} of user activity to be counted",) if hours else (),
            facts={
                "Stored": {topic: _outcomes(known) for topic, known in topics.items()},
                "Lost": {topic: {"messages": messages} for topic, messages in lost.items() if messages},
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

    def failures(self, services: StreamResources, connection: sa.Connection, limit: int) -> Iterator[Failure]:
        """Yield partitions whose last run failed, and the lost offsets that were found last, of the present streams."""
        present = [(one.name, one.topic) for one in services.declarations]
        failed, lost = stream_failures(connection, present, limit)
        for one in failed:
            yield Failure("stream_partition", str(one), "failed", one.reason, one.updated_at, one.run_id, None)
        for gone in lost:
            yield Failure("lost_offsets", str(gone.offsets), "lost", gone.reason, gone.found_at, None, None)

    def delta_tables(self, services: StreamResources) -> Mapping[str, Callable[[], TableFigures | None]]:
        """Return the tables of user activity and of declared streams."""
        return {one.source: partial(_figures_of, one.delta) for one in services.streams if one.delta}

    def trace(self, services: StreamResources, trace_id: str) -> Iterator[Moment]:
        """Yield the history of the records, unidentified messages and events of a trace."""
        return items.trace(services, trace_id)

    def find(self, services: StreamResources, search: Search, limit: int) -> Iterator[Hit]:
        """Yield the messages whose rows have an id, a key or a trace."""
        return items.find(services, search, limit)

    def item(self, services: StreamResources, ref: ItemRef) -> ItemView | None:
        """Describe the outcome of a message of a stream."""
        return items.describe(services, ref) if ref.kind == "message" else None

    def correct_future_times(self, services: StreamResources, now: datetime, skew_seconds: float) -> int:
        """Set times in the future to now."""
        return sum(one.positions.correct_future_times(now, skew_seconds) for one in services.streams)


def _figures_of(opened: Callable[[], DeltaStream]) -> TableFigures | None:
    return opened().store.figures()


def _attempts(positions: Mapping[str, Sequence[SinkPosition]]) -> dict[tuple[str, ...], float]:
    failing_last = ((topic, sorted(known, key=lambda one: one.attempts)) for topic, known in positions.items())
    return {(topic, str(one.partition)): float(one.attempts) for topic, known in failing_last for one in known}


def _outcomes(known: Sequence[SinkPosition]) -> dict[str, int]:
    totals = Counter[str]()
    for one in known:
        totals.update(one.outcome)
    return dict(totals)
