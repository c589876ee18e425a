"""Asset checks and freshness of user activity. Each check reads what is stored now."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.core.keys import hour_key
from ingest_project.platform.delta.table import ask
from ingest_project.streams.checks import MOST_SHOWN, RECENT, planned_twice, shown, unread
from ingest_project.streams.range_record import OffsetRange, RangeRecord, RangeState, cut
from ingest_project.streams.user_activity.events_schema import Offsets, stored_offsets
from ingest_project.streams.user_activity.recompute_hours import OFFSETS_AT_A_TIME, joined
from ingest_project.streams.user_activity.recovery import runs_between, stored_rows
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import FIRST_HOUR, USER_ACTIVITY_EVENTS, stream_of

AHEAD = timedelta(minutes=5)
RANGES_LOOKED_AT = 100


@dg.asset_check(
    asset=USER_ACTIVITY_EVENTS,
    description="Every offset up to the cursor is planned to be read, none waits too long, was given up or got lost.",
)
def no_gap_in_offsets(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Look for offsets between two ranges, for ranges that were not read, and for rows that should be in the table."""
    patience = services.settings.user_activity.max_unfinished_seconds
    found = unread(services, services.settings.topics.user_activity_events, patience)
    (rows, missing), behind = _missing_rows(services), _behind(services)
    wrong = bool(found.gaps or found.given_up or found.late or rows or behind)
    return dg.AssetCheckResult(
        passed=not (wrong or found.lost),
        # What retention has removed cannot be had back: a person should know, and that is all.
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata={
            "gaps": [str(gap) for gap in found.gaps],
            "rows_missing": rows,
            "missing": missing,
            "table_behind": behind,
            "given_up": shown(found.given_up),
            "waiting": shown(found.late),
            "lost": shown(found.lost),
        },
    )


@dg.asset_check(asset=USER_ACTIVITY_EVENTS, description="No offset is planned twice, or in the table twice.")
def no_duplicate_offsets(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Look for ranges that overlap, and for rows of the same offset among those that were stored last."""
    twice = planned_twice(services, services.settings.topics.user_activity_events)
    rows, offsets = _stored(services, _last_stored(services))
    return dg.AssetCheckResult(
        passed=not twice and rows == offsets,
        metadata={"ranges": twice[:MOST_SHOWN], "rows": rows, "duplicates": rows - offsets},
    )


@dg.asset_check(
    asset=USER_ACTIVITY_EVENTS,
    description="Hardly any event says that it happened before user activity began, or after it arrived.",
)
def event_time_plausible(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Count the recently arrived events with an impossible time."""
    too_early = f"\"timestamp\" < TIMESTAMP '{FIRST_HOUR.isoformat()}'"
    too_late = f"\"timestamp\" > kafka_timestamp + INTERVAL '{AHEAD.seconds} seconds'"
    counted = f"count(*) AS rows, count(*) FILTER (WHERE {too_early} OR {too_late}) AS implausible"
    query = f"SELECT {counted} FROM events WHERE {_arrived_recently()}"
    rows, implausible = _counts(services, query, "rows", "implausible")
    return dg.AssetCheckResult(
        passed=implausible <= rows * services.settings.user_activity.max_implausible_share,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"rows": rows, "implausible": implausible},
    )


def _last_stored(services: UserActivityResources) -> tuple[RangeRecord, ...]:
    """The ranges that were finished last. To go through all that ever were would take longer each time."""
    topic = services.settings.topics.user_activity_events
    return services.stream_ranges.list(topic, [RangeState.DONE], RANGES_LOOKED_AT)


def _missing_rows(services: UserActivityResources) -> tuple[int, list[str]]:
    """How many rows the ledger says were stored and the table does not have; which offsets they are of, and hours."""
    records = _last_stored(services)
    total = sum(map(stored_rows, records))
    if total <= _stored(services, records)[1]:
        return 0, []
    rows, lines = 0, []
    for record in sorted(records, key=lambda one: one.offsets):
        there = stored_offsets(
            services.user_activity_events, Offsets(*record.offsets.topic_partition, *_bounds(record))
        )
        if (missing := stored_rows(record) - len(there)) > 0:
            rows += missing
            spans = [
                OffsetRange(*record.offsets.topic_partition, *run) for run in runs_between(there, *_bounds(record))
            ]
            hours = _hours_of(services, [record])
            lines.append(f"{missing} rows of {', '.join(map(str, spans[:MOST_SHOWN]))}; hours {hours}")
    return rows, lines[:MOST_SHOWN]


def _bounds(record: RangeRecord) -> tuple[int, int]:
    return record.offsets.first, record.offsets.end


def _behind(services: UserActivityResources) -> list[str]:
    """Partitions in which the table is not where the ledger says, and commits that may have removed rows."""
    topic_partitions = services.stream_ranges.topic_partitions(services.settings.topics.user_activity_events)
    ends = [
        OffsetRange(*topic_partition, 0, services.stream_ranges.finished_until(topic_partition))
        for topic_partition in topic_partitions
    ]
    standings = services.user_activity_events.standings([stream_of(end) for end in ends])
    found = []
    for end in ends:
        first, position = services.stream_ranges.first_planned(*end.topic_partition), standings[stream_of(end)].position
        reached = first if position is None else position
        if reached is not None and reached < end.end:
            lacks = OffsetRange(*end.topic_partition, reached, end.end)
            records = services.stream_ranges.overlapping(lacks)
            # What was lost before it was read never was in the table.
            if not records or any(record.state is RangeState.DONE for record in records):
                found.append(f"the table is at {reached} and lacks {lacks}; hours {_hours_of(services, records)}")
    return found[:MOST_SHOWN]


def _hours_of(services: UserActivityResources, records: Sequence[RangeRecord]) -> str:
    hours = {hour for record in records[:MOST_SHOWN] for hour in services.activity_hours.hours_of(record.range_key)}
    return ", ".join(map(hour_key, sorted(hours)[:MOST_SHOWN]))


def _stored(services: UserActivityResources, records: Sequence[RangeRecord]) -> tuple[int, int]:
    """How many rows the table has of these ranges, and of how many different offsets."""
    rows = offsets = 0
    for whole in joined([record.offsets for record in records]):
        for one in cut(whole.topic, whole.topic_id, whole.partition, whole.first, whole.end, OFFSETS_AT_A_TIME):
            place = Offsets(one.topic, one.topic_id, one.partition, one.first, one.end)
            counted = "count(*) AS rows, count(DISTINCT kafka_offset) AS offsets"
            found = _counts(services, f"SELECT {counted} FROM events WHERE {place.condition}", "rows", "offsets")
            rows, offsets = rows + found[0], offsets + found[1]
    return rows, offsets


def _arrived_recently() -> str:
    return f"kafka_timestamp >= TIMESTAMP '{(datetime.now(UTC) - RECENT).isoformat()}'"


def _counts(services: UserActivityResources, query: str, *names: str) -> list[int]:
    found = [row for batch in ask(services.user_activity_events, query) for row in batch.to_pylist()]
    return [sum(row[name] for row in found) for name in names]


CHECKS = [no_gap_in_offsets, no_duplicate_offsets, event_time_plausible]


EVENTS_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2), warn_window=timedelta(hours=1))
HOURLY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=3), warn_window=timedelta(hours=2))
