"""Asset checks of user activity. Each check reads what is stored now."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.platform.delta.table import query_events
from ingest_project.streams.checks import MOST_SHOWN, RECENT, health_of
from ingest_project.streams.positions import OffsetRange
from ingest_project.streams.user_activity.event_queries import of_offsets
from ingest_project.streams.user_activity.recovery import (
    hours_text,
    is_in_doubt,
    missing_runs,
    size_of,
    without_known,
)
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import FIRST_HOUR, USER_ACTIVITY_EVENTS, app_id_of

AHEAD = timedelta(minutes=5)
# Going through all that were ever stored would take longer each time.
LAST_OFFSETS = 1_000_000


@dg.asset_check(
    asset=USER_ACTIVITY_EVENTS,
    description="No partition waits too long or keeps failing, the table has all rows, and no offset got lost of late.",
)
def no_gap_in_offsets(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Look for partitions that stand still, and for rows that should be in the table."""
    patience = services.settings.user_activity.max_unfinished_seconds
    health = health_of(services, services.activity_positions, patience)
    rows, missing, behind = _missing_rows(services)
    wrong = bool(health.failing or health.late or rows or behind)
    return dg.AssetCheckResult(
        passed=not (wrong or health.lost),
        # What retention has removed cannot be had back: a person should know, and that is all.
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata={
            **health.metadata(),
            "rows_missing": rows,
            "missing": missing[:MOST_SHOWN],
            "table_behind": behind[:MOST_SHOWN],
        },
    )


@dg.asset_check(asset=USER_ACTIVITY_EVENTS, description="No offset is in the table twice.")
def no_duplicate_offsets(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Look for rows of the same offset among those that were stored last."""
    rows = offsets = 0
    for position in services.activity_positions.current().values():
        end = position.next_offset
        last = OffsetRange(*position.topic_partition, max(position.first_offset, end - LAST_OFFSETS), end)
        counted = "count(*) AS rows, count(DISTINCT kafka_offset) AS offsets"
        query = f"SELECT {counted} FROM events WHERE {of_offsets(last)}"
        found = _counts(services, query, "rows", "offsets") if len(last) else (0, 0)
        rows, offsets = rows + found[0], offsets + found[1]
    return dg.AssetCheckResult(passed=rows == offsets, metadata={"rows": rows, "duplicates": rows - offsets})


@dg.asset_check(
    asset=USER_ACTIVITY_EVENTS,
    description="Hardly any event says that it happened before user activity began, or after it arrived.",
)
def event_time_plausible(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Count the recently arrived events with an impossible time."""
    too_early = f"\"timestamp\" < TIMESTAMP '{FIRST_HOUR.isoformat()}'"
    too_late = f"\"timestamp\" > kafka_timestamp + INTERVAL '{AHEAD.seconds} seconds'"
    counted = f"count(*) AS rows, count(*) FILTER (WHERE {too_early} OR {too_late}) AS implausible"
    arrived_recently = f"kafka_timestamp >= TIMESTAMP '{(datetime.now(UTC) - RECENT).isoformat()}'"
    query = f"SELECT {counted} FROM events WHERE {arrived_recently}"
    rows, implausible = _counts(services, query, "rows", "implausible")
    return dg.AssetCheckResult(
        passed=implausible <= rows * services.settings.user_activity.max_implausible_share,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"rows": rows, "implausible": implausible},
    )


CHECKS = [no_gap_in_offsets, no_duplicate_offsets, event_time_plausible]


def _missing_rows(services: UserActivityResources) -> tuple[int, list[str], list[str]]:
    """Count rows that were stored and are not in the table any more; name their offsets and hours.

    Only a commit that may have removed rows, or a table that is behind, is a reason to count.

    Returns:
        number of rows, a line for each partition that lacks some, and one for each whose position went back.
    """
    positions, rows = services.activity_positions.all(), 0
    missing, behind = [], []
    standings = services.user_activity_events.standings([app_id_of(one.topic_partition) for one in positions])
    for position in positions:
        standing = standings[app_id_of(position.topic_partition)]
        if not is_in_doubt(standing, position):
            continue
        whole = OffsetRange(*position.topic_partition, position.first_offset, position.next_offset)
        found = [run for _, piece in missing_runs(services, whole) for run in piece]
        runs = without_known(services, whole, found)
        if runs:
            rows += size_of(runs)
            lacks = OffsetRange(*position.topic_partition, runs[0][0], runs[-1][1])
            missing.append(f"{size_of(runs)} rows of {lacks}; hours {hours_text(services, lacks)}")
        reached = position.first_offset if standing.position is None else standing.position
        if reached < position.next_offset:
            lacks = OffsetRange(*position.topic_partition, reached, position.next_offset)
            hours = hours_text(services, lacks)
            behind.append(f"the table is at {reached} and lacks {lacks}; hours {hours}")
    return rows, missing, behind


def _counts(services: UserActivityResources, query: str, *names: str) -> list[int]:
    found = [row for batch in query_events(services.user_activity_events, query) for row in batch.to_pylist()]
    return [sum(row[name] for row in found) for name in names]
