"""Sensors on `file-event-queue` and `file_events`: what arrived becomes ledger entries, partitions and a few runs.

The saved cursor owns the Kafka positions. A tick reads from it, writes what it read to the ledger, adds the partition
keys, and asks for runs over what is due; Dagster saves the cursor together with the requests. Killed before that, the
next tick reads the same messages again and finds them in the ledger; killed after it, Dagster starts the runs itself.
What a dead run left unfinished is due again after a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import dagster as dg
from msgspec.structs import replace as replaced

from ingest_project.contracts.files import FileEvent, decode_file_event, file_key, profile_named, version_of
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import FileIngestSettings, TopicSettings
from ingest_project.file_ingest.catalog import FILES
from ingest_project.file_ingest.file_queue import FileArrival
from ingest_project.file_ingest.raw_files import source_of
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import FileResult, contract_result
from ingest_project.file_ingest.versions import Announced, with_versions
from ingest_project.platform.dagster.asset_events import report_failed
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.work_queue.batches import batches_of_due, request_batches, requeue_orphaned
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue, consume
from ingest_project.platform.work_queue.queue import Due
from ingest_project.platform.work_queue.sensor import queue_sensor
from ingest_project.platform.work_queue.types import KafkaPosition

logger = get_logger(__name__)

SMALLEST_BATCH_WORTH_SPLITTING = 200


def file_events_sensor(
    name: str, topic_of: Callable[[TopicSettings], str], job: dg.UnresolvedAssetJobDefinition
) -> dg.SensorDefinition:
    """A sensor that ingests the files announced on one topic.

    Args:
        name: of the sensor.
        topic_of: which of the topics.
        job: that ingests a batch.
    """
    return queue_sensor(
        name,
        job.name,
        f"Asks for runs over the files announced on {topic_of(TopicSettings())}.",
        lambda context, services: tick(context, services, topic_of(services.settings.topics)),
    )


def tick(
    context: dg.SensorEvaluationContext, services: FileIngestResources, topic: str
) -> dg.SensorResult | dg.SkipReason:
    """Take what has arrived, and ask for runs over what is due."""
    positions = _take(context.instance, services, topic, Positions.from_cursor(context.cursor))
    given_up = requeue_orphaned(context.instance, services.files, topic, services.settings.retries)
    for record in services.files.get_many(given_up):
        outcome = FileResult(record, record.state, reason=record.reason, error_class=record.error_class)
        try:
            report_failed(context.instance, contract_result(outcome), record.file_key)
        except Exception:
            # The ledger knows; what the UI does not take of one file must not stop the intake of all.
            logger.exception("file_not_reported", partition_key=record.file_key)
    most = 2 * services.settings.file_ingest.max_parallel_batches
    room = services.available_slots(services.files.in_flight_batches(topic), most)
    requests = request_due(context.instance, services, topic, room.batches)
    skip_reason = None if requests else room.reason or f"Nothing new on {topic}."
    return dg.SensorResult(run_requests=requests, cursor=positions.to_cursor(), skip_reason=skip_reason)


def arrivals_of(
    arrived: Sequence[ConsumedMessage[Announced]], events: Sequence[FileEvent], services: FileIngestResources
) -> list[FileArrival]:
    """File events as the ledger keeps them, each under the key of its version.

    An event that does not say which version it means (the short form never does) means the one that is there when it is
    read; its key is made of the one that is there now.

    Args:
        arrived: the events as they came.
        events: the same, each with the version that is there where it names none.
        services: the settings.
    """
    arrivals = []
    for one, event in zip(arrived, events, strict=True):
        location = one.message.source.canonical_location(event.file_path)
        version = version_of(event.etag, event.size_bytes, event.modified_at)
        profile = profile_named(event.metadata, services.settings.file_ingest.default_profile)
        arrivals.append(
            FileArrival(
                file_key=file_key(location, event.file_name, version, profile),
                location=location,
                event=event if event.trace_id is not None else replaced(event, trace_id=one.trace_id),
                profile=profile,
                intake=one.intake,
                pinned=one.message.names_its_version,
            )
        )
    return arrivals


def request_due(
    instance: dg.DagsterInstance, services: FileIngestResources, topic: str, free: int
) -> list[dg.RunRequest]:
    """Ask for runs over files of this topic that are due, at most so many."""
    if not free:
        return []
    settings = services.settings.file_ingest
    now = datetime.now(UTC)
    due = services.files.due(topic, limit=free * settings.batch_files, now=now)
    batches = batches_of(due, settings)[:free]
    # What a person released may have no partition: by another profile it is new, after months it was removed.
    if batches:
        instance.add_dynamic_partitions(FILES, [key for batch in batches for key in batch])
    return request_batches(FILES, services.files, batches, now)


def batches_of(due: Sequence[Due], settings: FileIngestSettings) -> list[list[str]]:
    """Cut due files into batches: halves of a batch that was lost by themselves, all others together."""
    return batches_of_due(due, settings.batch_files, settings.max_parallel_batches, SMALLEST_BATCH_WORTH_SPLITTING)


def _take(
    instance: dg.DagsterInstance, services: FileIngestResources, topic: str, saved: Positions | None
) -> Positions:
    settings = services.settings.file_ingest
    # Asking a source takes long, and where one event is refused its neighbours are stored again.
    versions: dict[KafkaPosition, FileEvent] = {}

    def decode(raw: bytes | None) -> Announced:
        event = decode_file_event(raw)
        source = source_of(event, services)
        source.require_allowed(event.file_path)
        return Announced(event, source)

    def store(arrived: Sequence[ConsumedMessage[Announced]]) -> None:
        unasked = [one for one in arrived if one.intake not in versions]
        asked = with_versions([one.message for one in unasked])
        versions.update(zip((one.intake for one in unasked), asked, strict=True))
        arrivals = arrivals_of(arrived, [versions[one.intake] for one in arrived], services)
        services.files.record(arrivals, datetime.now(UTC))
        instance.add_dynamic_partitions(FILES, list(dict.fromkeys(arrival.file_key for arrival in arrivals)))

    queue = Queue(
        topic,
        services.settings.topics.file_event_queue_dlq,
        decode,
        max_messages=settings.tick_max_messages,
        wait_seconds=settings.tick_wait_seconds,
    )
    return consume(services, queue, saved, store)
