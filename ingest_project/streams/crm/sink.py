"""Sort CRM messages into their tables: each is an opportunity, a project, or unidentified.

Unidentified messages can be tried again after a fix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from ingest_project.contracts import trace_id_in
from ingest_project.contracts.crm_event import CrmEvent, CrmKind, decode_crm_event
from ingest_project.core.errors import UnexpectedError, UnreadableMessageError
from ingest_project.core.items import store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.platform.database import reading, writing
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.runtime import Runtime
from ingest_project.streams.crm import unidentified as kept_messages
from ingest_project.streams.crm.records import MessageOrder, PlacedEvent, upsert
from ingest_project.streams.crm.unidentified import Unidentified, keep
from ingest_project.streams.positions import SinkPosition, epochs
from ingest_project.streams.sql.sink import SqlSink, may_be_a_messages_fault, reason_of

logger = get_logger(__name__)

MESSAGES_PER_TRANSACTION = 200


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


class CrmTables:
    """The tables of records and of unidentified messages.

    Args:
        log: of unidentified messages.
    """

    def __init__(self, log: Path) -> None:
        self._log = log

    def prepare(self) -> None:
        """Do nothing: migrations create the tables."""

    def decode(self, messages: Sequence[ConsumerRecord], position: SinkPosition) -> Identified:
        """Sort messages by kind."""
        return identify(messages, position.topic_id, position.epoch)

    def refused(self, message: ConsumerRecord, position: SinkPosition, error: Exception) -> Identified:
        """Keep a message that the database refuses as unidentified."""
        order = MessageOrder(message.topic, position.topic_id, message.partition, message.offset, position.epoch)
        kept = unidentified(message, order, *reason_of(error))
        return Identified([message], position.topic_id, position.epoch, unidentified=[kept])

    def store(self, connection: sa.Connection, rows: Identified, now: datetime) -> Counter[str]:
        """Upsert records and keep the rest."""
        outcome = Counter({"unidentified": len(rows.unidentified)})
        for kind in CrmKind:
            done = upsert(connection, kind, rows.events[kind], now)
            outcome[f"{kind}_messages"] += done.messages
            outcome[f"{kind}_rows_changed"] += done.changed
        _keep(connection, rows.unidentified, now, self._log)
        return outcome


def crm_sink(services: Runtime) -> SqlSink[Identified]:
    """Return the sink of CRM messages."""
    return SqlSink(services, CrmTables(kept_messages.log_of(services.settings)))


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


def _keep(connection: sa.Connection, messages: Sequence[Unidentified], now: datetime, log: Path) -> None:
    new = keep(connection, messages, now)
    if new:
        # One line, however many: each has its row, and its line in the log of its own.
        logger.warning(
            "messages_unidentified", messages=len(new), first=str(new[0].position), reason_of_first=new[0].reason
        )
    kept_messages.append_to_log(log, new, now)


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
