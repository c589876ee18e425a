"""The streams, as definitions, operations and commands see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from ingest_project.core.console import complain, counted
from ingest_project.core.errors import StoreUnavailableError
from ingest_project.platform.capability import (
    Amount,
    Capability,
    ConsumedTopic,
    DagsterParts,
    Metric,
    Moment,
    PurgeStep,
    QueueTable,
    WorkState,
    counted_by_state,
    kafka_position,
    rows_where,
)
from ingest_project.platform.database.engine import reading
from ingest_project.streams.crm.resources import CrmResources
from ingest_project.streams.crm.tables import opportunities, projects, unidentified_messages
from ingest_project.streams.range_record import RangeState
from ingest_project.streams.tables import stream_ranges
from ingest_project.streams.user_activity.events_schema import events_of_trace
from ingest_project.streams.user_activity.resources import UserActivityResources

if TYPE_CHECKING:
    from ingest_project.platform.delta.table import DeltaStore

STREAM_MESSAGES = "ingest_stream_messages"
UNIDENTIFIED = "ingest_unidentified_messages"

MAX_HOURS = 1_000
MAX_RANGES = 1_000_000
# Longer than any tick takes: what was planned before is planned, and nothing comes in between any more.
SETTLED = timedelta(days=1)

QUEUE = QueueTable(
    "offset_range", stream_ranges, stream_ranges.c.range_key, RangeState, failed_states=("failed", "lost")
)


class StreamServices(UserActivityResources, CrmResources):
    """The resources of both streams."""


def range_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield what a stored range of offsets adds to the counters."""
    for outcome, messages in (row["outcome"] or {}).items():
        yield Amount(STREAM_MESSAGES, (row["topic"], outcome), messages)


class Streams(Capability[StreamServices]):
    """Topics to tables, each Kafka offset exactly once: user activity and CRM."""

    name = "streams"
    queues = (QUEUE,)
    metrics = (Metric(STREAM_MESSAGES, ("topic", "outcome"), "Messages of streams, by their outcome."),)
    gauges = (Metric(UNIDENTIFIED, (), "CRM messages that are stored apart and not identified."),)
    counted = counted_by_state(
        QUEUE, (stream_ranges.c.topic, stream_ranges.c.outcome), range_amounts, (RangeState.DONE, RangeState.LOST)
    )

    def dagster_parts(self) -> Mapping[str, DagsterParts]:
        """Import and return what Dagster loads of each stream."""
        from ingest_project.streams.crm import catalog as crm_catalog  # noqa: PLC0415 - imports dagster
        from ingest_project.streams.crm.definitions import crm  # noqa: PLC0415 - the same
        from ingest_project.streams.user_activity import catalog  # noqa: PLC0415 - the same
        from ingest_project.streams.user_activity.definitions import user_activity  # noqa: PLC0415 - the same

        return {
            "user_activity": DagsterParts(user_activity, catalog.external_assets, catalog.STORED),
            "crm": DagsterParts(crm, crm_catalog.external_assets, crm_catalog.STORED),
        }

    def topics(self, services: StreamServices) -> tuple[ConsumedTopic, ...]:
        """Return the topics of the streams: a message that cannot be stored becomes a dead letter automatically."""
        topics = services.settings.topics
        return (
            ConsumedTopic(topics.user_activity_events, "user_activity_events_sensor", skippable=False),
            ConsumedTopic(topics.sales_events, "sales_events_sensor", skippable=False),
        )

    def read_work(self, services: StreamServices, *, detailed: bool) -> WorkState:
        """Count ranges, and hours whose statistics are to be computed now."""
        state = super().read_work(services, detailed=False)
        if detailed:
            each = [services.stream_ranges.counts_by_state(topic.topic) for topic in self.topics(services)]
            totals = Counter[str]()
            for counts in each:
                totals.update(counts)
            ranges = msgspec.structs.replace(state.queues[0], counts=dict(totals), due=totals["pending"])
            state = msgspec.structs.replace(state, queues=(ranges,))
        # After the ranges: a range that was finished meanwhile has marked its hours before.
        pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
        hours = len(services.activity_hours.due(datetime.now(UTC), pause, MAX_HOURS)) if detailed else 0
        return msgspec.structs.replace(
            state,
            going_on=(f"{counted(hours, 'hour')} of user activity to be counted",) if hours else (),
            facts={"Hours to be counted": hours},
            gauges={UNIDENTIFIED: _unidentified(services.engine)},
        )

    def delta_tables(self, services: StreamServices) -> Mapping[str, Callable[[], DeltaStore]]:
        """Return the table of user activity."""
        return {"user_activity_events": lambda: services.user_activity_events}

    def purge_steps(
        self, services: StreamServices, now: datetime, counted_until: Callable[[], datetime]
    ) -> Sequence[PurgeStep]:
        """Find ranges that were done long ago."""
        intervals, cutoff = services.stream_intervals, now - timedelta(days=services.settings.retention.range_days)

        def remove() -> None:
            counted_to = counted_until()
            intervals.extend(now - SETTLED)
            intervals.purge(min(cutoff, counted_to), MAX_RANGES)

        return [PurgeStep("offset ranges", intervals.count_old(cutoff, MAX_RANGES), [], remove)]

    def trace(self, services: StreamServices, trace_id: str) -> Sequence[Moment]:
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

    def bring_back_to(self, services: StreamServices, now: datetime, skew_seconds: float) -> int:
        """Set times in the future to now."""
        return services.stream_ranges.bring_back_to(now, skew_seconds)


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
