"""The work queue of polling jobs: the sources to list, and the result of each listing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.contracts.files import PollingJob
from ingest_project.platform.database import fetch, writing
from ingest_project.platform.database.sql import Json, kafka_columns, metadata, queue_indexes, work_columns
from ingest_project.platform.kafka.publisher import MessageOutbox
from ingest_project.platform.runtime import LARGEST_SKEW_SECONDS
from ingest_project.platform.work_queue.queue import JobState, KafkaPosition, QueueEntry, QueueTable, Row, WorkQueue

polling_jobs = sa.Table(
    "polling_jobs",
    metadata,
    Col("job_key", sa.Text, primary_key=True),
    Col("job_id", sa.Text, nullable=False),
    Col("source_type", sa.Text, nullable=False),
    Col("request", Json, nullable=False),
    Col("priority", sa.Text, nullable=False),
    # 0 before 1 before 2: high, normal, low.
    Col("urgency", sa.Integer, nullable=False),
    Col("trace_id", sa.Text),
    *kafka_columns(),
    *work_columns(),
    Col("files_found", sa.BigInteger),
    Col("files_published", sa.BigInteger),
    Col("files_skipped", sa.BigInteger),
    Col("skipped", Json),
    *queue_indexes("polling_jobs", "trace_id", names=("job_id",), due_by=("urgency",)),
)

URGENCY = {"high": 0, "normal": 1, "low": 2}
# Replaces the topic in the position of standing jobs; their interval is the offset.
STANDING = "standing-jobs"


class JobArrival(NamedTuple):
    """A polling job as it was read from Kafka.

    Args:
        job_key: partition key of this request; the same job sent again at another position is another request.
    """

    job_key: str
    job: PollingJob
    kafka_position: KafkaPosition

    def own_columns(self, now: datetime) -> dict[str, Any]:
        """Return the columns that only jobs have."""
        return {
            "job_id": self.job.job_id,
            "source_type": self.job.source_type,
            "request": msgspec.to_builtins(self.job),
            "priority": self.job.priority,
            "urgency": URGENCY[self.job.priority],
            "trace_id": self.job.trace_id,
        }


class JobRecord(QueueEntry, frozen=True, kw_only=True):
    """One polling job.

    Args:
        job: the request as it came.
        files_found: files of a type that is ingested, at the last listing.
        files_published: file events that this job published, over all its attempts, killed ones included.
        files_skipped: seen at the last listing and not published; `skipped` maps each reason to their number.
    """

    job_key: str
    job: PollingJob
    state: JobState
    files_found: int | None
    files_published: int | None
    files_skipped: int | None
    skipped: dict[str, int] | None

    @property
    def standing(self) -> bool:
        """True when it is repeated at every interval, without a message."""
        return self.kafka_position.topic == STANDING

    @classmethod
    def composed_fields(cls, row: Row) -> dict[str, Any]:
        """Return the fields that are composed or converted from columns."""
        return {**super().composed_fields(row), "job": msgspec.convert(row["request"], PollingJob)}


JOB_QUEUE = QueueTable(
    table=polling_jobs,
    entry=JobRecord,
    states=JobState,
    working=JobState.RUNNING,
    # High priority first, then normal, then low; the oldest of each first.
    order_of_due=("urgency", "created_at", "kafka_partition", "kafka_offset"),
    searched=("job_key", "job_id", "trace_id", "reason"),
)


class JobQueue(WorkQueue[JobArrival, JobRecord, JobState]):
    """The queue over the table `polling_jobs`."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine, JOB_QUEUE)

    def finish_listing(self, job_key: str, found: int, skipped: Mapping[str, int], now: datetime) -> JobRecord:
        """End a job whose source was listed to its end. Published files are counted by `JobOutbox`.

        Args:
            job_key: key of the job.
            found: files of a type that is ingested.
            skipped: number of listed and unpublished entries by reason.
            now: when that was.

        Returns:
            the job as it now is.
        """
        end = {"state": JobState.DONE, "reason": None, "finished_at": now}
        return self._store_listing(job_key, found, skipped, end, now)

    def list_again(  # noqa: PLR0913, PLR0917 - what was seen, why and when
        self, job_key: str, found: int, skipped: Mapping[str, int], reason: str, at: datetime, now: datetime
    ) -> JobRecord:
        """Make a job pending until some of its files are ready; that is no failure."""
        wait = {"state": JobState.PENDING, "reason": reason, "next_attempt_at": at}
        return self._store_listing(job_key, found, skipped, wait, now)

    def begin_intervals(self, arrivals: Sequence[JobArrival], now: datetime) -> tuple[str, ...]:
        """Make standing jobs pending whose next interval has started, with their present configuration.

        A job's interval is the offset of its position. An interval is entered once, whatever process tries; one that
        begins while the job is not finished is left out.

        Returns:
            keys of those that are pending by this call.
        """
        # An interval far in the future was entered by a clock that has been set back since.
        ahead = int(now.timestamp() + LARGEST_SKEW_SECONDS)
        offset = polling_jobs.c.kafka_offset
        finished = polling_jobs.c.state.in_(JOB_QUEUE.finished)
        ordered = sorted(arrivals, key=self.key_of)
        with writing(self._engine) as connection:
            pending = self._insert(connection, [self._row(arrival, now) for arrival in ordered])
            for arrival in ordered:
                again = self._row(arrival, now) | {"run_id": None, "batch_id": None}
                del again["created_at"]
                has_begun = sa.or_(offset < arrival.kafka_position.offset, offset > ahead)
                pending |= self._update(connection, [arrival.job_key], again, has_begun, finished)
        return tuple(sorted(pending))

    def by_urgency(self, job_keys: Sequence[str]) -> tuple[str, ...]:
        """Return those of the keys that are known, in the order they are to be worked on."""
        order = [polling_jobs.c[name] for name in JOB_QUEUE.order_of_due]
        query = sa.select(polling_jobs.c.job_key).where(polling_jobs.c.job_key.in_(job_keys)).order_by(*order)
        return tuple(fetch(self._engine, query).scalars())

    def _store_listing(
        self, job_key: str, found: int, skipped: Mapping[str, int], change: Mapping[str, Any], now: datetime
    ) -> JobRecord:
        columns = polling_jobs.c
        listed = {"files_found": found, "files_skipped": sum(skipped.values()), "skipped": dict(skipped)}
        # A job that published nothing yet has no count.
        listed["files_published"] = sa.func.coalesce(columns.files_published, 0)
        update = sa.update(polling_jobs).where(columns.job_key == job_key).returning(*columns)
        update = update.values({**listed, **change, "error_class": None, "updated_at": now})
        with writing(self._engine) as connection:
            return self._entries(connection, update)[job_key]


class JobOutbox(MessageOutbox):
    """The outbox of one polling job; it adds each message that it marks as sent to the job's count of published files.

    Both in one transaction: what a killed attempt had sent is counted when it is found on the topic, and once.

    Args:
        engine: engine of the database.
        job_key: key of the job.
    """

    def __init__(self, engine: sa.Engine, job_key: str) -> None:
        super().__init__(engine)
        self._job_key = job_key

    def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
        """Mark messages as sent, and count those that were not marked before."""
        published = polling_jobs.c.files_published
        with writing(self._engine) as connection:
            marked = self._mark(connection, topic, message_ids)
            connection.execute(
                sa.update(polling_jobs)
                .where(polling_jobs.c.job_key == self._job_key)
                .values(files_published=sa.func.coalesce(published, 0) + marked)
            )
