"""The sensor on `polling-queue`: each job becomes a partition, and runs look in its source, urgent ones first.

A job sent again asks for another look, and is a partition of its own; the same message read again after a crash is not.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import dagster as dg
from msgspec.structs import replace

from ingest_project.contracts.files import PollingJob, decode_polling_job
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.work_queue.batches import request_batches, requeue_orphaned
from ingest_project.platform.work_queue.capacity import Capacity
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue, consume
from ingest_project.platform.work_queue.queue import Due
from ingest_project.platform.work_queue.sensor import queue_sensor
from ingest_project.polling.assets import POLLING_JOBS, job_key
from ingest_project.polling.job_queue import JobArrival
from ingest_project.polling.resources import PollingResources

JOBS_PER_RUN = 20
BATCHES_IN_FLIGHT = 4
# From the third attempt on a job goes alone: it may be the one that takes its run down.
ATTEMPTS_IN_COMPANY = 2


def polling_queue_sensor(job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """The sensor that looks in the sources of polling jobs.

    Args:
        job: that looks in the sources of a batch.
    """
    return queue_sensor(
        "polling_queue_sensor",
        job.name,
        "Asks for runs over the polling jobs that arrive on polling-queue.",
        tick,
    )


def tick(context: dg.SensorEvaluationContext, services: PollingResources) -> dg.SensorResult | dg.SkipReason:
    """Take the jobs that have arrived, and ask for runs over those that are due."""
    settings = services.settings
    topic = settings.topics.polling_queue
    queue = Queue(
        topic,
        settings.topics.polling_queue_dlq,
        lambda raw: _decode(raw, services),
        max_messages=settings.polling.max_jobs_per_tick,
        wait_seconds=settings.file_ingest.tick_wait_seconds,
    )
    positions = consume(services, queue, Positions.from_cursor(context.cursor), partial(_store, context, services))
    requeue_orphaned(context.instance, services.polling_jobs, topic, settings.retries)
    room = slots_for_jobs(services, topic)
    requests = request_due(services, topic, room.batches)
    return dg.SensorResult(
        run_requests=requests,
        cursor=positions.to_cursor(),
        skip_reason=None if requests else room.reason or f"Nothing new on {topic}.",
    )


def _store(
    context: dg.SensorEvaluationContext, services: PollingResources, arrived: Sequence[ConsumedMessage[PollingJob]]
) -> None:
    arrivals = [arrival_of(one) for one in arrived]
    services.polling_jobs.record(arrivals, datetime.now(UTC))
    context.instance.add_dynamic_partitions(POLLING_JOBS, list(dict.fromkeys(one.job_key for one in arrivals)))


def arrival_of(arrived: ConsumedMessage[PollingJob]) -> JobArrival:
    """A job as the ledger keeps it; one without a trace id gets one."""
    job = arrived.message
    key = job_key(job.job_id, arrived.intake.position)
    # Made of the position: read again after a crash, the same request has the same trace.
    trace_id = job.trace_id or str(
        job.metadata.get("trace_id") or arrived.trace_id or uuid.uuid5(uuid.NAMESPACE_URL, key)
    )
    return JobArrival(key, replace(job, trace_id=trace_id), arrived.intake)


def slots_for_jobs(services: PollingResources, queue_name: str) -> Capacity:
    """How many more batches of jobs may be asked for."""
    return services.available_slots(services.polling_jobs.in_flight_batches(queue_name), BATCHES_IN_FLIGHT)


def request_due(services: PollingResources, topic: str, free: int) -> list[dg.RunRequest]:
    """Ask for runs over jobs that are due, at most so many."""
    if not free:
        return []
    now = datetime.now(UTC)
    due = services.polling_jobs.due(topic, limit=free * JOBS_PER_RUN, now=now)
    return request_batches(POLLING_JOBS, services.polling_jobs, batches_of(due)[:free], now)


def batches_of(due: Sequence[Due]) -> list[list[str]]:
    """Cut due jobs into batches: fresh ones together, those that have failed repeatedly alone."""
    together = [job.key for job in due if job.attempts < ATTEMPTS_IN_COMPANY]
    alone = [[job.key] for job in due if job.attempts >= ATTEMPTS_IN_COMPANY]
    return [together[start : start + JOBS_PER_RUN] for start in range(0, len(together), JOBS_PER_RUN)] + alone


def _decode(raw: bytes | None, services: PollingResources) -> PollingJob:
    job = decode_polling_job(raw)
    services.open_source(job.source_config).require_allowed(job.path)
    return job
