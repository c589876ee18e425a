"""Keep each message that is neither opportunity nor project: whole, once, with its position and the reason.

The table is what counts. The log, one JSON object a line, is for people and programs that follow files; it is renamed
at 10 MiB, and four older files are kept. A line is written before its row is committed: after a crash it may be there
twice, and is never missing.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import msgspec
import sqlalchemy as sa

from ingest_project.contracts import trace_id_in
from ingest_project.contracts.crm_event import CrmKind
from ingest_project.core.local_files import make_private_folder
from ingest_project.core.logging import get_logger, to_json
from ingest_project.core.settings import Settings
from ingest_project.platform.database.sql import contains, insert_into
from ingest_project.platform.errors import storable
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.crm.records import unidentified_messages as table

MAX_REASON_LENGTH = 1_000
MAX_LOG_BYTES, OLDER_LOGS = 10 * 1024**2, 4


class MessagePosition(NamedTuple):
    """Position of a message.

    Args:
        topic_id: id of the topic; empty where the broker names none.
    """

    topic: str
    topic_id: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """Name topic, partition and offset."""
        return f"{self.topic}[{self.partition}]@{self.offset}"

    @property
    def message_id(self) -> str:
        """The id under which the message is kept."""
        topic_id = f"~{self.topic_id}" if self.topic_id else ""
        return f"{self.topic}-{self.partition}-{self.offset}{topic_id}"


class Unidentified(msgspec.Struct, frozen=True, kw_only=True):
    """A message to be kept.

    Args:
        payload: the bytes as they were sent; None for a message without any.
        headers: in the order they were sent.
    """

    position: MessagePosition
    timestamp: datetime | None
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    payload: bytes | None
    reason: str
    error_class: str


class KeptMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is kept; `messages.encode` makes JSON of it, bytes in base64.

    Args:
        payload_text: the payload where it is UTF-8.
        retries: how often it was tried again.
        identified_at: when it was identified later; None while it is not.
        event_id: id of the record that it became then.
    """

    message_id: str
    kafka_topic: str
    kafka_topic_id: str
    kafka_partition: int
    kafka_offset: int
    kafka_timestamp: datetime | None
    message_key: bytes | None
    headers: list[list[str | None]] | None
    payload: bytes | None
    payload_text: str | None
    size_bytes: int
    reason: str
    error_class: str
    received_at: datetime
    retries: int
    retried_at: datetime | None
    identified_at: datetime | None
    identified_as: str | None
    event_id: str | None
    trace_id: str | None

    @property
    def position(self) -> MessagePosition:
        """Its position."""
        return MessagePosition(self.kafka_topic, self.kafka_topic_id, self.kafka_partition, self.kafka_offset)

    @property
    def record(self) -> ConsumerRecord:
        """The message as it was read."""
        at, headers = self.kafka_timestamp, self.headers or []
        return ConsumerRecord(
            self.kafka_topic,
            self.kafka_partition,
            self.kafka_offset,
            None if at is None else round(at.timestamp() * 1000),
            self.message_key,
            self.payload,
            tuple((str(name), None if value is None else base64.b64decode(value)) for name, value in headers),
        )


def keep(connection: sa.Connection, messages: Sequence[Unidentified], now: datetime) -> list[Unidentified]:
    """Keep messages, in the caller's transaction; returns those that were not kept before.

    Idempotent: messages that are kept stay as they are.
    """
    if not messages:
        return []
    statement = insert_into(connection, table).on_conflict_do_nothing().returning(table.c.message_id)
    rows = [_row(message, now) for message in messages]
    new = set(connection.execute(statement, rows).scalars())
    return [message for message in messages if message.position.message_id in new]


def find(
    connection: sa.Connection, *, open_only: bool = True, text: str | None = None, limit: int = 100, after: str = ""
) -> tuple[KeptMessage, ...]:
    """Return kept messages in the order of their ids.

    Args:
        connection: to read with.
        open_only: only those that are not identified yet.
        text: part of the id, the reason or the message, upper and lower case alike.
        limit: maximum number.
        after: only those whose id comes after this one.
    """
    query = sa.select(table).where(table.c.message_id > after).order_by(table.c.message_id).limit(limit)
    if open_only:
        query = query.where(table.c.identified_at.is_(None))
    if text:
        query = query.where(contains(text, table.c.message_id, table.c.reason, table.c.payload_text))
    return tuple(KeptMessage(**row) for row in connection.execute(query).mappings())


def get(connection: sa.Connection, message_id: str) -> KeptMessage | None:
    """Return one message by its id, or by the beginning of it if no other begins so."""
    query = sa.select(table).where(table.c.message_id.startswith(message_id, autoescape=True)).limit(2)
    found = [KeptMessage(**row) for row in connection.execute(query).mappings()]
    exact = [message for message in found if message.message_id == message_id]
    candidates = exact or found
    return candidates[0] if len(candidates) == 1 else None


def take_open(connection: sa.Connection, message_ids: Sequence[str]) -> tuple[KeptMessage, ...]:
    """Return those of the messages that are still open, locked until the transaction ends."""
    query = (
        sa.select(table)
        .where(table.c.message_id.in_(message_ids), table.c.identified_at.is_(None))
        .order_by(table.c.message_id)
        .with_for_update(skip_locked=True)
    )
    return tuple(KeptMessage(**row) for row in connection.execute(query).mappings())


def mark_identified(connection: sa.Connection, records: Mapping[str, tuple[CrmKind, str]], now: datetime) -> None:
    """Mark messages that became records: by id, the kind and the event_id of the record."""
    for message_id, (kind, event_id) in records.items():
        _mark(connection, message_id, now, identified_at=now, identified_as=kind.value, event_id=event_id)


def mark_retried(connection: sa.Connection, reasons: Mapping[str, tuple[str, str]], now: datetime) -> None:
    """Mark messages that are still not identified: by id, the present reason and its error class."""
    for message_id, (reason, error_class) in reasons.items():
        shown = storable(reason[:MAX_REASON_LENGTH])
        _mark(connection, message_id, now, reason=shown, error_class=error_class)


def _mark(connection: sa.Connection, message_id: str, now: datetime, **change: object) -> None:
    retried = {"retries": table.c.retries + 1, "retried_at": now}
    connection.execute(sa.update(table).where(table.c.message_id == message_id).values(change | retried))


def count_open(connection: sa.Connection) -> int:
    """Count the messages that are not identified."""
    query = sa.select(sa.func.count()).select_from(table).where(table.c.identified_at.is_(None))
    return int(connection.execute(query).scalar_one())


def _row(message: Unidentified, now: datetime) -> dict[str, Any]:
    return {
        "message_id": message.position.message_id,
        "kafka_topic": message.position.topic,
        "kafka_topic_id": message.position.topic_id,
        "kafka_partition": message.position.partition,
        "kafka_offset": message.position.offset,
        "kafka_timestamp": message.timestamp,
        "message_key": message.key,
        "headers": [[storable(name), _base64(value)] for name, value in message.headers],
        "payload": message.payload,
        "payload_text": text_of(message.payload),
        "size_bytes": len(message.payload or b""),
        "reason": storable(message.reason[:MAX_REASON_LENGTH]),
        "error_class": message.error_class,
        "received_at": now,
        "retries": 0,
        "trace_id": trace_id_in(message.headers),
    }


def text_of(payload: bytes | None) -> str | None:
    """Return a payload as text if it is UTF-8; NUL, which PostgreSQL cannot keep in a text, becomes U+FFFD."""
    try:
        return None if payload is None else storable(payload.decode())
    except UnicodeDecodeError:
        return None


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


logger = get_logger(__name__)


def log_of(settings: Settings) -> Path:
    """Return the path of the log: the configured one, next to LOG_FILE, or in the state folder."""
    own, log_file = settings.crm.unidentified_log, settings.logging.file
    if own is not None:
        return own
    return log_path(log_file) if log_file else settings.state_dir.absolute() / "logs" / "unidentified_messages.log"


def log_path(log_file: Path) -> Path:
    """Return the path of the log next to a LOG_FILE: `ingest.unidentified.log` for `ingest.log`."""
    return log_file.with_name(f"{log_file.stem}.unidentified{log_file.suffix or '.log'}")


def append_to_log(path: Path, messages: Sequence[Unidentified], now: datetime) -> None:
    """Write a line for each message. A log that cannot be written is reported in the other one, and stops nothing."""
    if not messages:
        return
    lines = b"".join(_line(message, now) for message in messages)
    try:
        make_private_folder(path.parent)
        _make_room(path, len(lines))
        # Runs write concurrently: the lines of one call stay together.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(lines)
    except OSError as error:
        logger.warning("unidentified_log_not_written", path=str(path), reason=str(error), messages=len(messages))


def _make_room(path: Path, size: int) -> None:
    """Begin another file where this one would grow too large; the oldest is removed."""
    if not path.exists() or path.stat().st_size + size <= MAX_LOG_BYTES:
        return
    with filelock.FileLock(f"{path}.lock"):
        # Another process may have been faster.
        if path.exists() and path.stat().st_size + size > MAX_LOG_BYTES:
            older = [path.with_name(f"{path.name}.{number}") for number in range(OLDER_LOGS, 0, -1)]
            for newer, target in zip([*older[1:], path], older, strict=True):
                if newer.exists():
                    newer.replace(target)


def _line(message: Unidentified, now: datetime) -> bytes:
    text = text_of(message.payload)
    fields = {
        "timestamp": now,
        "message_id": message.position.message_id,
        "topic": message.position.topic,
        "partition": message.position.partition,
        "offset": message.position.offset,
        "reason": message.reason,
        # Text where it is text, base64 otherwise.
        **({"message": text} if text is not None else {"message_base64": message.payload}),
    }
    return to_json(fields).encode() + b"\n"
