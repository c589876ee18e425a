"""Dagster definitions of operations: the alert sensor for systems without a monitor, and the nightly retention job.

The job purges partitions, runs, message ids, and the capabilities' own records. Only successfully finished work
expires; failed, quarantined, waiting and leased entries are kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import dagster as dg
import msgspec
import sqlalchemy as sa

from ingest_project.attachments import definitions as attachments
from ingest_project.core.settings import Settings
from ingest_project.file_ingest import definitions as file_ingest
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.operations.alerts import channels
from ingest_project.operations.alerts.conditions import ALERTS_SENSOR
from ingest_project.operations.alerts.facts import FileFactsPoll, read_failures
from ingest_project.operations.alerts.watch import AlertWatch
from ingest_project.operations.snapshot import (
    SENSOR_DAEMON,
    SystemSnapshot,
    consumed_topics,
    read_dagster,
    read_warehouse,
    sample_of,
)
from ingest_project.operations.topics import BrokerPoll
from ingest_project.platform.capability import PurgeStep
from ingest_project.platform.dagster.catalog import DagsterParts, running_schedule
from ingest_project.platform.dagster.control import is_backfilling
from ingest_project.platform.dagster.records import RunRecords
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.database import fetch, reading, writing
from ingest_project.platform.database.sql import rows_in
from ingest_project.platform.items import QueueView
from ingest_project.platform.kafka.publisher import SENT, outbox
from ingest_project.platform.work_queue.sensor import BATCH_TAG
from ingest_project.polling import definitions as polling
from ingest_project.streams import declared as streams

ENDED_RUNS = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
MAX_PARTITIONS = 10_000
MAX_RUNS = 2_000
SHOWN = 10
PARTITION_TAG = "dagster/partition"


# One for each of `CAPABILITIES`.
DAGSTER_PARTS = (polling.dagster_parts, file_ingest.dagster_parts, attachments.dagster_parts, streams.dagster_parts)


def parts_of_capabilities(settings: Settings) -> dict[str, DagsterParts]:
    """Return the Dagster parts of the capabilities, by the names that INGEST_DISABLED_CAPABILITIES accepts."""
    return {name: parts for dagster_parts in DAGSTER_PARTS for name, parts in dagster_parts(settings).items()}


@dg.sensor(
    name=ALERTS_SENSOR,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends alerts while no monitor does.",
)
def alerts_sensor(context: dg.SensorEvaluationContext, services: dg.ResourceParam[SystemResources]) -> dg.SkipReason:
    """Report new and resolved incidents. The tick fails if a channel does not accept a message, which is sent again."""
    settings = services.settings
    if not channels(settings):
        return dg.SkipReason("No alert channel is set (INGEST_ALERT_URLS, INGEST_ALERT_WEBHOOK_URL).")
    watch = AlertWatch(settings)
    try:
        if not watch.leads():
            return dg.SkipReason("A monitor sends the alerts.")
        snapshot = _snapshot_for_alerts(services, DagsterRecords(settings, context.instance))
        if watch.step(snapshot):
            watch.deliver()
        return dg.SkipReason(f"{len(watch.stores.read().incidents)} incidents are open.")
    finally:
        # Release the lease, so that a monitor can take over immediately.
        watch.close()


def _snapshot_for_alerts(services: SystemResources, records: RunRecords) -> SystemSnapshot:
    """Read the parts that the conditions need, once."""
    now = datetime.now(UTC)
    dagster = sample_of(lambda: read_dagster(records))
    if dagster.value is not None:
        # The daemon runs this tick, so it is alive.
        beats = {**dagster.value.heartbeats, SENSOR_DAEMON: now}
        dagster = replace(dagster, value=msgspec.structs.replace(dagster.value, heartbeats=beats))
    return SystemSnapshot(
        settings=services.settings,
        at=datetime.now(UTC),
        broker=sample_of(_broker_poll(services)),
        warehouse=sample_of(lambda: read_warehouse(services)),
        dagster=dagster,
        disk=sample_of(services.fullest_disk),
        failures=sample_of(lambda: read_failures(records, services.settings, now)),
        file_facts=sample_of(_file_facts_poll(services)),
    )


# Cached, because these polls keep state from tick to tick.
@cache
def _broker_poll(services: SystemResources) -> BrokerPoll:
    return BrokerPoll(services, DagsterRecords(services.settings), lambda: consumed_topics(services))


@cache
def _file_facts_poll(services: SystemResources) -> FileFactsPoll:
    return FileFactsPoll(services)


alerts = dg.Definitions(sensors=[alerts_sensor])


def plan_purge(services: SystemResources, instance: dg.DagsterInstance, now: datetime) -> list[PurgeStep]:
    """Find everything that has expired; remove nothing.

    Args:
        services: resources with work queues and stores.
        instance: Dagster instance.
        now: time from which the days of the settings are counted back.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: the database does not answer.
    """
    settings, engine = services.settings.retention, services.engine
    partitions = now - settings.partitions

    return [
        *_partition_steps(engine, instance, partitions),
        _runs(engine, instance, now - timedelta(days=settings.run_days), partitions),
        _published_messages(engine, now - timedelta(days=settings.outbox_days)),
        *(step for one in CAPABILITIES for step in one.purge_steps(services, now)),
    ]


def _partitioned_queues() -> list[QueueView]:
    """Return the work queues whose entries are partitions in Dagster."""
    return [queue for capability in CAPABILITIES for queue in capability.queues if queue.partitions]


def _partition_steps(engine: sa.Engine, instance: dg.DagsterInstance, cutoff: datetime) -> list[PurgeStep]:
    with reading(engine) as connection:
        sets = [(queue, name) for queue in _partitioned_queues() for name in queue.partition_sets(connection)]
    return [_partitions(engine, instance, queue, name, cutoff) for queue, name in sets]


def _partitions(
    engine: sa.Engine, instance: dg.DagsterInstance, queue: QueueView, partitions: str, cutoff: datetime
) -> PurgeStep:
    known = [] if is_backfilling(instance) else list(instance.get_dynamic_partitions(partitions))
    query = sa.select(queue.key).where(queue.has_expired(cutoff))
    with reading(engine) as connection:
        expired = {row[0] for row in rows_in(connection, query, queue.key, known)}
    keys = [key for key in known if key in expired][:MAX_PARTITIONS]

    def remove() -> None:
        for key in keys:
            instance.delete_dynamic_partition(partitions, key)

    return PurgeStep(f"partitions of {partitions}", len(keys), keys[:SHOWN], remove)


def _runs(engine: sa.Engine, instance: dg.DagsterInstance, cutoff: datetime, partitions_cutoff: datetime) -> PurgeStep:
    """Find expired runs without partitions, and runs of partitions that have all expired."""
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=[*ENDED_RUNS, dg.DagsterRunStatus.CANCELED], updated_before=cutoff),
        limit=MAX_RUNS,
        ascending=True,
    )
    runs = [record.dagster_run for record in records]
    made_partitions = {run.run_id for run in runs if BATCH_TAG in run.tags or PARTITION_TAG in run.tags}
    newest_expired = partitions_cutoff.timestamp()
    recent = {one.dagster_run.run_id for one in records if one.update_timestamp.timestamp() >= newest_expired}
    needed = _needed_runs(engine, list(made_partitions), partitions_cutoff) | (recent & made_partitions)
    run_ids = [run.run_id for run in runs if run.run_id not in needed]

    def remove() -> None:
        for run_id in run_ids:
            instance.delete_run(run_id)

    return PurgeStep("finished runs", len(run_ids), run_ids[:SHOWN], remove)


def _needed_runs(engine: sa.Engine, run_ids: Sequence[str], cutoff: datetime) -> set[str]:
    """Return the runs that were the last to work on an entry that has not expired."""
    needed: set[str] = set()
    with reading(engine) as connection:
        for queue in _partitioned_queues():
            run_id = queue.table.c.run_id
            query = sa.select(run_id).where(~queue.has_expired(cutoff)).distinct()
            needed.update(row[0] for row in rows_in(connection, query, run_id, run_ids))
    return needed


def _published_messages(engine: sa.Engine, cutoff: datetime) -> PurgeStep:
    """Find expired ids of published messages; publishing such a message again would duplicate it on its topic."""
    old = sa.and_(outbox.c.state == SENT, outbox.c.created_at < cutoff)
    number = int(fetch(engine, sa.select(sa.func.count()).where(old)).scalar_one())

    def remove() -> None:
        with writing(engine) as connection:
            connection.execute(sa.delete(outbox).where(old))

    return PurgeStep("ids of published messages", number, [], remove)


class RetentionConfig(dg.Config):
    """With `dry_run`, the run only logs what it would remove."""

    dry_run: bool = False


@dg.op(description="Purges expired records; see the settings under `retention`.")
def purge(context: dg.OpExecutionContext, config: RetentionConfig, services: dg.ResourceParam[SystemResources]) -> None:
    """Remove each kind of expired records in turn, and log it."""
    for step in plan_purge(services, context.instance, datetime.now(UTC)):
        if not config.dry_run:
            step.remove()
        verb = "would be removed" if config.dry_run else "removed"
        context.log.info("%d %s %s.", step.number, step.what, verb)


@dg.job(name="retention", description="Purges expired partitions, runs, bytes and message ids.")
def retention_job() -> None:
    """Purge every kind."""
    purge()


retention = dg.Definitions(
    jobs=[retention_job], schedules=[running_schedule("retention_every_night", retention_job, "40 2 * * *")]
)
