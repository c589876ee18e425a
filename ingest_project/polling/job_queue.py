"""The ledger of polling jobs: which looks into a source were asked for, and what each found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.contracts.polling_job import PollingJob
from ingest_project.platform.database.columns import (
    Json,
    held_index,
    kafka_columns,
    metadata,
    pending_index,
    work_columns,
)
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.kafka.publisher import MessageOutbox
from ingest_project.platform.work_queue.queue import WorkLedger
from ingest_project.platform.work_queue.sql_helpers import contains, insert_missing
from ingest_project.platform.work_queue.states import JobState
from ingest_project.platform.work_queue.types import KafkaPosition, Recorded

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
    pending_index("polling_jobs", "kafka_topic", "urgency"),
    held_index("polling_jobs", "kafka_topic"),
    sa.Index("polling_jobs_by_batch", "batch_id"),
    sa.Index("polling_jobs_by_state", "state", "updated_at"),
)


URGENCY = {"high": 0, "normal": 1, "low": 2}
# What standing jobs have in place of a topic: their interval is the offset.
STANDING = "standing-jobs"
LARGEST_SKEW_SECONDS = 5
FINISHED = (JobState.DONE, JobState.FAILED)


class JobArrival(NamedTuple):
    """A polling job as it was read from Kafka.

    Args:
        job_key: partition key of this request; the same job sent again at another position is another request.
    """

    job_key: str
    job: PollingJob
    intake: KafkaPosition


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one polling job; `messages.encode` makes JSON of it.

    Args:
        job: the request as it came.
        files_found: files of a type that is ingested, at the last look.
        files_published: file events that this job published, over all its attempts, killed ones included.
        files_skipped: what was seen at the last look and not published; `skipped` says why, reason to number.
    """

    job_key: str
    job: PollingJob
    intake: KafkaPosition
    state: JobState
    attempts: int
    reason: str | None
    error_class: str | None
    run_id: str | None
    next_attempt_at: datetime
    files_found: int | None
    files_published: int | None
    files_skipped: int | None
    skipped: dict[str, int] | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def standing(self) -> bool:
        """Whether it is looked at again at every interval, without anyone asking."""
        return self.intake.topic == STANDING

    @classmethod
    def of(cls, row: sa.RowMapping) -> JobRecord:
        """Of a row of the table `polling_jobs`."""
        own = {name: row[name] for name in cls.__struct_fields__ if name not in {"job", "intake", "state"}}
        job = msgspec.convert(row["request"], PollingJob)
        return cls(**own, state=JobState(row["state"]), job=job, intake=KafkaPosition.of(row))


class JobLedger(WorkLedger):
    """Reads and writes the table `polling_jobs`. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    # High priority first, then normal, then low; the oldest of each first.
    order_of_due = ("urgency", "created_at", "kafka_partition", "kafka_offset")

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine, polling_jobs, polling_jobs.c.job_key, JobState.RUNNING)

    def record(self, arrivals: Sequence[JobArrival], now: datetime) -> Recorded:
        """Enter jobs as pending. What is there stays as it is, with one exception.

        A job that is `requested` and arrives again from the very position it came from was asked for by a tick whose
        cursor was never saved: it is pending again, and that attempt is not counted.
        """
        first = {arrival.job_key: arrival for arrival in reversed(arrivals)}
        ordered = sorted(first.values(), key=lambda arrival: arrival.job_key)
        with writing(self._engine) as connection:
            new = insert_missing(
                connection, polling_jobs, [_row(arrival, now) for arrival in ordered], polling_jobs.c.job_key
            )
            known = {a.job_key: a.intake for a in ordered if a.job_key not in new}
            reopened = self._reopen_unsaved(connection, known, now)
        keys = list(dict.fromkeys(arrival.job_key for arrival in arrivals))
        return Recorded(
            new=tuple(key for key in keys if key in new),
            reopened=tuple(key for key in keys if key in reopened),
            known=tuple(key for key in keys if key not in new and key not in reopened),
        )

    def start(self, job_keys: Sequence[str], run_id: str, now: datetime) -> tuple[JobRecord, ...]:
        """A run takes jobs into its hands, in whatever state they are.

        Returns:
            the full records in the order asked for; keys that are not in the ledger are left out.
        """
        statement = (
            sa.update(polling_jobs)
            .where(polling_jobs.c.job_key.in_(job_keys))
            .values(state=JobState.RUNNING, run_id=run_id, started_at=now, updated_at=now)
            .values(finished_at=None, reported_at=None)
            .returning(*polling_jobs.c)
        )
        with writing(self._engine) as connection:
            found = {row["job_key"]: JobRecord.of(row) for row in connection.execute(statement).mappings()}
        return tuple(found[key] for key in dict.fromkeys(job_keys) if key in found)

    def finish(self, job_key: str, found: int, skipped: Mapping[str, int], now: datetime) -> JobRecord:
        """The source was listed to its end. What was published is counted as it is, see `outbox.JobOutbox`.

        Args:
            job_key: of the job.
            found: files of a type that is ingested.
            skipped: reason to number of what was seen and not published.
            now: when that was.

        Returns:
            the job as it now is.
        """
        seen = _seen(found, skipped)
        return self._change(
            job_key, **seen, state=JobState.DONE, reason=None, error_class=None, finished_at=now, updated_at=now
        )

    def look_again(  # noqa: PLR0913, PLR0917 - what was seen, why and when
        self, job_key: str, found: int, skipped: Mapping[str, int], reason: str, at: datetime, now: datetime
    ) -> JobRecord:
        """The source was listed to its end, and some of its files are not ready: pending until then. No failure."""
        seen = _seen(found, skipped)
        return self._change(
            job_key, **seen, state=JobState.PENDING, reason=reason, error_class=None, next_attempt_at=at, updated_at=now
        )

    def stand(self, arrivals: Sequence[JobArrival], now: datetime) -> tuple[str, ...]:
        """Standing jobs whose next interval has begun are pending again, as they are configured now.

        A job's interval is the offset of its intake. An interval is entered once, whoever else tries; one that begins
        while the job is not finished is left out.

        Returns:
            keys of those that are pending by this call.
        """
        # One that lies well ahead was entered by a clock that has been set back since.
        ahead = int(now.timestamp()) + LARGEST_SKEW_SECONDS

        def has_begun(interval: int) -> sa.ColumnElement[bool]:
            return sa.or_(polling_jobs.c.kafka_offset < interval, polling_jobs.c.kafka_offset > ahead)

        ordered = sorted(arrivals, key=lambda arrival: arrival.job_key)
        pending: list[str] = []
        with writing(self._engine) as connection:
            pending += insert_missing(
                connection, polling_jobs, [_row(arrival, now) for arrival in ordered], polling_jobs.c.job_key
            )
            for arrival in ordered:
                row = _row(arrival, now)
                again = {name: value for name, value in row.items() if name not in {"job_key", "created_at"}}
                statement = (
                    sa.update(polling_jobs)
                    .where(polling_jobs.c.job_key == arrival.job_key, has_begun(arrival.intake.offset))
                    .where(polling_jobs.c.state.in_(FINISHED))
                    .values(**again, run_id=None, batch_id=None)
                    .returning(polling_jobs.c.job_key)
                )
                pending += connection.execute(statement).scalars()
        return tuple(pending)

    def by_urgency(self, job_keys: Sequence[str]) -> tuple[str, ...]:
        """Those of the keys that are known, in the order they are to be worked on."""
        order = [polling_jobs.c[name] for name in self.order_of_due]
        query = sa.select(polling_jobs.c.job_key).where(polling_jobs.c.job_key.in_(job_keys)).order_by(*order)
        with reading(self._engine) as connection:
            return tuple(connection.execute(query).scalars())

    def fail(self, job_key: str, reason: str, error_class: str, now: datetime) -> None:
        """Nothing more is tried by itself; the reason says why."""
        statement = (
            sa.update(polling_jobs)
            .where(polling_jobs.c.job_key == job_key)
            .values(state=JobState.FAILED, reason=reason, error_class=error_class, finished_at=now, updated_at=now)
        )
        with writing(self._engine) as connection:
            connection.execute(statement)

    def reopen(self, job_key: str, now: datetime) -> bool:
        """A person wants a finished job done again, as if for the first time; whether there was one."""
        statement = (
            sa.update(polling_jobs)
            .where(polling_jobs.c.job_key == job_key, polling_jobs.c.state.in_(FINISHED))
            .values(state=JobState.PENDING, attempts=0, run_id=None, finished_at=None)
            .values(next_attempt_at=now, updated_at=now)
        )
        with writing(self._engine) as connection:
            return bool(connection.execute(statement).rowcount)

    def get(self, job_key: str) -> JobRecord | None:
        """All that is known of one job."""
        with reading(self._engine) as connection:
            row = (
                connection.execute(sa.select(polling_jobs).where(polling_jobs.c.job_key == job_key))
                .mappings()
                .one_or_none()
            )
        return None if row is None else JobRecord.of(row)

    def list(
        self, state: JobState | None = None, text: str | None = None, limit: int = 100, offset: int = 0
    ) -> tuple[JobRecord, ...]:
        """Jobs, the last changed first.

        Args:
            state: only those in this state.
            text: part of the key, job id, trace id or reason, upper and lower case alike.
            limit: at most so many.
            offset: so many are passed over first.
        """
        query = (
            sa.select(polling_jobs)
            .order_by(polling_jobs.c.updated_at.desc(), polling_jobs.c.job_key)
            .limit(limit)
            .offset(offset)
        )
        if state is not None:
            query = query.where(polling_jobs.c.state == state)
        if text:
            query = query.where(
                contains(
                    text, polling_jobs.c.job_key, polling_jobs.c.job_id, polling_jobs.c.trace_id, polling_jobs.c.reason
                )
            )
        with reading(self._engine) as connection:
            return tuple(JobRecord.of(row) for row in connection.execute(query).mappings())

    def counts_by_state(self) -> dict[JobState, int]:
        """Number of jobs in every state, also those with none."""
        query = sa.select(polling_jobs.c.state, sa.func.count()).group_by(polling_jobs.c.state)
        with reading(self._engine) as connection:
            counts = {row[0]: int(row[1]) for row in connection.execute(query)}
        return {state: counts.get(state, 0) for state in JobState}

    def _change(self, job_key: str, **values: object) -> JobRecord:
        statement = (
            sa.update(polling_jobs).where(polling_jobs.c.job_key == job_key).values(**values).returning(*polling_jobs.c)
        )
        with writing(self._engine) as connection:
            return JobRecord.of(connection.execute(statement).mappings().one())


def _seen(found: int, skipped: Mapping[str, int]) -> dict[str, Any]:
    return {
        "files_found": found,
        # Of a job that published nothing yet there is no count.
        "files_published": sa.func.coalesce(polling_jobs.c.files_published, 0),
        "files_skipped": sum(skipped.values()),
        "skipped": dict(skipped),
    }


def _row(arrival: JobArrival, now: datetime) -> dict[str, Any]:
    job = arrival.job
    return {
        "job_key": arrival.job_key,
        "job_id": job.job_id,
        "source_type": job.source_type,
        "request": msgspec.to_builtins(job),
        "priority": job.priority,
        "urgency": URGENCY[job.priority],
        "trace_id": job.trace_id,
        **arrival.intake.columns(),
        "state": JobState.PENDING,
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "updated_at": now,
    }


class JobOutbox(MessageOutbox):
    """The outbox in the hands of a polling job, whose count of published files grows with what is marked as sent.

    Both in one transaction: what a killed attempt had sent is counted when it is found on the topic, and once.

    Args:
        engine: of the database.
        job_key: of the job.
    """

    def __init__(self, engine: sa.Engine, job_key: str) -> None:
        super().__init__(engine)
        self._job_key = job_key

    def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
        """Remember that these are on the topic, and count those that were not marked before."""
        published = polling_jobs.c.files_published
        with writing(self._engine) as connection:
            marked = self._mark(connection, topic, message_ids)
            connection.execute(
                sa.update(polling_jobs)
                .where(polling_jobs.c.job_key == self._job_key)
                .values(files_published=sa.func.coalesce(published, 0) + marked)
            )
