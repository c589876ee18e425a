"""Dagster definitions of a stream with a Delta table: asset, checks, jobs, schedules and sensor.

The asset has a partition for each hour of the rows' time. A run that a tick requests stores each Kafka partition up to
the offsets in its configuration; one that a person starts without them stores all. A person who materialises hours
rebuilds them from what Kafka still has. Each check reads what is stored now.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from ingest_project.core.errors import TransactionConflictError, TransientError
from ingest_project.core.items import hour_key, parse_hour_key
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import (
    Context,
    PartitionEvents,
    WholeAssetResult,
    keep_connections_open,
    outputs_without_events,
    partitions_of_run,
    report,
)
from ingest_project.platform.dagster.catalog import running_schedule
from ingest_project.platform.database import exclusive
from ingest_project.platform.delta.maintenance import optimize_and_vacuum, summary
from ingest_project.platform.delta.table import query_events
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG
from ingest_project.streams.delta.queries import of_offsets
from ingest_project.streams.delta.rebuild import rebuild_hour
from ingest_project.streams.delta.recovery import (
    complete_all,
    hours_text,
    is_in_doubt,
    missing_runs,
    size_of,
    without_known,
)
from ingest_project.streams.delta.sink import DeltaSink
from ingest_project.streams.delta.stream import LOCK_WAIT_SECONDS, DeltaStream
from ingest_project.streams.engine import MAX_SHOWN, RECENT, StreamRun, health_of, settle, store_stream
from ingest_project.streams.hours import FIRST_HOUR
from ingest_project.streams.positions import OffsetRange, StreamPositions
from ingest_project.streams.sensor import (
    StreamLimits,
    StreamRunConfig,
    StreamSensor,
    gap_check,
    raise_failure,
    scheduled_checks,
    stream_sensor,
)

AHEAD = timedelta(minutes=5)
# Offsets to check: checking all stored ones would take longer each time.
LAST_OFFSETS = 1_000_000
MAX_HOURS = 10_000
# Fewer messages than this are stored sooner than a second run has started.
WORTH_SPLITTING = 100_000

logger = get_logger(__name__)

# The current hour is a partition too, so that new arrivals are visible.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)


@dataclass(frozen=True)
class DeltaParts:
    """A stream as Dagster shows it.

    Args:
        name: name of the stream: its jobs and schedules begin with it.
        spec: describes the asset, which has a partition for each hour.
        open: returns the stream, given the resources of a run.
        limits: bounds of its runs, and thresholds of its checks.
        checks: further ones.
        checks_cron: when the checks run.
        maintenance_cron: when the table is maintained.
    """

    name: str
    spec: dg.AssetSpec
    open: Callable[[Any], DeltaStream]
    limits: StreamLimits
    checks: Sequence[dg.AssetChecksDefinition] = ()
    checks_cron: str = "11,26,41,56 * * * *"
    maintenance_cron: str = "4-59/10 * * * *"

    @property
    def asset(self) -> dg.AssetKey:
        """The table."""
        return self.spec.key

    @property
    def op_name(self) -> str:
        """The step that stores messages."""
        return f"store_{self.name}"

    @property
    def batch_name(self) -> str:
        """The job that stores messages."""
        return f"{self.name}_batch"


def delta_definitions(parts: DeltaParts, *more: dg.AssetsDefinition) -> dg.Definitions:
    """Return the Dagster definitions of a stream.

    Args:
        parts: parts of the stream.
        more: assets that belong to it.
    """
    checks = [no_gap_in_offsets(parts), no_duplicate_offsets(parts), event_time_plausible(parts), *parts.checks]
    maintenance = _maintenance_job(parts)

    def positions(services: Runtime) -> StreamPositions:
        return parts.open(services).positions

    name = f"{parts.asset.path[-1]}_sensor"
    sensor = StreamSensor(name, parts.batch_name, parts.op_name, positions, parts.limits, WORTH_SPLITTING)
    own = dg.Definitions(
        assets=[_asset(parts), *more],
        jobs=[_batch_job(parts), maintenance],
        schedules=[running_schedule(f"{maintenance.name}_every_ten_minutes", maintenance, parts.maintenance_cron)],
        sensors=[stream_sensor(sensor)],
    )
    described = "Checks whether every offset is stored once, and the events' times are possible."
    return dg.Definitions.merge(own, scheduled_checks(parts.name, checks, parts.checks_cron, described))


def _asset(parts: DeltaParts) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=f"{parts.name}_intake",
        specs=[parts.spec.replace_attributes(partitions_def=hourly_partitions)],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def events(
        context: dg.AssetExecutionContext, services: dg.ResourceParam[Runtime]
    ) -> Iterator[dg.MaterializeResult[None]]:
        """Rebuild the selected hours, from Kafka as far as it has them."""
        partitions = partitions_of_run(context)
        keep_connections_open(context.instance)
        stream = parts.open(services)
        for partition in partitions:
            hour = parse_hour_key(partition)
            rebuilt = rebuild_hour(stream, hour)
            changes = stream.hours.changes([hour])
            report(context, [PartitionEvents(partition, {parts.asset: rebuilt.metadata()})])
            stream.hours.mark_reported(changes)
        yield from outputs_without_events(context)

    return events


def _batch_job(parts: DeltaParts) -> dg.JobDefinition:
    @dg.op(name=parts.op_name, description="Stores messages of the topic up to the offsets in its configuration.")
    def store(context: dg.OpExecutionContext, config: StreamRunConfig, services: dg.ResourceParam[Runtime]) -> None:
        """Append rows to the Delta table, each offset once."""
        store_messages(context, services, parts, config)

    @dg.job(name=parts.batch_name, description="Stores messages of the topic.")
    def batch() -> None:
        """One step: the hours of the rows are known only when it ends."""
        store()

    return batch


def _maintenance_job(parts: DeltaParts) -> dg.JobDefinition:
    @dg.op(
        name=f"maintain_{parts.asset.path[-1]}",
        description="Reads missing rows again, merges small files, writes a checkpoint, removes what is out of"
        " retention.",
    )
    def maintain(context: dg.OpExecutionContext, services: dg.ResourceParam[Runtime]) -> None:
        """Maintain the Delta table. Idempotent."""
        stream = parts.open(services)
        retention = {"retention_hours": parts.limits.retention_hours}
        limits = services.settings.delta.model_copy(update=retention)
        with exclusive(services.engine, stream.lock, LOCK_WAIT_SECONDS):
            try:
                context.log.info("Rows recovered: %s", complete_all(stream).metadata() or "none")
            except TransactionConflictError as conflict:
                context.log.info("Messages are being stored, the next maintenance looks for missing rows: %s", conflict)
            maintenance = optimize_and_vacuum(stream.store, limits)
        context.log.info(summary(maintenance))

    @dg.job(name=f"{parts.name}_maintenance", description="Maintains the Delta table.")
    def maintenance_job() -> None:
        """The maintenance has one step."""
        maintain()

    return maintenance_job


def store_messages(context: Context, services: Runtime, parts: DeltaParts, config: StreamRunConfig) -> None:
    """Store messages up to the offsets of the configuration, or all, and report the hours that changed.

    Raises:
        Failure: not all of them are stored; the next tick requests the rest again.
    """
    keep_connections_open(context.instance)
    stream = parts.open(services)
    sink = DeltaSink(stream)
    with bound(run_id=context.run.run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
        run = store_stream(services, stream.positions, sink, run_id=context.run.run_id, ends=config.ends)
        _report(context, parts, run, sink)
        settle(services, stream.positions, run)
    raise_failure(run)


def _report(context: Context, parts: DeltaParts, run: StreamRun, sink: DeltaSink) -> None:
    """Report each hour that changed since it was reported last: also those of a run that was killed before it did."""
    stream = sink.stream
    try:
        changes = stream.hours.unreported(stream.first_hour, datetime.now(UTC), MAX_HOURS)
    except TransientError as away:
        # The next run reports them.
        logger.warning("hours_not_reported", reason=str(away))
        return
    version = {} if sink.table_version is None else {"table_version": sink.table_version}
    common = {**run.outcome, **run.metadata(), **version, **sink.recovered.metadata()}
    rows = sink.hours + sink.recovered.hours
    added = {hour: {parts.asset: {"rows_added": rows[hour], **common}} for hour in changes}
    report(context, [PartitionEvents(hour_key(hour), assets) for hour, assets in added.items()])
    stream.hours.mark_reported(changes)


def no_gap_in_offsets(parts: DeltaParts) -> dg.AssetChecksDefinition:
    """Return the check for partitions that do not progress, and rows that the table lacks."""

    @dg.asset_check(
        asset=parts.asset,
        name="no_gap_in_offsets",
        description="No partition waits too long or keeps failing, the table has all rows, and no offset got lost of"
        " late.",
    )
    def check(services: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        stream = parts.open(services)
        health = health_of(services, stream.positions, parts.limits.max_unfinished_seconds)
        rows, missing, behind = _missing_rows(stream)
        found = {"rows_missing": rows, "missing": missing[:MAX_SHOWN], "table_behind": behind[:MAX_SHOWN]}
        return gap_check(health, found, is_wrong=bool(rows or behind))

    return check


def no_duplicate_offsets(parts: DeltaParts) -> dg.AssetChecksDefinition:
    """Return the check for rows of the same offset among those that were stored last."""

    @dg.asset_check(asset=parts.asset, name="no_duplicate_offsets", description="No offset is in the table twice.")
    def check(services: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        rows = offsets = 0
        stream = parts.open(services)
        for position in stream.positions.current().values():
            end = position.next_offset
            last = OffsetRange(*position.topic_partition, max(position.first_offset, end - LAST_OFFSETS), end)
            counted = "count(*) AS rows, count(DISTINCT kafka_offset) AS offsets"
            query = f"SELECT {counted} FROM events WHERE {of_offsets(last)}"
            found = _counts(stream, query, "rows", "offsets") if len(last) else (0, 0)
            rows, offsets = rows + found[0], offsets + found[1]
        return WholeAssetResult(passed=rows == offsets, metadata={"rows": rows, "duplicates": rows - offsets})

    return check


def event_time_plausible(parts: DeltaParts) -> dg.AssetChecksDefinition:
    """Return the check for recently arrived rows with an impossible time."""

    @dg.asset_check(
        asset=parts.asset,
        name="event_time_plausible",
        description="Hardly any row says that it happened before the first partition, or after it arrived.",
    )
    def check(services: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        stream = parts.open(services)
        too_early = f"\"{stream.time_column}\" < TIMESTAMP '{stream.first_hour.isoformat()}'"
        too_late = f"\"{stream.time_column}\" > kafka_timestamp + INTERVAL '{AHEAD.seconds} seconds'"
        counted = f"count(*) AS rows, count(*) FILTER (WHERE {too_early} OR {too_late}) AS implausible"
        arrived_recently = f"kafka_timestamp >= TIMESTAMP '{(datetime.now(UTC) - RECENT).isoformat()}'"
        query = f"SELECT {counted} FROM events WHERE {arrived_recently}"
        rows, implausible = _counts(stream, query, "rows", "implausible")
        return WholeAssetResult(
            passed=implausible <= rows * parts.limits.max_implausible_share,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"rows": rows, "implausible": implausible},
        )

    return check


def _missing_rows(stream: DeltaStream) -> tuple[int, list[str], list[str]]:
    """Count rows that were stored and are not in the table any more; name their offsets and hours.

    Only a commit that may have removed rows, or a table that is behind, is a reason to count.

    Returns:
        number of rows, a line for each partition that lacks some, and one for each whose position went back.
    """
    positions, rows = stream.positions.all(), 0
    missing, behind = [], []
    standings = stream.store.standings([stream.app_id_of(one.topic_partition) for one in positions])
    for position in positions:
        standing = standings[stream.app_id_of(position.topic_partition)]
        if not is_in_doubt(standing, position):
            continue
        whole = OffsetRange(*position.topic_partition, position.first_offset, position.next_offset)
        found = [run for _, piece in missing_runs(stream, whole) for run in piece]
        runs = without_known(stream, whole, found)
        if runs:
            rows += size_of(runs)
            lacks = OffsetRange(*position.topic_partition, runs[0][0], runs[-1][1])
            missing.append(f"{size_of(runs)} rows of {lacks}; hours {hours_text(stream, lacks)}")
        reached = position.first_offset if standing.position is None else standing.position
        if reached < position.next_offset:
            lacks = OffsetRange(*position.topic_partition, reached, position.next_offset)
            hours = hours_text(stream, lacks)
            behind.append(f"the table is at {reached} and lacks {lacks}; hours {hours}")
    return rows, missing, behind


def _counts(stream: DeltaStream, query: str, *names: str) -> list[int]:
    found = [row for batch in query_events(stream.store, query) for row in batch.to_pylist()]
    return [sum(row[name] for row in found) for name in names]
