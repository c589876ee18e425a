"""Files to announcements on `file-event-queue`, one for each version of a file and reader profile, whoever finds it.

The announcement's id is the file's key. Pollers publish one after the other: two jobs that look at the same folder at
the same time, or at one inside the other, would both find a file that neither has announced yet.

A page of a listing that was announced to its end is remembered as a whole too: as long as nothing in it changes, one
question answers for all of its files.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from ingest_project.contracts.decoding import encode
from ingest_project.contracts.files import FileEvent, file_key, file_type_of, profile_named, version_of
from ingest_project.core.logging import get_logger
from ingest_project.platform.database.engine import exclusive
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.platform.work_queue.item_errors import is_item_fault, reason_of, storable
from ingest_project.polling.job_queue import JobOutbox, JobRecord
from ingest_project.polling.resources import PollingResources
from ingest_project.sources.protocol import Source, SourceFile

logger = get_logger(__name__)

LOCK = "file-announcements"


@dataclass(frozen=True)
class Announcements:
    """What is to be announced of one page.

    Args:
        page_id: what the page as a whole is remembered by.
        known: whether it was announced as a whole before.
        messages: by id, of the files that have not been announced in this version.
        paths: of those files.
        refused: files that cannot be announced at all, and why.
    """

    page_id: str
    known: bool
    messages: Mapping[str, ProducerRecord]
    paths: frozenset[str]
    refused: Sequence[tuple[SourceFile, str]] = ()


def prepare(
    services: PollingResources, record: JobRecord, source: Source, files: Sequence[SourceFile], outbox: JobOutbox
) -> Announcements:
    """Find out which files have not been announced in this version, and write their announcements; nothing is sent.

    Args:
        services: Kafka.
        record: the job that found them.
        source: the place they are in.
        files: a page of them.
        outbox: knows what was announced.
    """
    # What was announced on a topic that is gone has to be announced again: nobody else remembers it.
    life = _life_of(services.settings.topics.file_event_queue, services)
    profile = profile_named(record.job.metadata, services.settings.file_ingest.default_profile)
    found, refused = _known_by(life, source, files, profile)
    page_id = f"{life}/page/{_digest(source, list(found.values()), profile)}"
    if not outbox.unsent([page_id]):
        return Announcements(page_id, known=True, messages={}, paths=frozenset(), refused=refused)
    new = outbox.unsent(list(found))
    return Announcements(
        page_id,
        known=False,
        messages={message_id: _message(record, found[message_id], message_id) for message_id in new},
        paths=frozenset(found[message_id].path for message_id in new),
        refused=refused,
    )


def _known_by(
    life: str, source: Source, files: Sequence[SourceFile], profile: str
) -> tuple[dict[str, SourceFile], list[tuple[SourceFile, str]]]:
    """Files by the id of their announcement, and those of which none can be made: they must not stop the others."""
    found: dict[str, SourceFile] = {}
    refused: list[tuple[SourceFile, str]] = []
    for file in files:
        try:
            key = _key_of(file, source, profile)
            msgspec.json.encode(file)
        except Exception as error:
            if not is_item_fault(error):
                raise
            logger.warning("file_not_announced", path=storable(file.path), reason=reason_of(error), exc_info=error)
            refused.append((file, f"It cannot be announced: {type(error).__name__}."))
        else:
            found[f"{life}/{key}"] = file
    return found, refused


def publish(services: PollingResources, announcements: Announcements, outbox: JobOutbox) -> None:
    """Publish what is not on the topic yet.

    Killed anywhere and called again, by this or another job, it leaves each version on the topic once.

    Raises:
        BrokerUnavailableError, DatabaseUnavailableError, TransactionConflictError: call again.
    """
    topic = services.settings.topics.file_event_queue
    if announcements.known:
        return
    if announcements.messages:
        with exclusive(services.engine, LOCK):
            publish_once(services.writer, services.reader, outbox, topic, list(announcements.messages.items()))
    outbox.remember(topic, announcements.page_id)


def _digest(source: Source, files: Sequence[SourceFile], profile: str) -> str:
    return hashlib.sha256(msgspec.json.encode((source.location, files, profile))).hexdigest()


def _key_of(file: SourceFile, source: Source, profile: str) -> str:
    location = file.location or source.canonical_location(file.path)
    return file_key(location, file.name, version_of(file.etag, file.size_bytes, file.modified_at), profile)


def _life_of(topic: str, services: PollingResources) -> str:
    """What tells this life of the topic from the next; a topic that is not there yet is created first."""
    if not services.reader.topic_id(topic):
        services.writer.require_topic(topic)
    return services.reader.topic_id(topic)


def _message(record: JobRecord, file: SourceFile, message_id: str) -> ProducerRecord:
    event = file_event(record, file)
    headers = (("trace-id", event.trace_id.encode()),) if event.trace_id else ()
    return ProducerRecord(encode(event), key=message_id.rpartition("/")[2].encode(), headers=headers)


def file_event(record: JobRecord, file: SourceFile) -> FileEvent:
    """The announcement of one file; what the job says about its format travels along."""
    job = record.job
    config = {name: value for name, value in job.source_config.items() if name != "source_type"}
    return FileEvent(
        event_id=str(uuid.uuid4()),
        job_id=job.job_id,
        source_type=job.source_type,
        file_path=file.path,
        file_name=file.name,
        file_type=file_type_of(file.name),
        size_bytes=file.size_bytes,
        modified_at=file.modified_at,
        etag=file.etag,
        discovered_at=datetime.now(UTC),
        trace_id=job.trace_id,
        metadata=job.metadata,
        source_config=config,
    )
