"""What Kafka is told: the cached file in the middle of an attempt; at its end the result, and where the task goes next.

Every message has an id made of attachment, replay and attempt, so that telling twice tells once. What is told comes
from the ledger alone: a run that takes up what another one left says exactly the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from ingest_project.attachments.attempts import AttemptResult, Identity
from ingest_project.attachments.downloading import Cached
from ingest_project.attachments.queue import AttachmentRecord, retry_topic
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.contracts.decoding import encode
from ingest_project.contracts.download import DownloadStatus
from ingest_project.core.bisection import store_bisecting
from ingest_project.core.errors import TransientError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import TopicSettings
from ingest_project.platform.kafka.dead_letters import dead_letter
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.platform.kafka.records import ConsumerRecord
from ingest_project.platform.work_queue.item_errors import is_item_fault, reason_of

logger = get_logger(__name__)

DUE_HEADER = "due-at"
REPLAYS_HEADER = "replays"

Addressed = tuple[str, str, ProducerRecord]
"""Topic, message id and message."""


def tell_cached(services: AttachmentResources, cached: Sequence[Cached]) -> None:
    """Publish that these files are downloaded and wait to be stored, each once.

    Raises:
        BrokerUnavailableError: not all of it was confirmed; call again.
    """
    messages = []
    for one in cached:
        headers = (("trace-id", one.record.trace_id.encode()),)
        message = ProducerRecord(encode(one.message), one.record.attachment_key.encode(), headers)
        messages.append((f"cached/{'/'.join(map(str, one.identity))}", message))
    for message_id, error in publish(services, services.settings.topics.downloads_cached, messages):
        logger.warning("cached_file_not_announced", message_id=message_id, reason=reason_of(error))


def publish_outcomes(services: AttachmentResources, outcomes: Sequence[AttemptResult]) -> dict[Identity, str]:
    """Publish what follows from these outcomes, each message once.

    Returns:
        of those that something could not be published of, why.

    Raises:
        BrokerUnavailableError: not all of it was confirmed; call again.
    """
    failed = [o.attachment_key for o in outcomes if o.result.status is not DownloadStatus.SUCCESS]
    records = {record.attachment_key: record for record in services.attachments.get_many(failed)}
    by_topic: dict[str, list[tuple[str, ProducerRecord]]] = {}
    identities: dict[str, Identity] = {}
    errors: dict[Identity, Exception] = {}
    for outcome in outcomes:
        try:
            addressed = list(messages_of(outcome, records, services.settings.topics))
        except Exception as error:
            if not is_item_fault(error):
                raise
            errors[outcome.identity] = error
            continue
        for topic, message_id, message in addressed:
            by_topic.setdefault(topic, []).append((message_id, message))
            identities[message_id] = outcome.identity
    for topic, messages in by_topic.items():
        errors |= {identities[message_id]: refusal for message_id, refusal in publish(services, topic, messages)}
    reasons = {identity: reason_of(refusal) for identity, refusal in errors.items()}
    for (key, _, _), reason in reasons.items():
        logger.error("outcome_not_published", partition_key=key, reason=reason)
    return reasons


def publish(
    services: AttachmentResources, topic: str, messages: Sequence[tuple[str, ProducerRecord]]
) -> list[tuple[str, Exception]]:
    """Publish messages, each once; returns the ids of those that the broker does not take, and why.

    Raises:
        BrokerUnavailableError, PublisherReplacedError: not all of it was confirmed; call again.
    """

    def publish_part(part: Sequence[tuple[str, ProducerRecord]]) -> None:
        publish_once(services.writer, services.reader, services.outbox, topic, part)

    failures = store_bisecting(messages, publish_part, is_message_fault)
    return [(message_id, error) for (message_id, _), error in failures]


def is_message_fault(error: Exception) -> bool:
    """Tell an error that a message may be to blame for from one of the broker or of another publisher."""
    return not isinstance(error, TransientError) and is_item_fault(error)


def messages_of(
    outcome: AttemptResult, records: Mapping[str, AttachmentRecord], topics: TopicSettings
) -> Iterator[Addressed]:
    """The messages that one outcome calls for.

    Args:
        outcome: as the ledger keeps it.
        records: of the attachments that failed.
        topics: their names.
    """
    identity = "/".join(map(str, outcome.identity))
    key = outcome.attachment_key.encode()
    trace = ("trace-id", outcome.result.trace_id.encode())
    yield topics.downloads_results, f"result/{identity}", ProducerRecord(encode(outcome.result), key, (trace,))
    record = records.get(outcome.attachment_key)
    if outcome.result.status is DownloadStatus.SUCCESS or outcome.leaves_stored_bytes or record is None:
        return
    if outcome.next_attempt_at is not None:
        topic = retry_topic(outcome.result.attempt, topics.downloads_retry)
        yield topic, f"retry/{identity}", _waiting_task(record, outcome, outcome.next_attempt_at)
    else:
        yield topics.downloads_dlq, f"dead/{identity}", _dead_task(record, outcome)


def _waiting_task(record: AttachmentRecord, outcome: AttemptResult, due_at: datetime) -> ProducerRecord:
    headers = {
        "trace-id": record.trace_id,
        "origin": "ingest_project",
        DUE_HEADER: due_at.isoformat(timespec="milliseconds"),
        "attempt": str(outcome.result.attempt + 1),
        REPLAYS_HEADER: str(outcome.replays),
        "first-failed-at": (record.first_failed_at or outcome.result.completed_at).isoformat(timespec="milliseconds"),
        "error-class": outcome.result.error_class or "",
    }
    task = record.task_of(outcome.result.attempt + 1)
    return ProducerRecord(
        encode(task), record.attachment_key.encode(), tuple((n, v.encode()) for n, v in headers.items())
    )


def _dead_task(record: AttachmentRecord, outcome: AttemptResult) -> ProducerRecord:
    """The task as it came, with what went wrong in its headers."""
    intake = record.intake
    came_as = ConsumerRecord(
        topic=intake.topic,
        partition=intake.partition,
        offset=intake.offset,
        timestamp_ms=int(intake.at.timestamp() * 1_000) if intake.at else None,
        key=record.attachment_key.encode(),
        value=record.task.encode(),
        headers=((REPLAYS_HEADER, str(outcome.replays).encode()),),
    )
    _, letter = dead_letter(
        came_as,
        error_class=outcome.result.error_class or "",
        reason=outcome.result.error or "",
        first_failed_at=record.first_failed_at or outcome.result.completed_at,
        last_failed_at=outcome.result.completed_at,
        topic_id=intake.topic_id,
        attempt=outcome.result.attempt,
        trace_id=record.trace_id,
    )
    return letter
