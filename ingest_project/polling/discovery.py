"""List a job's source page by page, leave out files that are not ready, and announce the rest on `file-event-queue`.

One announcement is published for each version of a file and reader profile, whichever job finds it. Its id is the
file's key. Jobs publish one after the other: two that list the same folder at the same time, or one inside the other,
would both find a file that neither has announced yet.

A page of a listing that was announced to its end is remembered as a whole too: as long as nothing in it changes, one
query answers for all of its files. The next page is listed and prepared while this one is published; two pages are in
memory, however many files there are.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from typing import TypeVar

import msgspec

from ingest_project.contracts import encode
from ingest_project.contracts.files import FileEvent, checked, file_key, file_type_of, version_of
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.items import prefetch
from ingest_project.core.logging import get_logger
from ingest_project.platform import tracing
from ingest_project.platform.database import exclusive
from ingest_project.platform.errors import is_item_fault, reason_of, storable
from ingest_project.platform.http import without_query
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.polling.job_queue import JobOutbox, JobQueue, JobRecord
from ingest_project.sources import (
    Skipped,
    Source,
    SourceFile,
    count_reason,
    files_further_down,
    only_accepted,
    ready_at,
)
from ingest_project.sources.resources import SourceResources

logger = get_logger(__name__)

LOCK = "file-announcements"
SHOWN_FILES = 50
UNSETTLED = "It changed a moment ago and may still be being written."
ANNOUNCED_BEFORE = "Announced before, in this version."

Item = TypeVar("Item")


class PollingResources(SourceResources):
    """The queue of polling jobs, and the sources."""

    @cached_property
    def polling_jobs(self) -> JobQueue:
        """The queue of polling jobs."""
        return JobQueue(self.engine)


@dataclass
class Discovery:
    """Result of one listing.

    Args:
        found: files that match the job and are of a type that is ingested.
        announced: of those, the ones that had not been announced before this listing.
        unsettled: of those, the ones that may still be being written.
        skipped: number of entries that are never ingested, by reason.
        shown: the first few of everything, for people: path and result.
        ready_at: when the last of the unsettled ones is ready; None without any.
        location: canonical address of the source.
    """

    found: int = 0
    announced: int = 0
    unsettled: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[str, str]] = field(default_factory=list)
    ready_at: datetime | None = None
    location: str = ""

    def not_announced(self, by_earlier_attempts: int = 0) -> dict[str, int]:
        """Return everything that was seen and not announced, reason to number.

        Args:
            by_earlier_attempts: how many files this job's own earlier attempts announced: those were not skipped.
        """
        known = max(self.found - self.announced - self.unsettled - by_earlier_attempts, 0)
        return dict(self.skipped + Counter({ANNOUNCED_BEFORE: known, UNSETTLED: self.unsettled}))

    def show(self, path: str, result: str) -> None:
        """Remember one of the first few."""
        if len(self.shown) < SHOWN_FILES:
            self.shown.append((without_query(path), result))

    def add_page(self, page: Sequence[SourceFile | Skipped], now: datetime, min_age: timedelta) -> list[SourceFile]:
        """Count a page, and return those of its files that can be announced."""
        files = [entry for entry in page if isinstance(entry, SourceFile)]
        self.found += len(files)
        if len(files) < len(page):
            self._skip(entry for entry in page if isinstance(entry, Skipped))
        settled = now - min_age
        ready = [file for file in files if file.modified_at is None or file.modified_at <= settled]
        if len(ready) < len(files):
            recent = (file for file in files if file.modified_at and file.modified_at > settled)
            ready += self._old_enough(recent, now, min_age)
        return ready

    def refuse(self, files: Sequence[tuple[SourceFile, str]]) -> None:
        """Count files that were found and cannot be announced."""
        self.found -= len(files)
        self._skip(Skipped(storable(file.path), reason) for file, reason in files)

    def _skip(self, entries: Iterable[Skipped]) -> None:
        for entry in entries:
            count_reason(self.skipped, entry.reason)
            if entry.visible:
                self.show(entry.path, entry.reason)

    def _old_enough(self, files: Iterable[SourceFile], now: datetime, min_age: timedelta) -> Iterator[SourceFile]:
        for file in files:
            if (at := ready_at(file, now, min_age)) is None:
                yield file
            else:
                self.unsettled += 1
                self.ready_at = max(at, self.ready_at or at)
                self.show(file.path, UNSETTLED)


@dataclass(frozen=True)
class Announcements:
    """Announcements of one page.

    Args:
        page_id: id of the whole page; None if refused files keep it from being remembered.
        messages: by id, of the files that have not been announced in this version; None where the page as a whole was
            announced before.
        paths: of those files.
        refused: files that cannot be announced, and why.
    """

    page_id: str | None
    messages: Mapping[str, ProducerRecord] | None
    paths: frozenset[str] = frozenset()
    refused: Sequence[tuple[SourceFile, str]] = ()


def discover(services: PollingResources, record: JobRecord) -> Discovery:
    """List one job's source and announce each file version that has not been announced.

    Raises:
        TransientError: the source, Kafka or the database is away; repeating it continues from here.
        PermanentError: the source cannot be listed at all.
    """
    settings = services.settings.polling
    source = services.open_listed(record.job.source_config)
    outbox = JobOutbox(services.engine, record.job_key)
    discovery = Discovery(location=source.location)

    def refusal_of(file: SourceFile) -> str:
        return services.datasets.refusal_of(
            FileEvent(file_path=file.path, file_name=file.name, job_id=record.job.job_id, metadata=record.job.metadata)
        )

    def prepared() -> Generator[Announcements, None, None]:
        listed = only_accepted(source.list_files(record.job.file_pattern), refusal_of)
        with prefetch(_pages(listed, settings.page_files, record.job_key)) as pages:
            for page in pages:
                ready = discovery.add_page(page, datetime.now(UTC), settings.min_age)
                if ready:
                    announcements = prepare(services, record, source, ready, outbox)
                    discovery.refuse(announcements.refused)
                    for file in ready[: SHOWN_FILES - len(discovery.shown)]:
                        was_new = file.path in announcements.paths
                        discovery.show(file.path, "announced" if was_new else "announced before")
                    yield announcements

    with prefetch(prepared()) as prepared_pages:
        for announcements in prepared_pages:
            with tracing.step("publish", [record.job_key]):
                publish(services, announcements, outbox)
            discovery.announced += len(announcements.messages or ())
    if not discovery.found and not record.standing:
        discovery.skipped.update(files_further_down(source, record.job.file_pattern))
    return discovery


def prepare(
    services: PollingResources, record: JobRecord, source: Source, files: Sequence[SourceFile], outbox: JobOutbox
) -> Announcements:
    """Select files whose present version has not been announced, and prepare their announcements; send nothing.

    Args:
        services: Kafka.
        record: the job that found them.
        source: source of the files.
        files: a page of them.
        outbox: record of published announcements.
    """
    # The id of a page includes the topic's: announcements of a deleted topic are lost and must be published again.
    topic_id = _topic_id(services, services.settings.topics.file_event_queue)
    page_id = _page_id(services, topic_id, source, record, files)
    if page_id is not None and not outbox.unsent([page_id]):
        return Announcements(page_id, None)
    found, refused = _by_message_id(services, topic_id, source, record, files)
    new = outbox.unsent(list(found))
    event = file_event(record)
    messages: dict[str, ProducerRecord] = {}
    for message_id in new:
        try:
            messages[message_id] = _message(record, event, found[message_id], message_id)
        except UnreadableMessageError as error:
            refused.append((found[message_id], f"It cannot be announced: {error}"))
    paths = frozenset(found[message_id].path for message_id in messages)
    return Announcements(None if refused else page_id, messages, paths, refused)


def publish(services: PollingResources, announcements: Announcements, outbox: JobOutbox) -> None:
    """Publish announcements that are not on the topic yet.

    Killed anywhere and called again, by this or another job, it leaves each version on the topic once.

    Raises:
        BrokerUnavailableError, DatabaseUnavailableError, TransactionConflictError: call again.
    """
    topic = services.settings.topics.file_event_queue
    if announcements.messages is None:
        return
    if announcements.messages:
        with exclusive(services.engine, LOCK):
            publish_once(services.writer, services.reader, outbox, topic, list(announcements.messages.items()))
    if announcements.page_id is not None:
        outbox.remember(topic, announcements.page_id)


def _page_id(
    services: PollingResources, topic_id: str, source: Source, record: JobRecord, files: Sequence[SourceFile]
) -> str | None:
    """Return the id of a page of a listing; None where a file of it cannot be announced.

    It is made of everything that determines the keys of its files, without making them: as a rule nothing has changed.
    """
    profile, job = services.settings.file_ingest.default_profile, record.job
    assigned = services.datasets.assignment(job.metadata, job.job_id, profile)
    try:
        content = msgspec.json.encode((source.location, files, assigned))
    except (UnicodeEncodeError, OverflowError, TypeError):
        return None
    return f"{topic_id}/page/{hashlib.sha256(content).hexdigest()}"


def file_event(record: JobRecord) -> FileEvent:
    """Return the fields that all announcements of a job share, with its metadata about their format."""
    job = record.job
    config = {name: value for name, value in job.source_config.items() if name != "source_type"}
    return FileEvent(
        file_path="",
        file_name="",
        job_id=job.job_id,
        source_type=job.source_type,
        discovered_at=datetime.now(UTC),
        trace_id=job.trace_id,
        metadata=job.metadata,
        source_config=config,
    )


def _by_message_id(
    services: PollingResources, topic_id: str, source: Source, record: JobRecord, files: Sequence[SourceFile]
) -> tuple[dict[str, SourceFile], list[tuple[SourceFile, str]]]:
    """Return files by the id of their announcement, and separately those that cannot be announced."""
    found: dict[str, SourceFile] = {}
    refused: list[tuple[SourceFile, str]] = []
    for file in files:
        try:
            location = file.location or source.canonical_location(file.path)
            dataset = services.datasets.dataset_of(record.job.metadata, record.job.job_id, file.path)
            profile = dataset.profile_of(record.job.metadata, services.settings.file_ingest.default_profile)
            version = version_of(file.etag, file.size_bytes, file.modified_at)
            key = file_key(location, file.name, version, profile, dataset.name)
            msgspec.json.encode(file)
        except Exception as error:
            if not is_item_fault(error):
                raise
            logger.warning(
                "file_not_announced", path=without_query(storable(file.path)), reason=reason_of(error), exc_info=error
            )
            refused.append((file, f"It cannot be announced: {type(error).__name__}."))
        else:
            found[f"{topic_id}/{key}"] = file
    return found, refused


def _topic_id(services: PollingResources, topic: str) -> str:
    """Return the topic's id; a topic that does not exist yet is created first."""
    if not services.reader.topic_id(topic):
        services.writer.require_topic(topic)
    return services.reader.topic_id(topic)


def _message(record: JobRecord, event: FileEvent, file: SourceFile, message_id: str) -> ProducerRecord:
    announced = msgspec.structs.replace(
        event,
        event_id=str(uuid.uuid4()),
        file_path=file.path,
        file_name=file.name,
        file_type=file_type_of(file.name),
        size_bytes=file.size_bytes,
        modified_at=file.modified_at,
        etag=file.etag,
    )
    headers = tracing.message_headers(event.trace_id, record.job_key)
    # Reject here what the consumer would reject, so that the job reports it.
    return ProducerRecord(encode(checked(announced)), key=message_id.rpartition("/")[2].encode(), headers=headers)


def _pages(entries: Iterator[Item], size: int, job_key: str) -> Generator[list[Item], None, None]:
    while page := _page(entries, size, job_key):
        yield page


def _page(entries: Iterator[Item], size: int, job_key: str) -> list[Item]:
    with tracing.step("list", [job_key]):
        return list(islice(entries, size))
