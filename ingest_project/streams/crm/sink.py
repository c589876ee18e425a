"""The relational tables as the sink of CRM messages: rows and position are one transaction.

Each message is an opportunity, a project, or unidentified. Should storing messages together fail, for a reason that the
rules did not foresee or because the database refuses a value, they are halved until the message is found that fails
alone, which is then kept unidentified with the reason. The position follows each part: one message never stops the
others, and no part is stored twice. Unidentified messages can be tried again after a fix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
import stamina

from ingest_project.contracts import trace_id_in
from ingest_project.contracts.crm_event import CrmEvent, CrmKind, decode_crm_event
from ingest_project.core.errors import TransientError, UnexpectedError, UnreadableMessageError
from ingest_project.core.items import store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.platform.database import reading, writing
from ingest_project.platform.errors import sqlstate
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.crm import unidentified as kept_messages
from ingest_project.streams.crm.records import MessageOrder, PlacedEvent, upsert
from ingest_project.streams.crm.unidentified import Unidentified, keep
from ingest_project.streams.engine import Batch, StreamResources
from ingest_project.streams.positions import (
    PositionConflictError,
    SinkPosition,
    enter_lost,
    epochs,
    move,
)

logger = get_logger(__name__)

CHUNK_MESSAGES = 5_000
MESSAGES_PER_TRANSACTION = 200
# A run that waits longer only holds a slot that others could use: a tick requests the rest again, minutes later.
PATIENCE_SECONDS = 60.0
# PostgreSQL's classes of codes for a value it does not take: malformed, against a rule, beyond a limit of its own.
REFUSALS = ("22", "23", "54")


@dataclass
class Identified:
    """Messages by kind; each of them is in exactly one list.

    Args:
        messages: all of them, in their order.
        topic_id: of the topic that they are from.
        epoch: number of that topic among those of the same name.
    """

    messages: Sequence[ConsumerRecord]
    topic_id: str
    epoch: int = 0
    events: dict[CrmKind, list[PlacedEvent]] = field(default_factory=lambda: {kind: [] for kind in CrmKind})
    unidentified: list[Unidentified] = field(default_factory=list)


class RetryResult(NamedTuple):
    """Result of retrying unidentified messages.

    Args:
        identified: ids of messages that are records now.
        unidentified: ids of those that are still none.
    """

    identified: tuple[str, ...] = ()
    unidentified: tuple[str, ...] = ()


class CrmSink:
    """Upserts records and keeps the rest, in the transaction of the position.

    Args:
        services: the database.
    """

    chunk_messages = CHUNK_MESSAGES

    def __init__(self, services: StreamResources) -> None:
        self._services = services

    def prepare(self, positions: Sequence[SinkPosition]) -> None:
        """Do nothing: positions and rows are in one database."""

    def resume(self, position: SinkPosition) -> SinkPosition:
        """Return the position: it is this sink's own."""
        return position

    def decode(self, messages: Sequence[ConsumerRecord], position: SinkPosition) -> Identified:
        """Sort messages by kind."""
        return identify(messages, position.topic_id, position.epoch)

    def is_full(self, batch: Batch[Identified]) -> bool:
        """Store each chunk that was read."""
        return bool(batch.rows)

    def store(self, batch: Batch[Identified], position: SinkPosition) -> SinkPosition:
        """Store one chunk; see `Sink.store`."""
        storing = _Storing(self._services, batch, position)
        if storing.messages:
            rows = range(len(storing.messages))
            store_bisecting(rows, storing.part, lambda error: isinstance(error, _RefusedMessagesError))
        else:
            storing.part([])
        return storing.position


class _RefusedMessagesError(Exception):
    """Some of the messages cannot be stored."""


class _Storing:
    """One batch on its way into the tables, some of its messages at a time, in their order."""

    def __init__(self, services: StreamResources, batch: Batch[Identified], position: SinkPosition) -> None:
        self._services, self._batch = services, batch
        self._found = batch.rows[0] if batch.rows else Identified([], position.topic_id, position.epoch)
        self.messages = self._found.messages
        self.position = position

    def part(self, rows: Sequence[int]) -> None:
        """Store neighbouring messages, given by their numbers; a single one that is refused is kept unidentified.

        Raises:
            _RefusedMessagesError: the database refuses some of several messages.
        """
        messages = [self.messages[row] for row in rows]
        is_whole = len(messages) == len(self.messages)
        found = self._found if is_whole else identify(messages, self._found.topic_id, self._found.epoch)
        next_row = rows[-1] + 1 if rows else 0
        try:
            self._commit(found, next_row)
        except Exception as error:
            if not may_be_a_messages_fault(error) or not messages:
                raise
            if len(messages) > 1:
                raise _RefusedMessagesError from error
            self._commit(self._refused(messages[0], error), next_row)

    def _refused(self, message: ConsumerRecord, error: Exception) -> Identified:
        topic_id, epoch = self._found.topic_id, self._found.epoch
        order = MessageOrder(message.topic, topic_id, message.partition, message.offset, epoch)
        kept = unidentified(message, order, *reason_of(error))
        return Identified([message], topic_id, epoch, unidentified=[kept])

    def _commit(self, found: Identified, next_row: int) -> None:
        retries = self._services.settings.retries
        for attempt in stamina.retry_context(
            on=_passes,
            attempts=retries.max_attempts,
            timeout=PATIENCE_SECONDS,
            wait_initial=retries.delay_seconds,
            wait_max=retries.max_delay_seconds,
            wait_jitter=retries.delay_seconds,
        ):
            with attempt:
                self.position = self._transaction(found, next_row)

    def _transaction(self, found: Identified, next_row: int) -> SinkPosition:
        now, position, is_last = datetime.now(UTC), self.position, next_row == len(self.messages)
        outcome = Counter({"unidentified": len(found.unidentified)})
        with writing(self._services.engine) as connection:
            for kind in CrmKind:
                done = upsert(connection, kind, found.events[kind], now)
                outcome[f"{kind}_messages"] += done.messages
                outcome[f"{kind}_rows_changed"] += done.changed
            _keep(connection, found.unidentified, now, self._services.settings.logging.file)
            if is_last:
                enter_lost(connection, position.stream, self._batch.lost)
                outcome += self._batch.outcome
            to = self._batch.next_offset if is_last else self.messages[next_row].offset
            return move(connection, position, to, outcome, now)


def identify(messages: Sequence[ConsumerRecord], topic_id: str, epoch: int = 0) -> Identified:
    """Sort messages by kind. No message makes it fail."""
    sorted_out = Identified(messages, topic_id, epoch)
    for message in messages:
        found = identify_payload(message.value)
        position = MessageOrder(message.topic, topic_id, message.partition, message.offset, epoch)
        if isinstance(found, tuple):
            sorted_out.unidentified.append(unidentified(message, position, *found))
        else:
            sorted_out.events[found.kind].append(PlacedEvent(found, position, trace_id_in(message.headers)))
    return sorted_out


def identify_payload(payload: bytes | None) -> CrmEvent | tuple[str, str]:
    """Return the event that a message carries, or the reason why it is none and the class of that error."""
    try:
        return decode_crm_event(payload)
    except UnreadableMessageError as error:
        return str(error), error.error_class
    except Exception as error:  # a defect of ours that one message found must not stop the others
        logger.exception("decoding_failed_unexpectedly")
        failure = UnexpectedError("Reading the message", error)
        return str(failure), failure.error_class


def unidentified(message: ConsumerRecord, position: MessageOrder, reason: str, error_class: str) -> Unidentified:
    """Describe a message that is to be kept."""
    return Unidentified(
        position=position,
        timestamp=message.timestamp,
        key=message.key,
        headers=message.headers,
        payload=message.value,
        reason=reason,
        error_class=error_class,
    )


def may_be_a_messages_fault(error: Exception) -> bool:
    """Test whether one message may have caused an error, and not the tables, the connection or a concurrent writer."""
    if isinstance(error, TransientError):
        return False
    if isinstance(error, sa.exc.DBAPIError) and not isinstance(error, sa.exc.DataError | sa.exc.IntegrityError):
        return isinstance(error.orig, BaseException) and sqlstate(error.orig).startswith(REFUSALS)
    return True


def reason_of(error: Exception) -> tuple[str, str]:
    """Return why a message could not be stored, and the class of that error."""
    if isinstance(error, sa.exc.DBAPIError):
        cause = next(iter(str(error.orig or error).splitlines()), type(error).__name__)
        return f"The database refuses it: {cause[:300]}", type(error).__name__
    logger.error("storing_failed_unexpectedly", exc_info=error)
    failure = UnexpectedError("Storing the message", error)
    return str(failure), failure.error_class


def retry(engine: sa.Engine, message_ids: Sequence[str] | None = None) -> RetryResult:
    """Identify messages again by today's rules, and store those that are identified now as new arrivals.

    Record and mark are one transaction, and each message is locked by one retry at a time: done twice, also at once, it
    becomes a record once. An older version still never overwrites a newer one.

    Args:
        engine: of the database.
        message_ids: which; None for all that are open.
    """
    identified: list[str] = []
    still_not: list[str] = []

    def retry_part(ids: Sequence[str]) -> None:
        done = _retry_together(engine, ids)
        identified.extend(done.identified)
        still_not.extend(done.unidentified)

    for ids in _open_ids(engine) if message_ids is None else _parts(message_ids):
        for message_id, error in store_bisecting(ids, retry_part, may_be_a_messages_fault):
            with writing(engine) as connection:
                kept_messages.mark_retried(connection, {message_id: reason_of(error)}, datetime.now(UTC))
            still_not.append(message_id)
    return RetryResult(tuple(identified), tuple(still_not))


def _passes(error: Exception) -> bool:
    """Return whether the same transaction may succeed later."""
    return isinstance(error, TransientError) and not isinstance(error, PositionConflictError)


def _keep(connection: sa.Connection, messages: Sequence[Unidentified], now: datetime, log_file: Path | None) -> None:
    new = keep(connection, messages, now)
    if new:
        # One line, however many: each has its row, and its line in the log of its own.
        logger.warning(
            "messages_unidentified", messages=len(new), first=str(new[0].position), reason_of_first=new[0].reason
        )
    kept_messages.append_to_log(log_file, new, now)


def _retry_together(engine: sa.Engine, message_ids: Sequence[str]) -> RetryResult:
    now = datetime.now(UTC)
    with writing(engine) as connection:
        events: dict[str, PlacedEvent] = {}
        reasons: dict[str, tuple[str, str]] = {}
        epochs_of: dict[str, dict[str, int]] = {}
        for message in kept_messages.take_open(connection, message_ids):
            found = identify_payload(message.payload)
            if isinstance(found, tuple):
                reasons[message.message_id] = found
            else:
                order = message.position
                if order.topic not in epochs_of:
                    epochs_of[order.topic] = epochs(connection, order.topic)
                order = order._replace(epoch=epochs_of[order.topic].get(order.topic_id, 0))
                events[message.message_id] = PlacedEvent(found, order, message.trace_id)
        for kind in CrmKind:
            upsert(connection, kind, [one for one in events.values() if one.event.kind is kind], now)
        records = {message_id: (one.event.kind, one.event.event_id) for message_id, one in events.items()}
        kept_messages.mark_identified(connection, records, now)
        kept_messages.mark_retried(connection, reasons, now)
    return RetryResult(tuple(events), tuple(reasons))


def _open_ids(engine: sa.Engine) -> Iterator[list[str]]:
    after = ""
    while True:
        with reading(engine) as connection:
            found = kept_messages.find(connection, limit=MESSAGES_PER_TRANSACTION, after=after)
        if not found:
            return
        after = found[-1].message_id
        yield [message.message_id for message in found]


def _parts(message_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(message_ids), MESSAGES_PER_TRANSACTION):
        yield message_ids[start : start + MESSAGES_PER_TRANSACTION]
