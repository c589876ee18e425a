"""What Kafka is told of attempts that ended: the cached file, the result, and where the task goes next.

Every message has an id made of attachment, replay and attempt, so that telling twice tells once. What is told comes
from the ledger alone: a run that takes up what another one left says exactly the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest_project.attachments.retries import retry_topic
from ingest_project.kafka.dead_letters import dead_letter
from ingest_project.kafka.publishing import publish_once
from ingest_project.kafka.received import Received
from ingest_project.kafka.writing import Outgoing
from ingest_project.messages.decoding import encode
from ingest_project.messages.download import DownloadStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from ingest_project.ledger.attachment_record import AttachmentRecord, Outcome
    from ingest_project.resources import Services
    from ingest_project.settings import TopicSettings

DUE_HEADER = "due-at"
REPLAYS_HEADER = "replays"

Addressed = tuple[str, str, Outgoing]
"""Topic, message id and message."""


def tell(services: Services, outcomes: Sequence[Outcome]) -> None:
    """Publish what follows from these outcomes, each message once.

    Raises:
        BrokerUnavailable: not all of it was confirmed; call again.
    """
    failed = [o.attachment_key for o in outcomes if o.result.status is not DownloadStatus.SUCCESS]
    records = {record.attachment_key: record for record in services.attachments.get_many(failed)}
    by_topic: dict[str, list[tuple[str, Outgoing]]] = {}
    for outcome in outcomes:
        for topic, message_id, message in messages_of(outcome, records, services.settings.topics):
            by_topic.setdefault(topic, []).append((message_id, message))
    for topic, messages in by_topic.items():
        publish_once(services.writer, services.reader, services.outbox, topic, messages)


def messages_of(
    outcome: Outcome, records: Mapping[str, AttachmentRecord], topics: TopicSettings
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
    if outcome.cached is not None:
        yield topics.downloads_cached, f"cached/{identity}", Outgoing(encode(outcome.cached), key, (trace,))
    yield topics.downloads_results, f"result/{identity}", Outgoing(encode(outcome.result), key, (trace,))
    record = records.get(outcome.attachment_key)
    if outcome.result.status is DownloadStatus.SUCCESS or record is None:
        return
    if outcome.next_attempt_at is not None:
        topic = retry_topic(outcome.result.attempt, topics.downloads_retry)
        yield topic, f"retry/{identity}", _waiting_task(record, outcome, outcome.next_attempt_at)
    else:
        yield topics.downloads_dlq, f"dead/{identity}", _dead_task(record, outcome)


def _waiting_task(record: AttachmentRecord, outcome: Outcome, due_at: datetime) -> Outgoing:
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
    return Outgoing(encode(task), record.attachment_key.encode(), tuple((n, v.encode()) for n, v in headers.items()))


def _dead_task(record: AttachmentRecord, outcome: Outcome) -> Outgoing:
    """The task as it came, with what went wrong in its headers."""
    intake = record.intake
    came_as = Received(
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
        generation=intake.generation,
        attempt=outcome.result.attempt,
        trace_id=record.trace_id,
    )
    return letter
