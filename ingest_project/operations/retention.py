"""Nightly job that purges expired partitions, runs, landed bytes, event bodies, message ids and ranges.

Only what ended well expires. What failed, is in quarantine, waits or is leased by a run is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import dagster as dg
import sqlalchemy as sa

from ingest_project.attachments.tables import AttachmentState, attachment_events, attachments
from ingest_project.file_ingest.tables import FileState, files
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.database.statements import in_parts
from ingest_project.platform.kafka.publisher import SENT, outbox
from ingest_project.platform.work_queue.batches import BATCH_TAG
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.polling.job_queue import polling_jobs


class RetentionPolicy(NamedTuple):
    """A kind of ledger entry that is a partition in Dagster.

    Args:
        partitions: name of the partition set.
        table: of the ledger.
        key: its primary key.
        ended_well: states in which nothing is left to do or to see to.
    """

    partitions: str
    table: sa.Table
    key: sa.Column[str]
    ended_well: tuple[str, ...]


KINDS = (
    RetentionPolicy(
        "files",
        files,
        files.c.file_key,
        (FileState.INGESTED, FileState.DUPLICATE, FileState.REPLACED, FileState.SUPERSEDED),
    ),
    RetentionPolicy("polling_jobs", polling_jobs, polling_jobs.c.job_key, (JobState.DONE,)),
    RetentionPolicy("attachments", attachments, attachments.c.attachment_key, (AttachmentState.STORED,)),
)


class RetentionLedger:
    """Looks for what is long done, over all ledgers. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def long_done(self, kind: RetentionPolicy, keys: Sequence[str], before: datetime) -> list[str]:
        """Those of the keys whose entries ended well before then and were reported, in order."""
        found: set[str] = set()
        with reading(self._engine) as connection:
            for part in in_parts(keys):
                query = sa.select(kind.key).where(kind.key.in_(part), _is_long_done(kind, before))
                found.update(connection.execute(query).scalars())
        return [key for key in keys if key in found]

    def needed_runs(self, run_ids: Sequence[str], before: datetime) -> set[str]:
        """Those of the runs that are the last to have worked on something that is not long done."""
        needed: set[str] = set()
        with reading(self._engine) as connection:
            for kind in KINDS:
                run_id = kind.table.c.run_id
                for part in in_parts(run_ids):
                    query = sa.select(run_id).where(run_id.in_(part), ~_is_long_done(kind, before)).distinct()
                    needed.update(connection.execute(query).scalars())
        return needed

    def unneeded_contents(self, before: datetime, limit: int) -> list[str]:
        """SHA-256 of landed contents all of whose files ended well before then."""
        kind = KINDS[0]
        ended = sa.func.count().filter(_is_long_done(kind, before))
        query = (
            sa.select(files.c.sha256)
            .where(files.c.sha256.is_not(None))
            .group_by(files.c.sha256)
            .having(ended == sa.func.count(), sa.func.max(files.c.landed_bytes).is_not(None))
            .order_by(files.c.sha256)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def forget_contents(self, sha256s: Sequence[str]) -> None:
        """The bytes of these contents are not in the landing store any more."""
        with writing(self._engine) as connection:
            for part in in_parts(sha256s):
                connection.execute(sa.update(files).where(files.c.sha256.in_(part)).values(landed_bytes=None))

    def old_bodies(self, before: datetime) -> int:
        """How many finished attachment events from before then still have their bodies."""
        query = sa.select(sa.func.count()).where(_has_old_body(before))
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def drop_bodies(self, before: datetime) -> int:
        """Empty the bodies of finished attachment events from before then; what was counted of them stays."""
        statement = sa.update(attachment_events).where(_has_old_body(before)).values(body="")
        with writing(self._engine) as connection:
            return int(connection.execute(statement).rowcount)

    def old_messages(self, before: datetime) -> int:
        """How many ids of messages sent before then are remembered."""
        query = sa.select(sa.func.count()).where(outbox.c.state == SENT, outbox.c.created_at < before)
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def drop_messages(self, before: datetime) -> int:
        """Forget the ids of messages sent before then: sent once more, they would be on their topic twice."""
        statement = sa.delete(outbox).where(outbox.c.state == SENT, outbox.c.created_at < before)
        with writing(self._engine) as connection:
            return int(connection.execute(statement).rowcount)


def _is_long_done(kind: RetentionPolicy, before: datetime) -> sa.ColumnElement[bool]:
    columns = kind.table.c
    return sa.and_(
        columns.state.in_(kind.ended_well),
        columns.reported_at.is_not(None),
        sa.func.coalesce(columns.finished_at < before, sa.false()),
    )


def _has_old_body(before: datetime) -> sa.ColumnElement[bool]:
    columns = attachment_events.c
    return sa.and_(columns.state == JobState.DONE, columns.finished_at < before, columns.body != "")


MOST_PARTITIONS = 10_000
MOST_RUNS = 2_000
MOST_CONTENTS = 10_000
SHOWN = 10
PARTITION_TAG = "dagster/partition"
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class PurgeStep:
    """One kind of expired record and how to remove it.

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
