"""Retention, as Dagster sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.operations.expired_rows import KINDS, RetentionLedger, RetentionPolicy
from ingest_project.operations.metric_rollup import RunningTotals
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.work_queue.batches import BATCH_TAG

MOST_PARTITIONS = 10_000
MOST_RUNS = 2_000
MOST_CONTENTS = 10_000
MOST_RANGES = 1_000_000
# Longer than any tick takes: what was planned before is planned, and nothing comes in between any more.
SETTLED = timedelta(days=1)
SHOWN = 10
PARTITION_TAG = "dagster/partition"
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class PurgeStep:
    """What one part of the retention removes.

    Args:
        what: for people, e.g. `partitions of files`.
        number: how many.
        examples: the first few.
        remove: removes them.
    """

    what: str
    number: int
    examples: Sequence[str]
    remove: Callable[[], object]


def plan_purge(services: SystemResources, instance: dg.DagsterInstance, now: datetime) -> list[PurgeStep]:
    """Everything that is to be removed now; nothing is removed yet.

    Args:
        services: ledgers and stores.
        instance: Dagster's records.
        now: from which the days are counted.
    """
    kept, ledger = services.settings.retention, RetentionLedger(services.engine)
    bodies, messages = now - timedelta(days=kept.event_days), now - timedelta(days=kept.outbox_days)
    return [
        *(_partitions(ledger, instance, kind, now - kept.partitions) for kind in KINDS),
        _runs(ledger, instance, now - timedelta(days=kept.run_days), now - kept.partitions),
        _contents(services, ledger, now - timedelta(days=kept.landing_days)),
        PurgeStep("bodies of attachment events", ledger.old_bodies(bodies), [], lambda: ledger.drop_bodies(bodies)),
        PurgeStep(
            "ids of published messages", ledger.old_messages(messages), [], lambda: ledger.drop_messages(messages)
        ),
        _ranges(services, now, now - timedelta(days=kept.range_days)),
    ]


def _partitions(
    ledger: RetentionLedger, instance: dg.DagsterInstance, kind: RetentionPolicy, before: datetime
) -> PurgeStep:
    known = list(instance.get_dynamic_partitions(kind.partitions))
    keys = ledger.long_done(kind, known, before)[:MOST_PARTITIONS]

    def remove() -> None:
        for key in keys:
            instance.delete_dynamic_partition(kind.partitions, key)

    return PurgeStep(f"partitions of {kind.partitions}", len(keys), keys[:SHOWN], remove)


def _runs(ledger: RetentionLedger, instance: dg.DagsterInstance, before: datetime, partitions: datetime) -> PurgeStep:
    """Runs without partitions after their days; runs that made partitions when all of those are long done."""
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=ENDED, updated_before=before), limit=MOST_RUNS, ascending=True
    )
    runs = [record.dagster_run for record in records]
    made_partitions = [run.run_id for run in runs if BATCH_TAG in run.tags or PARTITION_TAG in run.tags]
    recent = {
        record.dagster_run.run_id for record in records if record.update_timestamp.timestamp() >= partitions.timestamp()
    }
    needed = ledger.needed_runs(made_partitions, partitions) | (recent & set(made_partitions))
    run_ids = [run.run_id for run in runs if run.run_id not in needed]

    def remove() -> None:
        for run_id in run_ids:
            instance.delete_run(run_id)

    return PurgeStep("finished runs", len(run_ids), run_ids[:SHOWN], remove)


def _contents(services: SystemResources, ledger: RetentionLedger, before: datetime) -> PurgeStep:
    sha256s = ledger.unneeded_contents(before, MOST_CONTENTS)

    def remove() -> None:
        for sha256 in sha256s:
            services.landing.remove(sha256)
        ledger.forget_contents(sha256s)

    return PurgeStep("landed contents", len(sha256s), sha256s[:SHOWN], remove)


def _ranges(services: SystemResources, now: datetime, before: datetime) -> PurgeStep:
    intervals = services.stream_intervals

    def remove() -> None:
        totals = RunningTotals(services.engine)
        totals.catch_up(datetime.now(UTC))
        intervals.extend(now - SETTLED)
        intervals.purge(min(before, totals.counted_until()), MOST_RANGES)

    return PurgeStep("offset ranges", intervals.count_old(before, MOST_RANGES), [], remove)


class RetentionConfig(dg.Config):
    """With `dry_run`, the run only says what it would remove."""

    dry_run: bool = False


@dg.op(description="Removes what is long done; see the settings under `retention`.")
def purge(context: dg.OpExecutionContext, config: RetentionConfig, services: dg.ResourceParam[SystemResources]) -> None:
    """One part after the other, each said in the log."""
    for removal in plan_purge(services, context.instance, datetime.now(UTC)):
        if not config.dry_run:
            removal.remove()
        verb = "would be removed" if config.dry_run else "removed"
        context.log.info("%d %s %s.", removal.number, removal.what, verb)


@dg.job(name="retention", description="Lets go of partitions, runs and bytes that are long done.")
def retention_job() -> None:
    """All parts."""
    purge()


retention = dg.Definitions(
    jobs=[retention_job],
    schedules=[
        dg.ScheduleDefinition(
            name="retention_every_night",
            job=retention_job,
            cron_schedule="40 2 * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    ],
)
