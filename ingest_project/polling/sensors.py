"""Sensors on `polling-queue` and on the configured sources: each job is a partition, urgent ones are run first.

A job sent again requests another listing, and is a partition of its own; the same message read again after a crash is
not. A standing job is a configured source that is listed again and again: one entry and one partition, however often it
is listed. Each of its intervals is known by its beginning, and the queue enters one once: two daemons, a tick that is
repeated and a restart all mean one listing per interval.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg
from msgspec.structs import replace

from ingest_project.contracts.files import PollingJob, decode_polling_job
from ingest_project.core.settings import ConfiguredSource
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue
from ingest_project.platform.work_queue.queue import Due, KafkaPosition
from ingest_project.platform.work_queue.sensor import Intake, QueueSensor, queue_sensor
from ingest_project.polling.assets import POLLING_JOBS, job_key
from ingest_project.polling.job_queue import STANDING, JobArrival, PollingResources

JOBS_PER_RUN = 20
BATCHES_IN_FLIGHT = 4
# From the third attempt on a job is alone: it may be the one that takes its run down.
ATTEMPTS_IN_COMPANY = 2
NO_PARTITION = 0


def polling_queue_sensor(job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Create the sensor that lists the sources of polling jobs, in runs of `job`."""
    return queue_sensor(
        "polling_queue_sensor",
        job.name,
        "Requests runs over the polling jobs that arrive on polling-queue.",
        lambda context, services: _job_sensor(services, services.settings.topics.polling_queue).tick(context, services),
    )


def standing_jobs_sensor(job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Create the sensor that lists the configured sources that have `every_seconds`, in runs of `job`."""
    return queue_sensor(
        "standing_jobs_sensor",
        job.name,
        "Requests runs over the configured sources whose next interval has begun.",
        lambda context, services: standing_tick(context, services, datetime.now(UTC)),
        every_seconds=5,
    )


def standing_tick(
    context: dg.SensorEvaluationContext, services: PollingResources, now: datetime
) -> dg.SensorResult | dg.SkipReason:
    """Enter the intervals that have begun, and request runs over the jobs that are due."""
    arrivals = [
        standing_job(name, source, source.every_seconds, now)
        for name, source in sorted(services.settings.sources.items())
        if source.every_seconds
    ]
    if not arrivals:
        return dg.SkipReason("No configured source has an interval (INGEST_SOURCES, every_seconds).")
    if services.polling_jobs.begin_intervals(arrivals, now):
        context.instance.add_dynamic_partitions(POLLING_JOBS, [arrival.job_key for arrival in arrivals])
    return _job_sensor(services, STANDING).tick(context, services)


def standing_job(name: str, source: ConfiguredSource, every_seconds: float, now: datetime) -> JobArrival:
    """Return a configured source's job for the interval that `now` is in."""
    # Its beginning, and not a number of it: an interval of another length must still come after the last one.
    interval = int(now.timestamp() // every_seconds * every_seconds)
    key = job_key(name, (STANDING, NO_PARTITION, 0, ""))
    job = PollingJob(
        job_id=name,
        source_config=dict(source.source_config),
        file_pattern=source.file_pattern,
        priority=source.priority,
        metadata=dict(source.metadata),
        # Made of the interval: entered again after a crash, the same listing has the same trace.
        trace_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{key}/{interval}")),
    )
    return JobArrival(key, job, KafkaPosition(STANDING, NO_PARTITION, interval, at=now))


def job_arrival(arrived: ConsumedMessage[PollingJob]) -> JobArrival:
    """Return a job as the queue keeps it; one without a trace id gets one."""
    job = arrived.message
    key = job_key(job.job_id, arrived.intake.position)
    # Made of the position: read again after a crash, the same request has the same trace.
    trace_id = job.trace_id or str(
        job.metadata.get("trace_id") or arrived.trace_id or uuid.uuid5(uuid.NAMESPACE_URL, key)
    )
    return JobArrival(key, replace(job, trace_id=trace_id), arrived.intake)


def cut_jobs(due: Sequence[Due]) -> list[list[str]]:
    """Cut due jobs into batches: fresh ones together, those that have failed repeatedly alone."""
    together = [job.key for job in due if job.attempts < ATTEMPTS_IN_COMPANY]
    alone = [[job.key] for job in due if job.attempts >= ATTEMPTS_IN_COMPANY]
    return [together[start : start + JOBS_PER_RUN] for start in range(0, len(together), JOBS_PER_RUN)] + alone


def _job_sensor(services: PollingResources, queue_name: str) -> QueueSensor:
    return QueueSensor(
        queue=services.polling_jobs,
        queue_name=queue_name,
        kind=POLLING_JOBS,
        cut=cut_jobs,
        batch_entries=JOBS_PER_RUN,
        max_batches=BATCHES_IN_FLIGHT,
        retries=services.settings.retries,
        intakes=() if queue_name == STANDING else (_polling_queue(services),),
    )


def _polling_queue(services: PollingResources) -> Intake[PollingJob]:
    settings = services.settings

    def decode(raw: bytes | None) -> PollingJob:
        job = decode_polling_job(raw)
        services.open_source(job.source_config).require_allowed(job.path)
        return job

    queue = Queue(
        settings.topics.polling_queue,
        settings.topics.polling_queue_dlq,
        decode,
        max_messages=settings.polling.max_jobs_per_tick,
        wait_seconds=settings.file_ingest.tick_wait_seconds,
    )
    return Intake(queue, lambda arrived: [job_arrival(one) for one in arrived])
