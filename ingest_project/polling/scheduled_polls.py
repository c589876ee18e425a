"""Standing jobs: sources that are looked at again and again without anyone sending a job.

A job is one entry of the ledger and one partition, however often it is looked at. Each interval is known by its
beginning, and the ledger enters one once: two daemons, a tick that is repeated and a restart all mean one look per
interval.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import dagster as dg

from ingest_project.contracts.files import PollingJob
from ingest_project.core.settings import ConfiguredSource
from ingest_project.platform.work_queue.batches import requeue_orphaned
from ingest_project.platform.work_queue.sensor import queue_sensor
from ingest_project.platform.work_queue.types import KafkaPosition
from ingest_project.polling.assets import POLLING_JOBS, job_key
from ingest_project.polling.job_queue import STANDING, JobArrival
from ingest_project.polling.resources import PollingResources
from ingest_project.polling.sensors import request_due, slots_for_jobs

NO_PARTITION = 0


def standing_jobs_sensor(job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """The sensor that looks in the configured sources that have `every_seconds`.

    Args:
        job: that looks in the sources of a batch.
    """
    return queue_sensor(
        "standing_jobs_sensor",
        job.name,
        "Asks for runs over the configured sources whose next interval has begun.",
        lambda context, services: tick(context, services, datetime.now(UTC)),
        every_seconds=5,
    )


def tick(
    context: dg.SensorEvaluationContext, services: PollingResources, now: datetime
) -> dg.SensorResult | dg.SkipReason:
    """Enter the intervals that have begun, and ask for runs over the jobs that are due."""
    if not any(source.every_seconds for source in services.settings.sources.values()):
        return dg.SkipReason("No source is configured to be looked at by itself (INGEST_SOURCES).")
    arrivals = [
        standing_job(name, source, source.every_seconds, now)
        for name, source in services.settings.sources.items()
        if source.every_seconds
    ]
    if services.polling_jobs.stand(arrivals, now):
        context.instance.add_dynamic_partitions(POLLING_JOBS, [arrival.job_key for arrival in arrivals])
    requeue_orphaned(context.instance, services.polling_jobs, STANDING, services.settings.retries)
    room = slots_for_jobs(services, STANDING)
    requests = request_due(services, STANDING, room.batches)
    skip_reason = None if requests else room.reason or "No interval has begun."
    return dg.SensorResult(run_requests=requests, skip_reason=skip_reason)


def standing_job(name: str, source: ConfiguredSource, every_seconds: float, now: datetime) -> JobArrival:
    """A configured source's job for the interval that `now` is in."""
    # Its beginning, and not a number of it: an interval of another length must still come after the last one.
    interval = int(now.timestamp() // every_seconds * every_seconds)
    key = job_key(name, (STANDING, NO_PARTITION, 0, ""))
    job = PollingJob(
        job_id=name,
        source_config=dict(source.source_config),
        file_pattern=source.file_pattern,
        priority=source.priority,
        metadata=dict(source.metadata),
        # Made of the interval: entered again after a crash, the same look has the same trace.
        trace_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{key}/{interval}")),
    )
    return JobArrival(key, job, KafkaPosition(STANDING, NO_PARTITION, interval, at=now))
