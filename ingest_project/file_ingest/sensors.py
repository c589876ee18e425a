"""Sensors on `file-event-queue` and `file_events`: each file version is a partition, ingested in batch runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import dagster as dg
from msgspec.structs import replace as replaced

from ingest_project.contracts.files import (
    FileEvent,
    decode_file_event,
    file_key,
    version_of,
)
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import TopicSettings
from ingest_project.file_ingest.catalog import FILES, assets_of
from ingest_project.file_ingest.file_queue import FileArrival
from ingest_project.file_ingest.raw_files import source_of
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import FileResult, contract_result
from ingest_project.file_ingest.tables import partitions_of
from ingest_project.file_ingest.versions import Announced, with_versions
from ingest_project.platform.dagster.asset_events import report_failed
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue
from ingest_project.platform.work_queue.queue import KafkaPosition
from ingest_project.platform.work_queue.sensor import Intake, QueueSensor, Route, batches_of_due, queue_sensor

logger = get_logger(__name__)


def file_events_sensor(
    name: str, topic_of: Callable[[TopicSettings], str], jobs: Mapping[str, dg.UnresolvedAssetJobDefinition]
) -> dg.SensorDefinition:
    """Create a sensor that ingests the files announced on one topic.

    Args:
        name: of the sensor.
        topic_of: selects the topic.
        jobs: by dataset, each ingests a batch of its files. Those of other datasets are left to other sensors.
    """
    routes = {dataset: Route(partitions_of(dataset), job.name) for dataset, job in jobs.items()}

    def tick(context: dg.SensorEvaluationContext, services: FileIngestResources) -> dg.SensorResult:
        topic, settings = topic_of(services.settings.topics), services.settings.file_ingest
        files = QueueSensor(
            queue=services.files,
            queue_name=topic,
            kind=FILES,
            cut=partial(batches_of_due, largest=settings.batch_files, parallel=settings.max_parallel_batches),
            batch_entries=settings.batch_files,
            max_batches=2 * settings.max_parallel_batches,
            retries=services.settings.retries,
            intakes=[file_events(services, topic, jobs)],
            on_failed=partial(_report_failed, context.instance, services),
            routes=routes,
        )
        return files.tick(context, services)

    description = f"Requests runs over the files announced on {topic_of(TopicSettings())}."
    return queue_sensor(name, list(jobs.values()), description, tick)


def file_events(services: FileIngestResources, topic: str, datasets: Collection[str]) -> Intake[Announced]:
    """Return how one tick consumes a topic of file events; it enters the files of these datasets only."""
    settings = services.settings.file_ingest
    # Querying a source is slow, and if one event is rejected the others are stored again.
    versions: dict[KafkaPosition, FileEvent] = {}

    def decode(raw: bytes | None) -> Announced:
        event = decode_file_event(raw)
        dataset = services.datasets.require_accepted(event)
        source = source_of(event, services)
        source.require_allowed(event.file_path)
        return Announced(event, source, dataset.name, dataset.profile_of(event.metadata, settings.default_profile))

    def arrivals(arrived: Sequence[ConsumedMessage[Announced]]) -> list[FileArrival]:
        arrived = [one for one in arrived if one.message.dataset in datasets]
        unresolved = [one for one in arrived if one.intake not in versions]
        resolved = with_versions([one.message for one in unresolved])
        versions.update(zip((one.intake for one in unresolved), resolved, strict=True))
        return [file_arrival(one, versions[one.intake]) for one in arrived]

    queue = Queue(
        topic,
        services.settings.topics.file_event_queue_dlq,
        decode,
        max_messages=settings.tick_max_messages,
        wait_seconds=settings.tick_wait_seconds,
    )
    return Intake(queue, arrivals)


def file_arrival(arrived: ConsumedMessage[Announced], event: FileEvent) -> FileArrival:
    """Return a file event as the queue keeps it, under the key of its version.

    An event that names no version (the short form never does) means the one present when it is consumed; its key
    contains that version.

    Args:
        arrived: the consumed event.
        event: the same, with the present version if it names none.
    """
    announced = arrived.message
    location = announced.source.canonical_location(event.file_path)
    version = version_of(event.etag, event.size_bytes, event.modified_at)
    return FileArrival(
        file_key=file_key(location, event.file_name, version, announced.profile, announced.dataset),
        location=location,
        event=event if event.trace_id is not None else replaced(event, trace_id=arrived.trace_id),
        profile=announced.profile,
        intake=arrived.intake,
        pinned=announced.names_its_version,
        dataset=announced.dataset,
    )


def _report_failed(instance: dg.DagsterInstance, services: FileIngestResources, file_keys: Sequence[str]) -> None:
    """Show files that were lost and have no attempt left as failed in Dagster."""
    for record in services.files.get_many(file_keys):
        result = FileResult(record, record.state, reason=record.reason, error_class=record.error_class)
        try:
            report_failed(instance, contract_result(result, assets_of(record.dataset)), record.file_key)
        except Exception:
            # The queue knows; what the UI does not accept of one file must not stop the intake of all.
            logger.exception("file_not_reported", partition_key=record.file_key)
