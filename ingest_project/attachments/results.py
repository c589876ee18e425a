"""Publish the results of attempts: messages to Kafka, and rows to the Delta table `attachment_results`.

Kafka gets the cached file in the middle of an attempt; at its end the result, and the retry or dead-letter task. Every
message has an id made of attachment, replay and attempt, so that publishing twice publishes once. Its content comes
from the work queue alone: a run that continues a lost one publishes exactly the same.

The Delta table has one row for each attempt, each exactly once. A commit's rows are numbered in the work queue before
it is made, and the number goes into the commit: a numbered commit that may not have been made is made again, and the
table knows whether it has that number. One process at a time commits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import pyarrow as pa

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.attempts import AttemptResult, Identity
from ingest_project.attachments.downloading import Cached
from ingest_project.attachments.queue import AttachmentRecord, retry_topic
from ingest_project.contracts import encode
from ingest_project.contracts.attachments import DownloadStatus
from ingest_project.core.errors import StoreUnavailableError, TransactionConflictError, TransientError
from ingest_project.core.items import hour_key, store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import TopicSettings
from ingest_project.platform import tracing
from ingest_project.platform.database import exclusive
from ingest_project.platform.delta.table import query_events
from ingest_project.platform.errors import is_item_fault, reason_of, traceback_of
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.dead_letters import dead_letter
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.platform.tracing import headers_of

logger = get_logger(__name__)

DUE_HEADER = "due-at"
REPLAYS_HEADER = "replays"
APPLICATION_ID = "ingest_project/attachment_results"
LOCK = "attachment_results"
# After this many refused commits in a row, single rows are not the cause.
MAX_FAILED_COMMITS = 200
# Disk full, not writable, or too many open files.
_OF_THE_STORE = re.compile(r"No space left|Disk quota|Read-only file system|Permission denied|Too many open files")

Addressed = tuple[str, str, ProducerRecord]
"""Topic, message id and message."""


def publish_cached(services: AttachmentResources, cached: Sequence[Cached]) -> None:
    """Publish that these files are downloaded and wait to be stored, each once.

    Raises:
        BrokerUnavailableError: not all of it was confirmed; call again.
    """
    messages = []
    for one in cached:
        headers = tracing.message_headers(one.record.trace_id, one.record.attachment_key)
        message = ProducerRecord(encode(one.message), one.record.attachment_key.encode(), headers)
        messages.append((f"cached/{'/'.join(map(str, one.record.identity))}", message))
    for message_id, error in publish(services, services.settings.topics.downloads_cached, messages):
        logger.warning("cached_file_not_announced", message_id=message_id, reason=reason_of(error))


def publish_outcomes(services: AttachmentResources, outcomes: Sequence[AttemptResult]) -> dict[Identity, str]:
    """Publish the messages of these outcomes, each once.

    Returns:
        for each result with a message that could not be published, the reason.

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
    """Publish messages, each once; returns the ids of those that the broker refuses, and why.

    Raises:
        BrokerUnavailableError, PublisherReplacedError: not all of it was confirmed; call again.
    """

    def publish_part(part: Sequence[tuple[str, ProducerRecord]]) -> None:
        publish_once(services.writer, services.reader, services.outbox, topic, part)

    failures = store_bisecting(messages, publish_part, is_message_fault)
    return [(message_id, error) for (message_id, _), error in failures]


def is_message_fault(error: Exception) -> bool:
    """Test whether a message may have caused an error, and not the broker or another publisher."""
    return not isinstance(error, TransientError) and is_item_fault(error)


def messages_of(
    outcome: AttemptResult, records: Mapping[str, AttachmentRecord], topics: TopicSettings
) -> Iterator[Addressed]:
    """Yield the messages that follow from one result.

    Args:
        outcome: as the work queue has it.
        records: records of the attachments that failed.
        topics: their names.
    """
    identity = "/".join(map(str, outcome.identity))
    key = outcome.attachment_key.encode()
    headers = tracing.message_headers(outcome.result.trace_id, outcome.attachment_key)
    yield topics.downloads_results, f"result/{identity}", ProducerRecord(encode(outcome.result), key, headers)
    record = records.get(outcome.attachment_key)
    if outcome.result.status is DownloadStatus.SUCCESS or outcome.leaves_stored_bytes or record is None:
        return
    if outcome.next_attempt_at is not None:
        topic = retry_topic(outcome.result.attempt, topics.downloads_retry)
        yield topic, f"retry/{identity}", _waiting_task(record, outcome, outcome.next_attempt_at)
    else:
        yield topics.downloads_dlq, f"dead/{identity}", _dead_task(record, outcome)


def commit_results(services: AttachmentResources) -> list[str]:
    """Commit every outcome that is in no commit yet, in one commit; first, repeat the commits that a lost run began.

    A row that the table refuses is found by bisection: it is marked with the reason, and the others are committed.

    Returns:
        the hours in which the committed attempts ended.

    Raises:
        StoreUnavailableError, TransactionConflictError: not everything was committed; call again.
    """
    hours: set[str] = set()
    with exclusive(services.engine, LOCK):
        _number_next_commit(services)
        while numbers := services.outcomes.open_commits():
            committing = _Committing(services, numbers[0])
            failures = committing.commit()
            hours.update(hour_key(outcome.result.completed_at) for outcome in committing.committed)
            for outcome, error in failures:
                logger.error("result_not_committed", partition_key=outcome.attachment_key, exc_info=traceback_of(error))
                services.outcomes.mark_uncommittable(outcome, reason_of(error))
            if failures:
                _number_next_commit(services)
    return sorted(hours)


def commit_lost(services: AttachmentResources) -> int:
    """Commit the results again whose rows the table has lost, as where an older version was restored.

    A table that has as many rows as the work queue says is not read. Idempotent.

    Returns:
        their number.

    Raises:
        StoreUnavailableError, TransactionConflictError: not everything was committed; call again.
    """
    store, outcomes, lost = services.attachment_results, services.outcomes, 0
    figures = store.figures()
    if figures is not None and (figures.rows or 0) >= outcomes.committed():
        return 0
    with exclusive(services.engine, LOCK):
        for day, committed in outcomes.committed_by_day():
            query = f"SELECT attachment_key, replays, attempt FROM events WHERE day = '{day}'"
            for batch in query_events(store, query):
                committed.difference_update(zip(*batch.to_pydict().values(), strict=True))
            outcomes.reopen(committed)
            lost += len(committed)
    if lost:
        commit_results(services)
    return lost


def _number_next_commit(services: AttachmentResources, chosen: Sequence[AttemptResult] | None = None) -> int:
    # Continue after the table's own number: it refuses used numbers, and so would lose the rows of a work queue that is
    # new or was restored from a backup.
    reached = services.attachment_results.committed_version(APPLICATION_ID) or 0
    return services.outcomes.number_next_commit(chosen, reached=reached)


def results_table(outcomes: Sequence[AttemptResult]) -> pa.Table:
    """Return rows of the Delta table: the fields of DownloadResult, and those of its attachment.

    Times are UTC; `day` is the day on which the attempt ended, `yyyy-mm-dd`.
    """
    return pa.Table.from_pylist([_row(outcome) for outcome in outcomes], schema=results_schema())


def results_schema() -> pa.Schema:
    """Return the columns of the Delta table."""
    return pa.schema(
        [
            ("domain", pa.string()),
            ("day", pa.string()),
            ("attachment_key", pa.string()),
            ("trace_id", pa.string()),
            ("event_type", pa.string()),
            ("attachment_url", pa.string()),
            ("status", pa.string()),
            ("http_status", pa.int32()),
            ("error_class", pa.string()),
            ("error", pa.string()),
            ("size_bytes", pa.int64()),
            ("sha256", pa.string()),
            ("content_type", pa.string()),
            ("onelake_path", pa.string()),
            ("attempt", pa.int32()),
            ("replays", pa.int32()),
            ("completed_at", pa.timestamp("us", tz="UTC")),
        ]
    )


class _Committing:
    """One numbered commit, and the smaller ones that it is split into where the table refuses it."""

    def __init__(self, services: AttachmentResources, number: int) -> None:
        self._services = services
        self._number: int | None = number
        self._outcomes = services.outcomes.of_commit(number)
        self._failed_commits = 0
        self._is_row_fault = False
        self.committed: list[AttemptResult] = []

    def commit(self) -> list[tuple[AttemptResult, Exception]]:
        """Commit; returns the rows that the table refuses, and why."""
        failures = store_bisecting(self._outcomes, self._store, lambda _: self._is_row_fault)
        if failures and not self.committed and any(isinstance(error, StoreUnavailableError) for _, error in failures):
            raise failures[0][1]
        return failures

    def _store(self, part: Sequence[AttemptResult]) -> None:
        outcomes, table = self._services.outcomes, self._services.attachment_results
        number, self._number = self._number, None
        if number is None:
            number = _number_next_commit(self._services, part)
        self._is_row_fault = False
        try:
            with tracing.step("commit", (outcome.attachment_key for outcome in part)):
                table.append(results_table(part), app_id=APPLICATION_ID, version=number)
        except Exception as error:
            # If only the answer was lost, the table has the commit.
            if not self._may_be_row_fault(error) or (table.committed_version(APPLICATION_ID) or 0) >= number:
                raise
            outcomes.withdraw_commits(number)
            self._failed_commits += 1
            self._is_row_fault = True
            raise
        outcomes.mark_committed(number, datetime.now(UTC))
        self._failed_commits = 0
        self.committed += part
        logger.info("results_committed", commit=number, rows=len(part))

    def _may_be_row_fault(self, error: Exception) -> bool:
        """Test whether a row may have caused an error, and not a store that is away or full."""
        if isinstance(error, TransactionConflictError) or self._failed_commits > MAX_FAILED_COMMITS:
            return False
        if not isinstance(error, StoreUnavailableError):
            return is_item_fault(error)
        return not _OF_THE_STORE.search(str(error))


def _row(outcome: AttemptResult) -> dict[str, object]:
    result = outcome.result
    completed_at = result.completed_at.astimezone(UTC)
    return {
        **msgspec.structs.asdict(result),
        "status": result.status.value,
        "domain": outcome.domain,
        "day": completed_at.date().isoformat(),
        "attachment_key": outcome.attachment_key,
        "event_type": outcome.event_type,
        "content_type": outcome.content_type,
        "replays": outcome.replays,
        "completed_at": completed_at,
    }


def _waiting_task(record: AttachmentRecord, outcome: AttemptResult, due_at: datetime) -> ProducerRecord:
    headers = {
        "origin": "ingest_project",
        DUE_HEADER: due_at.isoformat(timespec="milliseconds"),
        "attempt": str(outcome.result.attempt + 1),
        REPLAYS_HEADER: str(outcome.replays),
        "first-failed-at": _first_failed_at(record, outcome).isoformat(timespec="milliseconds"),
        "error-class": outcome.result.error_class or "",
    }
    task = record.task_of(outcome.result.attempt + 1)
    own = tuple((name, value.encode()) for name, value in headers.items())
    traced = tracing.message_headers(record.trace_id, record.attachment_key)
    return ProducerRecord(encode(task), record.attachment_key.encode(), (*traced, *own))


def _first_failed_at(record: AttachmentRecord, outcome: AttemptResult) -> datetime:
    # The record has the time at which the first failure was stored, a moment after it.
    ended = outcome.result.completed_at
    return min(record.first_failed_at or ended, ended)


def _dead_task(record: AttachmentRecord, outcome: AttemptResult) -> ProducerRecord:
    """Return the original task, with the error in its headers."""
    kafka_position = record.kafka_position
    original = ConsumerRecord(
        topic=kafka_position.topic,
        partition=kafka_position.partition,
        offset=kafka_position.offset,
        timestamp_ms=int(kafka_position.at.timestamp() * 1_000) if kafka_position.at else None,
        key=record.attachment_key.encode(),
        value=record.task.encode(),
        headers=(
            (REPLAYS_HEADER, str(outcome.replays).encode()),
            *headers_of(tracing.context_of(record.attachment_key)),
        ),
    )
    _, letter = dead_letter(
        original,
        error_class=outcome.result.error_class or "",
        reason=outcome.result.error or "",
        first_failed_at=_first_failed_at(record, outcome),
        last_failed_at=outcome.result.completed_at,
        topic_id=kafka_position.topic_id,
        attempt=outcome.result.attempt,
        trace_id=record.trace_id,
    )
    return letter
