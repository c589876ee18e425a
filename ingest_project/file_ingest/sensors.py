"""Sensors on `file-event-queue` and `file_events`: each file version is a partition, ingested in batch runs.

A message of either topic may also be the notification of an object store, which announces several files. An event that
carries no version means the one that is present when the event is consumed. A tick must end in time even if sources do
not answer: servers are queried in parallel, with one query at a time each, and a server that is unreachable or silent
is skipped.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple

import dagster as dg
from msgspec.structs import replace as replaced

from ingest_project.contracts.files import SENSOR_READINGS, FileEvent, decode_file_event, file_key, version_of_event
from ingest_project.contracts.storage_events import Ignored, StorageNotification, decode_storage_notification
from ingest_project.core.errors import IngestError, TransientError, UnreadableMessageError
from ingest_project.core.items import grouped
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import TopicSettings
from ingest_project.file_ingest.catalog import FILES, assets_of
from ingest_project.file_ingest.file_queue import FileArrival
from ingest_project.file_ingest.raw_files import source_of
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import FileResult, contract_result
from ingest_project.file_ingest.tables import partitions_of
from ingest_project.platform.dagster.asset_events import report_failed
from ingest_project.platform.errors import is_item_fault, reason_of
from ingest_project.platform.work_queue.consume import ConsumedMessage, Queue
from ingest_project.platform.work_queue.queue import KafkaPosition
from ingest_project.platform.work_queue.sensor import Feed, QueueSensor, Route, batches_of_due, queue_sensor
from ingest_project.sources import Source, SourceFile
from ingest_project.sources.registry import SourceContext, with_source

logger = get_logger(__name__)

ANSWER_TIMEOUT_SECONDS = 5.0
# The daemon gives up a tick after 60 s.
MAX_RESOLVE_SECONDS = 30.0
MAX_PATH_SHOWN = 200


class Announced(NamedTuple):
    """A file event, the source that its file is in, and the dataset and reader profile that it belongs to."""

    event: FileEvent
    source: Source
    dataset: str = SENSOR_READINGS
    profile: str = ""

    @property
    def trace_id(self) -> str | None:
        """The trace that the event names."""
        return self.event.trace_id

    @property
    def names_its_version(self) -> bool:
        """True when the event names its version."""
        return self.event.etag is not None or self.event.modified_at is not None


class Answer(NamedTuple):
    """The present version of the file of one event, by the event's number; None if the source has no such file."""

    number: int
    file: SourceFile | None


def with_versions(announced: Sequence[Announced]) -> list[FileEvent]:
    """Return the events, in order, each with the version that is present where it names none.

    If a version cannot be resolved in time, the event keeps none: ingest reports the reason when it reads the file.
    """
    open_ones = [index for index, one in enumerate(announced) if not one.names_its_version]
    by_server = grouped((_server_of(announced[index].source.location), index) for index in open_ones)
    answers: SimpleQueue[Answer | None] = SimpleQueue()
    for indexes in by_server.values():
        # Daemon threads: a server that stays silent must not delay the end of the process.
        threading.Thread(target=_stat_each, args=(announced, indexes, answers), daemon=True).start()
    events, running = [one.event for one in announced], len(by_server)
    give_up_at = time.monotonic() + MAX_RESOLVE_SECONDS
    while running and (left := give_up_at - time.monotonic()) > 0:
        try:
            answer = answers.get(timeout=min(ANSWER_TIMEOUT_SECONDS, left))
        except Empty:
            break
        if answer is None:
            running -= 1
        elif answer.file is not None:
            file = answer.file
            version = {"size_bytes": file.size_bytes, "modified_at": file.modified_at, "etag": file.etag}
            events[answer.number] = replaced(events[answer.number], **version)
    return events


def _stat_each(announced: Sequence[Announced], indexes: Sequence[int], answers: SimpleQueue[Answer | None]) -> None:
    """Query the versions of one server's files until it does not answer; None ends the answers."""
    for index in indexes:
        event, source, *_ = announced[index]
        file = None
        try:
            file = source.stat(event.file_path)
        except TransientError as error:
            logger.warning("version_unknown", source=source.location, reason=str(error))
            break
        except IngestError as error:
            logger.warning("version_unknown", source=source.location, reason=str(error))
        except Exception:  # the reason is reported when its file is read
            logger.exception("version_unknown", source=source.location)
        answers.put(Answer(index, file))
    answers.put(None)


def _server_of(location: str) -> str:
    """Return scheme and host of a source's address, `local` for this host."""
    scheme, _, rest = location.partition(":")
    return f"{scheme}://{rest[2:].partition('/')[0]}" if rest.startswith("//") else scheme


logger = get_logger(__name__)

MAX_PATH_SHOWN = 200


def file_events_sensor(
    name: str, topic_of: Callable[[TopicSettings], str], jobs: Mapping[str, dg.UnresolvedAssetJobDefinition]
) -> dg.SensorDefinition:
    """Create a sensor that ingests the files announced on one topic.

    Args:
        name: name of the sensor.
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
            feeds=[FileEvents(services, jobs).feed(topic)],
            on_failed=partial(_report_failed, context.instance, services),
            routes=routes,
        )
        return files.tick(context, services)

    description = f"Requests runs over the files announced on {topic_of(TopicSettings())}."
    return queue_sensor(name, list(jobs.values()), description, tick)


class Announcement(NamedTuple):
    """The files that one message announces.

    Args:
        files: the files that are ingested.
        error: why some or all objects of the same notification are not ingested; None if all are.
        ignored: number of its records that announce no file, by reason.
    """

    files: Sequence[Announced]
    error: Exception | None = None
    ignored: Mapping[Ignored, int] = {}

    @property
    def trace_id(self) -> str | None:
        """The trace that the message names: all files of one have the same."""
        return self.files[0].trace_id if self.files else None


@dataclass(frozen=True)
class FileEvents:
    """Consumption of one topic of file events, in one tick.

    Args:
        services: sources, declarations and the queue of files.
        datasets: the datasets whose files are entered. Without the shipped one among them, a message of another
            dataset, or one that cannot be read, is left to other sensors: it is no dead letter.
        versions: versions resolved so far, by message: querying a source is slow, and if one event is rejected the
            others are stored again.
    """

    services: FileIngestResources
    datasets: Collection[str]
    versions: dict[KafkaPosition, Sequence[FileEvent]] = field(default_factory=dict)

    def feed(self, topic: str) -> Feed[Announcement]:
        """Return the settings by which a tick consumes a topic."""
        settings = self.services.settings.file_ingest
        queue = Queue(
            topic,
            self.services.settings.topics.file_event_queue_dlq,
            self.decode,
            max_messages=settings.tick_max_messages,
            wait_seconds=settings.tick_wait_seconds,
            partly_refused=lambda announcement: announcement.error,
        )
        return Feed(queue, self.arrivals)

    def decode(self, raw: bytes | None) -> Announcement:
        """Decode a file event, or the notification of an object store.

        Raises:
            UnreadableMessageError: it is neither, or names no file that can be ingested.
        """
        try:
            event = decode_file_event(raw)
        except UnreadableMessageError as error:
            return self._decode_notification(raw, error)
        return Announcement(self._announced(event))

    def arrivals(self, arrived: Sequence[ConsumedMessage[Announcement]]) -> list[FileArrival]:
        """Return the files of consumed messages as the queue keeps them, and count the records that announce none."""
        self.services.files.count_ignored(
            (one.kafka_position, one.message.ignored) for one in arrived if one.message.ignored
        )
        files = {one.kafka_position: one.message.files for one in arrived}
        unresolved = [kafka_position for kafka_position in files if kafka_position not in self.versions]
        resolved = iter(with_versions([file for kafka_position in unresolved for file in files[kafka_position]]))
        self.versions.update(
            (kafka_position, [next(resolved) for _ in files[kafka_position]]) for kafka_position in unresolved
        )
        return [
            file_arrival(one, file, event)
            for one in arrived
            for file, event in zip(files[one.kafka_position], self.versions[one.kafka_position], strict=True)
        ]

    @property
    def _accepts_all(self) -> bool:
        """True for the sensor that consumes every message which no other Dagster project takes."""
        return SENSOR_READINGS in self.datasets

    def _announced(self, event: FileEvent) -> list[Announced]:
        if not (self._accepts_all or self._belongs(event)):
            return []
        dataset = self.services.datasets.require_accepted(event)
        source = source_of(event, self.services)
        source.require_allowed(event.file_path)
        profile = dataset.profile_of(event.metadata, self.services.settings.file_ingest.default_profile)
        return [Announced(event, source, dataset.name, profile)]

    def _belongs(self, event: FileEvent) -> bool:
        try:
            dataset = self.services.datasets.dataset_of(event.metadata, event.job_id, event.file_path)
        except UnreadableMessageError:
            return False
        return dataset.name in self.datasets

    def _decode_notification(self, raw: bytes | None, error: UnreadableMessageError) -> Announcement:
        try:
            notification = decode_storage_notification(raw)
            if notification is None:
                raise error
        except UnreadableMessageError:
            if self._accepts_all:
                raise
            return Announcement([])
        known = notification if self._accepts_all else StorageNotification(notification.files)
        return announcement_of(known, self.services.source_context, self._announced)


def announcement_of(
    notification: StorageNotification, context: SourceContext, announced: Callable[[FileEvent], Sequence[Announced]]
) -> Announcement:
    """Return the files of a notification, each with the source that the settings have for it.

    Args:
        notification: notification of a store.
        context: settings of the sources.
        announced: returns a file with its dataset, or nothing for one that is left to others; what it raises rejects
            that file alone.

    Raises:
        IngestError: all of its objects are rejected, and no record is ignored.
    """
    ignored: Counter[Ignored] = Counter()
    for (_, reason), number in notification.ignored.items():
        ignored[reason] += number
    if ignored:
        by_event = {name: number for (name, _), number in notification.ignored.items()}
        logger.info("storage_events_ignored", number=ignored.total(), by_event=by_event)
    files: list[Announced] = []
    reasons = [f"Not a FileEvent: {reason}." for reason in notification.rejected]
    alone = len(reasons) + len(notification.files) == 1
    for event in notification.files:
        try:
            files += announced(with_source(event, context))
        except Exception as error:
            if not is_item_fault(error) or (alone and not ignored):
                raise
            if alone:
                return Announcement([], error, ignored)
            reasons.append(f"{event.file_path[:MAX_PATH_SHOWN]}: {reason_of(error)}")
    if not reasons:
        return Announcement(files, ignored=ignored)
    total = len(files) + len(reasons)
    rejected = f"{len(reasons)} of {total} objects are not ingested. " if total > 1 else ""
    unreadable = UnreadableMessageError(rejected + " ".join(reasons))
    # With ignored records, do not raise: they are counted only for messages that are decoded and stored.
    if not files and not ignored:
        raise unreadable
    return Announcement(files, unreadable, ignored)


def file_arrival(arrived: ConsumedMessage[Announcement], announced: Announced, event: FileEvent) -> FileArrival:
    """Return a file event as the queue keeps it, under the key of its version.

    An event that names no version (the short form never does) means the one present when it is consumed; its key
    contains that version.

    Args:
        arrived: the consumed message.
        announced: the file.
        event: event of the file, with the present version if it names none.
    """
    location = announced.source.canonical_location(event.file_path)
    version = version_of_event(event)
    return FileArrival(
        file_key=file_key(location, event.file_name, version, announced.profile, announced.dataset),
        location=location,
        event=event if event.trace_id is not None else replaced(event, trace_id=arrived.trace_id),
        profile=announced.profile,
        kafka_position=arrived.kafka_position,
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
            # The queue has the result: if the UI rejects the report of one file, consumption must continue.
            logger.exception("file_not_reported", partition_key=record.file_key)
