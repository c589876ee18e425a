"""Polling, as Dagster sees it: asset, job, sensors, the topic and the sources that it reads.

`discovered_files`: the files that a polling job found, each announced once on `file-event-queue`. An announcement is
published under its file key: the same version of a file found by another job, by the same job delivered again, or after
the run was killed half-way, is not announced a second time.

Each job is a partition, and urgent ones run first. A job sent again requests another listing, and is a partition of its
own; the same message read again after a crash is not. A standing job is a configured source that is listed at every
interval: one entry and one partition, however often it is listed. Each of its intervals is identified by its beginning,
and the queue enters one once: two daemons, a repeated tick and a restart all mean one listing per interval.
"""

import re
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import dagster as dg
from msgspec.structs import replace

from ingest_project.contracts.files import PollingJob, decode_polling_job
from ingest_project.core.errors import TransientError
from ingest_project.core.items import key_of
from ingest_project.core.logging import bound, get_logger
from ingest_project.core.settings import ConfiguredSource, Settings
from ingest_project.platform import tracing
from ingest_project.platform.dagster.asset_events import (
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    report,
)
from ingest_project.platform.dagster.catalog import DagsterParts, freshness_within, topic, topic_key, topic_uri
from ingest_project.platform.errors import error_class_of, is_item_fault, reason_of, traceback_of
from ingest_project.platform.http import redacted_url, without_query
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue
from ingest_project.platform.work_queue.queue import Due, KafkaPosition
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG, Feed, QueueSensor, keys_of_run, queue_sensor
from ingest_project.polling.discovery import Discovery, PollingResources, discover
from ingest_project.polling.job_queue import STANDING, JobArrival, JobRecord

logger = get_logger(__name__)

POLLING_JOBS = "polling_jobs"
polling_jobs_partitions = dg.DynamicPartitionsDefinition(name=POLLING_JOBS)

DISCOVERED_FILES = dg.AssetKey("discovered_files")
FILE_SOURCES = dg.AssetKey("file_sources")


def job_key(job_id: str, position: tuple[str, int, int, str]) -> str:
    """Return the partition key of one request: the job's id, readable, and a hash of the message's position.

    Args:
        job_id: chosen by the sender; a job sent again is another request and has another key.
        position: topic, partition, offset and topic id of the message.
    """
    return key_of(job_id, job_id, *position, keep_end=False)


@dg.multi_asset(
    name="polling",
    specs=[
        dg.AssetSpec(
            DISCOVERED_FILES,
            deps=[topic_key("polling_queue"), FILE_SOURCES],
            description="The files that a polling job found and announced.",
            group_name="polling",
            kinds={"kafka"},
            partitions_def=polling_jobs_partitions,
            freshness_policy=freshness_within(48),
            skippable=True,
        )
    ],
    backfill_policy=dg.BackfillPolicy.multi_run(20),
)
def discovered_files(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[PollingResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """List the source of every job of this run and announce the new files."""
    keep_connections_open(context.instance)
    keys = services.polling_jobs.by_urgency(keys_of_run(context, services.polling_jobs.batch))
    failures = []
    for key in keys:
        # One by one: only the job whose source is being listed counts as running.
        with bound(run_id=context.run.run_id, partition_key=key):
            try:
                _begin_and_poll(context, services, key)
            except Exception as error:  # noqa: BLE001 - whatever one job causes is that job's
                failures.append(f"{key}: {reason_of(error)}")
                _record_failure(services, key, error)
    if failures and len(failures) == len(keys):
        raise dg.Failure(description=failures[0], allow_retries=False)
    yield from outputs_without_events(context)


def _begin_and_poll(context: dg.AssetExecutionContext, services: PollingResources, key: str) -> None:
    for record in services.polling_jobs.begin([key], context.run.run_id, datetime.now(UTC)):
        known = {"trace_id": record.job.trace_id, "job_id": record.job.job_id, "source_type": record.job.source_type}
        item = (key, record.kafka_position.context, known)
        with bound(trace_id=record.job.trace_id), tracing.items("poll source", [item]):
            _poll(context, services, record)


def _poll(context: dg.AssetExecutionContext, services: PollingResources, record: JobRecord) -> None:
    discovery = discover(services, record)
    now, jobs = datetime.now(UTC), services.polling_jobs
    # A standing job's count covers all its intervals: files that earlier ones announced count as announced before.
    earlier = 0 if record.standing else record.files_published or 0
    skipped = discovery.not_announced(earlier)
    if discovery.ready_at is not None and record.attempts < services.settings.retries.max_attempts:
        reason = f"{discovery.unsettled} of its files changed a moment ago; listed again once they have settled."
        jobs.list_again(record.job_key, discovery.found, skipped, reason, discovery.ready_at, now)
        logger.info("job_waits", unsettled=discovery.unsettled, until=discovery.ready_at.isoformat())
        return
    done = jobs.finish_listing(record.job_key, discovery.found, skipped, now)
    if discovery.announced or not record.standing or BATCH_ID_TAG not in context.run.tags:
        # Do not report a standing job that found nothing new, unless a person ran it: that would be thousands a day.
        with tracing.step("report", [record.job_key]):
            report(context, [PartitionEvents(record.job_key, {DISCOVERED_FILES: _metadata(done, discovery)})])
    jobs.mark_reported([record.job_key], now)
    logger.info("job_done", found=done.files_found, published=done.files_published, skipped=skipped)


def _record_failure(services: PollingResources, key: str, error: Exception) -> None:
    reason, error_class = reason_of(error), error_class_of(error)
    logger.warning("job_not_done", reason=reason, error_class=error_class, exc_info=traceback_of(error))
    now, retries = datetime.now(UTC), services.settings.retries
    if isinstance(error, TransientError) or not is_item_fault(error):
        reason = f"{reason} Retried automatically, {retries.max_attempts} times at most."
        services.polling_jobs.requeue_later([key], reason, error_class, retries, now)
    else:
        services.polling_jobs.fail([key], f"{reason} Not retried automatically.", error_class, now)
    services.polling_jobs.mark_reported([key], now)


def _metadata(record: JobRecord, discovery: Discovery) -> dict[str, object]:
    shown = [dg.TableRecord({"path": path, "outcome": result}) for path, result in discovery.shown]
    return {
        "files_found": record.files_found,
        "files_published": record.files_published,
        "files_skipped": record.files_skipped,
        "skipped": record.skipped or {},
        "source": without_query(record.job.path),
        "source_uri": discovery.location,
        "pattern": record.job.file_pattern,
        "asked_by": "its interval" if record.standing else str(record.kafka_position),
        **({"files": dg.MetadataValue.table(shown)} if shown else {}),
    }


JOBS_PER_RUN = 20
BATCHES_IN_FLIGHT = 4
# From the third attempt on a job is alone: it may be the one that kills its run.
ATTEMPTS_IN_COMPANY = 2
NO_PARTITION = 0


def polling_queue_sensor(job_name: str) -> dg.SensorDefinition:
    """Create the sensor that lists the sources of polling jobs, in runs of this job."""
    return queue_sensor(
        "polling_queue_sensor",
        job_name,
        "Requests runs over the polling jobs that arrive on polling-queue.",
        lambda context, services: _job_sensor(services, services.settings.topics.polling_queue).tick(context, services),
    )


def standing_jobs_sensor(job_name: str) -> dg.SensorDefinition:
    """Create the sensor that lists the configured sources that have `every_seconds`, in runs of this job."""
    return queue_sensor(
        "standing_jobs_sensor",
        job_name,
        "Requests runs over the configured sources whose next interval has begun.",
        lambda context, services: standing_tick(context, services, datetime.now(UTC)),
        every_seconds=5,
    )


def standing_tick(
    context: dg.SensorEvaluationContext, services: PollingResources, now: datetime
) -> dg.SensorResult | dg.SkipReason:
    """Enter the intervals that have started, and request runs over the jobs that are due."""
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
    # Use the interval's start, not its number, so that intervals of another length still come after the last one.
    interval = int(now.timestamp() // every_seconds * every_seconds)
    key = job_key(name, (STANDING, NO_PARTITION, 0, ""))
    job = PollingJob(
        job_id=name,
        source_config=dict(source.source_config),
        file_pattern=source.file_pattern,
        priority=source.priority,
        metadata=dict(source.metadata),
        # Derived from the interval, so that a job that is entered again after a crash keeps its trace.
        trace_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{key}/{interval}")),
    )
    return JobArrival(key, job, KafkaPosition(STANDING, NO_PARTITION, interval, at=now))


def job_arrival(arrived: ConsumedMessage[PollingJob]) -> JobArrival:
    """Return the queue entry of a job, with a trace id."""
    job = arrived.message
    key = job_key(job.job_id, arrived.kafka_position.position)
    # Derived from the position, so that a message that is read again after a crash keeps its trace.
    trace_id = job.trace_id or str(
        job.metadata.get("trace_id") or arrived.trace_id or uuid.uuid5(uuid.NAMESPACE_URL, key)
    )
    return JobArrival(key, replace(job, trace_id=trace_id), arrived.kafka_position)


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
        feeds=() if queue_name == STANDING else (_polling_queue(services),),
    )


def _polling_queue(services: PollingResources) -> Feed[PollingJob]:
    settings = services.settings

    def decode(raw: bytes | None) -> PollingJob:
        job = decode_polling_job(raw)
        services.open_listed(job.source_config).require_allowed(job.path)
        return job

    queue = Queue(
        settings.topics.polling_queue,
        settings.topics.polling_queue_dlq,
        decode,
        max_messages=settings.polling.max_jobs_per_tick,
        wait_seconds=settings.file_ingest.tick_wait_seconds,
    )
    return Feed(queue, lambda arrived: [job_arrival(one) for one in arrived])


GROUP = "polling"
NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_]")
# Fields of a source's configuration that are safe to show: any other may be a secret.
ADDRESS_FIELDS = ("endpoint_url", "host", "port", "bucket", "path")

polling_batch = dg.define_asset_job(
    "polling_batch",
    selection=dg.AssetSelection.assets(DISCOVERED_FILES),
    description="Lists the source of each polling job and announces the files it finds.",
)

polling = dg.Definitions(
    assets=[discovered_files],
    jobs=[polling_batch],
    sensors=[polling_queue_sensor(polling_batch.name), standing_jobs_sensor(polling_batch.name)],
)


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of polling jobs, its dead letters, and every configured source."""
    sources = [_source(name, source) for name, source in settings.sources.items()]
    return [
        topic(settings, "polling_queue", group=GROUP),
        topic(settings, "polling_queue_dlq", group=GROUP, deps=[topic_key("polling_queue")]),
        *sources,
        dg.AssetSpec(
            FILE_SOURCES,
            deps=[source.key for source in sources],
            description="The folders, buckets, servers and listings that polling jobs read.",
            group_name=GROUP,
            kinds={"file"},
            metadata={
                "local_roots": [str(root) for root in settings.polling.local_roots],
                "hosts": list(settings.polling.allowed_source_hosts),
            },
        ),
    ]


def _source(name: str, source: ConfiguredSource) -> dg.AssetSpec:
    config = source.source_config
    address = {field: redacted_url(str(config[field])) for field in ADDRESS_FIELDS if config.get(field)}
    return dg.AssetSpec(
        dg.AssetKey(["source", NOT_IN_A_KEY.sub("_", name)]),
        description=f"The configured source {name}.",
        group_name=GROUP,
        kinds={str(config["source_type"])},
        metadata={**address, "pattern": source.file_pattern},
    )


def dagster_parts(settings: Settings) -> dict[str, DagsterParts]:
    """Return the Dagster definitions of polling."""
    announced = {DISCOVERED_FILES: topic_uri(settings, settings.topics.file_event_queue)}
    return {"polling": DagsterParts(polling, external_assets, locations=announced)}
