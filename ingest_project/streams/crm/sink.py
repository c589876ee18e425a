"""The stream of CRM messages, sorted into their tables: each is an opportunity, a project, or unidentified.

Unidentified messages can be tried again after a fix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl
import sqlalchemy as sa

from ingest_project.contracts.columns import StreamColumn
from ingest_project.contracts.crm_event import CrmKind
from ingest_project.core.items import grouped, store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings
from ingest_project.platform.database import reading, writing
from ingest_project.platform.database.sql import in_parts
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.crm import unidentified as kept_messages
from ingest_project.streams.crm.event_rows import CrmRows, crm_rows
from ingest_project.streams.crm.records import TABLES, VERSION
from ingest_project.streams.crm.unidentified import MessagePosition, Unidentified, keep
from ingest_project.streams.declaration import SqlTarget, StreamDeclaration
from ingest_project.streams.decoders import decode_apart
from ingest_project.streams.positions import SinkPosition, epochs
from ingest_project.streams.sql.sink import may_be_a_messages_fault, reason_of
from ingest_project.streams.sql.upsert import upsert_rows

logger = get_logger(__name__)

MESSAGES_PER_TRANSACTION = 200


@dataclass
class Identified:
    """Messages by kind; each of them is one row, or unidentified.

    Args:
        messages: all of them, in their order.
        rows: rows of both kinds, one for each chunk that was decoded.
        unidentified: the other messages.
    """

    messages: Sequence[ConsumerRecord]
    rows: list[CrmRows] = field(default_factory=list)
    unidentified: list[Unidentified] = field(default_factory=list)

    def frame(self, kind: CrmKind) -> pl.DataFrame:
        """Return the rows of one kind."""
        return pl.concat([one.frames[kind] for one in self.rows]) if self.rows else pl.DataFrame()


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
        log: log of unidentified messages.
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
        return Identified([message], unidentified=[unidentified(message, position.topic_id, *reason_of(error))])

    def store(self, connection: sa.Connection, rows: Identified, now: datetime) -> Counter[str]:
        """Upsert records and keep the rest."""
        outcome = Counter({"unidentified": len(rows.unidentified)})
        for kind in CrmKind:
            frame = rows.frame(kind)
            outcome[f"{kind}_messages"] += frame.height
            outcome[f"{kind}_rows_changed"] += upsert(connection, kind, frame, now)
        _keep(connection, rows.unidentified, now, self._log)
        return outcome


class Crm(StreamDeclaration):
    """Messages of a CRM, each in the table of its kind, or unidentified."""

    is_shipped = True

    topic: str

    @property
    def source(self) -> str:
        """The name of the topic's setting."""
        return "sales_events"

    @property
    def dlq(self) -> str:
        """None: a table keeps what is neither opportunity nor project."""
        return ""

    def own_tables(self, settings: Settings) -> CrmTables:
        """Return the tables of both kinds, and of messages of neither."""
        return CrmTables(kept_messages.log_of(settings))


def crm_stream(settings: Settings) -> Crm:
    """Declare CRM messages from the settings."""
    own = settings.crm
    return Crm(
        name="crm",
        topic=settings.topics.sales_events,
        # The columns of both kinds that identify a version. Amounts have more digits than a declared decimal.
        columns=(
            StreamColumn(name="event_id", type="text", required=True),
            StreamColumn(name="last_modified", type="timestamp", required=True, path="$.meta_data.last_modified"),
        ),
        sink=SqlTarget(key=("event_id",), version="last_modified", tombstones="ignore"),
        fresh_within_hours=24,
        warn_after_hours=12,
        batch_messages=own.batch_messages,
        max_parallel_batches=own.max_parallel_batches,
        max_unfinished_seconds=own.max_unfinished_seconds,
    )


def identify(messages: Sequence[ConsumerRecord], topic_id: str, epoch: int = 0) -> Identified:
    """Sort messages of one topic by kind. No message makes it fail."""
    found = Identified(messages)
    refused = decode_apart(messages, lambda part: found.rows.append(crm_rows(part, topic_id, epoch)))
    refused += [one for rows in found.rows for one in rows.refused]
    in_order = sorted(refused, key=lambda one: one[0].offset)
    found.unidentified = [unidentified(one, topic_id, str(error), error.error_class) for one, error in in_order]
    return found


def unidentified(message: ConsumerRecord, topic_id: str, reason: str, error_class: str) -> Unidentified:
    """Describe a message that is to be kept."""
    return Unidentified(
        position=MessagePosition(message.topic, topic_id, message.partition, message.offset),
        timestamp=message.timestamp,
        key=message.key,
        headers=message.headers,
        payload=message.value,
        reason=reason,
        error_class=error_class,
    )


def upsert(connection: sa.Connection, kind: CrmKind, rows: pl.DataFrame, now: datetime) -> int:
    """Store versions of records of one kind, in the caller's transaction; returns how many rows are new or changed.

    Upserts on event_id; an older version never overwrites a newer one, and doing it again changes nothing.
    """
    return upsert_rows(connection, TABLES[kind], VERSION, rows.with_columns(stored_at=pl.lit(now)))


def retry(engine: sa.Engine, message_ids: Sequence[str] | None = None) -> RetryResult:
    """Identify messages again by today's rules, and store those that are identified now as new arrivals.

    Record and mark are one transaction, and each message is locked by one retry at a time: done twice, also at once, it
    becomes a record once. An older version still never overwrites a newer one.

    Args:
        engine: engine of the database.
        message_ids: which; None for all that are open.
    """
    identified: list[str] = []
    still_not: list[str] = []

    def retry_part(ids: Sequence[str]) -> None:
        done = _retry_together(engine, ids)
        identified.extend(done.identified)
        still_not.extend(done.unidentified)

    for ids in _open_ids(engine) if message_ids is None else in_parts(message_ids, MESSAGES_PER_TRANSACTION):
        for message_id, error in store_bisecting(ids, retry_part, may_be_a_messages_fault):
            with writing(engine) as connection:
                kept_messages.mark_retried(connection, {message_id: reason_of(error)}, datetime.now(UTC))
            still_not.append(message_id)
    return RetryResult(tuple(identified), tuple(still_not))


def _keep(connection: sa.Connection, messages: Sequence[Unidentified], now: datetime, log: Path) -> None:
    new = keep(connection, messages, now)
    if new:
        # Log one line in total: each message has its own row, and its own line in the log of unidentified messages.
        logger.warning(
            "messages_unidentified", messages=len(new), first=str(new[0].position), reason_of_first=new[0].reason
        )
    kept_messages.append_to_log(log, new, now)


def _retry_together(engine: sa.Engine, message_ids: Sequence[str]) -> RetryResult:
    now = datetime.now(UTC)
    records: dict[str, tuple[CrmKind, str]] = {}
    reasons: dict[str, tuple[str, str]] = {}
    with writing(engine) as connection:
        taken = kept_messages.take_open(connection, message_ids)
        by_topic = grouped(((one.kafka_topic, one.kafka_topic_id), one.record) for one in taken)
        for (topic, topic_id), kept in by_topic.items():
            epoch = epochs(connection, topic).get(topic_id, 0)
            found = identify(kept, topic_id, epoch)
            reasons |= {one.position.message_id: (one.reason, one.error_class) for one in found.unidentified}
            for kind in CrmKind:
                rows = found.frame(kind)
                upsert(connection, kind, rows, now)
                for partition, offset, event_id in rows["kafka_partition", "kafka_offset", "event_id"].iter_rows():
                    records[MessagePosition(topic, topic_id, partition, offset).message_id] = (kind, event_id)
        kept_messages.mark_identified(connection, records, now)
        kept_messages.mark_retried(connection, reasons, now)
    return RetryResult(tuple(records), tuple(reasons))


def _open_ids(engine: sa.Engine) -> Iterator[list[str]]:
    after = ""
    while True:
        with reading(engine) as connection:
            found = kept_messages.find(connection, limit=MESSAGES_PER_TRANSACTION, after=after)
        if not found:
            return
        after = found[-1].message_id
        yield [message.message_id for message in found]
