"""Dead letters: publish a message that cannot be processed, unchanged and with the reason; list and read them.

A dead letter has the original's key, value and headers, so that a replay is exact. Further headers describe the error:

    dlq.original-topic        dlq.original-partition      dlq.original-offset     dlq.original-timestamp
    dlq.error-class           dlq.reason                  dlq.attempt             dlq.trace-id (where known)
    dlq.first-failed-at       dlq.last-failed-at

All are UTF-8 text; times are ISO 8601 in UTC, with milliseconds.

Offsets that an operator skips are dead-lettered without being decoded. Only the sensor moves its saved cursor, which
owns the positions: a tick that reads a message listed in `skipped_offsets` dead-letters it and continues, whether it
runs while the list is written or an hour later.
"""

from __future__ import annotations

import json
import re
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice, takewhile

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.contracts.files import SECRET_NAMES
from ingest_project.core.items import as_utc
from ingest_project.platform.database import fetch, writing
from ingest_project.platform.database.sql import UtcTime, insert_missing, metadata
from ingest_project.platform.http import redacted_url
from ingest_project.platform.items import Position
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.reader import Backlog, OpenRanges, RangeReader

HEADER_PREFIX = "dlq."
MAX_REASON_BYTES = 2_048
MAX_HEADER_BYTES = 512
TRACE_HEADER = f"{HEADER_PREFIX}trace-id"
# Number of the newest letters of one topic that a search by id examines.
MAX_EXAMINED = 5_000
# The topic id is part of the key, because a recreated topic has other messages at these offsets.
skipped_offsets = sa.Table(
    "skipped_offsets",
    metadata,
    Col("topic", sa.Text, primary_key=True),
    Col("topic_id", sa.Text, primary_key=True),
    Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    Col("first_offset", sa.BigInteger, primary_key=True, autoincrement=False),
    # Offset of the first message that is not skipped.
    Col("end_offset", sa.BigInteger, nullable=False),
    Col("reason", sa.Text, nullable=False),
    Col("asked_by", sa.Text, nullable=False),
    Col("asked_at", UtcTime, nullable=False),
)


def dead_letter(  # noqa: PLR0913 - one argument for each header of the contract
    message: ConsumerRecord,
    *,
    error_class: str,
    reason: str,
    first_failed_at: datetime,
    last_failed_at: datetime,
    topic_id: str,
    attempt: int = 1,
    trace_id: str | None = None,
) -> tuple[str, ProducerRecord]:
    """Return the dead letter of one message, ready for `publish_once`.

    Args:
        message: original message.
        error_class: name of the error, e.g. `UnreadableMessageError`.
        reason: description of the error for people; cut at 2 KiB.
        first_failed_at: time of the first failure, UTC-aware.
        last_failed_at: time of the last failure, UTC-aware.
        topic_id: id of the original topic, see `Positions`.
        attempt: number of attempts.
        trace_id: trace id of the message, if it has one.

    Returns:
        an id, which is the same for the same position on the same topic, and the dead letter.
    """
    facts = {
        "original-topic": message.topic,
        "original-partition": str(message.partition),
        "original-offset": str(message.offset),
        "original-timestamp": _iso(message.timestamp) if message.timestamp else "",
        "error-class": error_class,
        "reason": reason,
        "attempt": str(attempt),
        "trace-id": trace_id or "",
        "first-failed-at": _iso(first_failed_at),
        "last-failed-at": _iso(last_failed_at),
    }
    headers = tuple(
        (HEADER_PREFIX + name, _bounded(text, MAX_REASON_BYTES if name == "reason" else MAX_HEADER_BYTES))
        for name, text in facts.items()
        if text
    )
    message_id = f"{message_id_prefix(message.topic, topic_id, message.partition)}{message.offset}"
    return message_id, ProducerRecord(message.value, message.key, (*message.headers, *headers))


def message_id_prefix(topic: str, topic_id: str, partition: int) -> str:
    """Return the common prefix of the ids of all dead letters of a partition; the offset follows."""
    return f"dlq:{topic}:{topic_id}:{partition}:"


def _bounded(text: str, max_bytes: int) -> bytes:
    """Encode as UTF-8, cut to at most `max_bytes` between characters."""
    encoded = text.encode("utf-8", "replace")
    return encoded if len(encoded) <= max_bytes else encoded[:max_bytes].decode("utf-8", "ignore").encode()


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


# Topics are read backwards in parts of this size: they may hold millions of letters, of which the newest are needed.
OFFSETS_AT_A_TIME = 500


MAX_BYTES_AT_A_TIME = 32 * 1024**2


BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
BEGINNING_CHARACTERS = 60
# Secrets are searched beyond the end of the shown part, so that a secret cut off there is found as well.
LONGEST_SECRET_BYTES = 8_192
_ADDRESS = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]{0,15}:(?:\\?/){2}[^\s"'<>]*""")
_NAMED_SECRET = re.compile(rf'("(?:{"|".join(SECRET_NAMES)})"\s*:\s*")(?:[^"\\]|\\.)*', re.IGNORECASE | re.DOTALL)


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter and the values of its headers; None for a missing header.

    Args:
        place: location of the dead letter, `topic/partition/offset`.
        original_location: location of the original message, in the same form.
        failed_at: time of the last failure; if unknown, time of the dead letter.
        key: key as text, see `shown_text`.
        size_bytes: size of its value.
        begins: beginning of its value as text, see `shown_text`; None for a tombstone.
        value: unchanged bytes of the value; only if a single letter was requested.
    """

    place: str
    original_location: str | None
    failed_at: datetime | None
    error_class: str | None
    reason: str | None
    attempt: str | None
    trace_id: str | None
    key: str | None
    size_bytes: int
    begins: str | None
    value: bytes | None = None


def newest_letters(
    reader: RangeReader, topic: str, limit: int, wanted: Callable[[ConsumerRecord], bool], since: datetime = BEGINNING
) -> Iterator[tuple[ConsumerRecord, str]]:
    """Yield the newest letters of each partition of a topic, each with the topic's id; none if there is no topic.

    Args:
        reader: reader of the cluster.
        topic: dead-letter topic.
        limit: maximum number of letters of each partition.
        wanted: selects letters.
        since: stop at the first letter, going backwards, that was written earlier.

    Raises:
        BrokerUnavailableError: the broker does not answer.
    """
    backlog = _everything(reader, topic)
    if backlog is None:
        return
    for partition in sorted(backlog.ends):
        recent = takewhile(
            lambda one: (one.timestamp or since) >= since, _newest_first(reader, topic, backlog, partition)
        )
        letters = filter(wanted, recent)
        yield from ((letter, backlog.topic_id) for letter in islice(letters, limit))


def letters_naming(
    reader: RangeReader, topic: str, ids: Sequence[str], context: str | None, seconds: float
) -> tuple[list[DeadLetter], int]:
    """Find the newest letters of a topic that contain an id in their trace, key, headers or value.

    Args:
        reader: reader of the cluster.
        topic: dead-letter topic; a missing one has no letters.
        ids: all forms of the id.
        context: prefix of the trace's `traceparent`, if the id is a trace id.
        seconds: start no further read after this time.

    Returns:
        the letters, and the number of older ones that were not examined.

    Raises:
        BrokerUnavailableError: the broker does not answer.
    """
    give_up_at = time.monotonic() + seconds
    backlog = _everything(reader, topic)
    if backlog is None:
        return [], 0
    pattern, found, examined = _pattern_of(ids, context), list[DeadLetter](), 0
    for partition in sorted(backlog.ends):
        newest = islice(_newest_first(reader, topic, backlog, partition), MAX_EXAMINED // len(backlog.ends))
        for letter in takewhile(lambda _: time.monotonic() < give_up_at, newest):
            examined += 1
            if any(pattern.search(text) for text in _texts_with_ids(letter)):
                found.append(letter_of(letter))
    kept = sum(end - backlog.log_starts[partition] for partition, end in backlog.ends.items())
    return found, kept - examined


def _pattern_of(ids: Sequence[str], context: str | None) -> re.Pattern[bytes]:
    """Return a pattern for one of these ids as a whole word, also as escaped in JSON, or for a `traceparent` prefix."""
    forms = {form for one in ids for form in (one, json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1])}
    either = b"|".join(re.escape(form.encode("utf-8", "replace")) for form in sorted(forms))
    beginning = b"|" + re.escape(context.encode()) if context else b""
    return re.compile(rb"(?<![\w-])(?:(?:" + either + rb")(?![\w-])" + beginning + b")")


def _texts_with_ids(letter: ConsumerRecord) -> Iterator[bytes]:
    yield from (text for text in (letter.key, letter.value) if text)
    # The other headers of a dead letter (position, reason) contain words that many letters share.
    own = (value for name, value in letter.headers if not name.startswith(HEADER_PREFIX) or name == TRACE_HEADER)
    yield from filter(None, own)


def letters_in_order(
    reader: RangeReader, topic: str, partition: int | None = None, first: int | None = None, end: int | None = None
) -> Iterator[tuple[str, list[ConsumerRecord]]]:
    """Yield the letters of a topic in chunks, the oldest of each partition first, with the topic's id.

    Args:
        reader: reader of the cluster.
        topic: dead-letter topic; a missing one has no letters.
        partition: read only this partition.
        first: first offset to read.
        end: offset before which to stop.

    Raises:
        BrokerUnavailableError: the broker does not answer.
    """
    backlog = _everything(reader, topic)
    if backlog is None:
        return
    for one in sorted(backlog.ends) if partition is None else {partition} & backlog.ends.keys():
        start = max(backlog.log_starts[one], first or 0)
        stop = backlog.ends[one] if end is None else min(end, backlog.ends[one])
        for at in range(start, stop, OFFSETS_AT_A_TIME):
            until = min(at + OFFSETS_AT_A_TIME, stop)
            yield backlog.topic_id, _between(reader, topic, backlog, one, at, until)


def letters_at(reader: RangeReader, topic: str, places: Iterable[Position]) -> Iterator[tuple[ConsumerRecord, str]]:
    """Yield those letters at the given positions that still exist, each with the topic's id.

    Raises:
        BrokerUnavailableError: the broker does not answer.
    """
    by_partition: dict[int, set[int]] = defaultdict(set)
    for place in places:
        if place.topic == topic:
            by_partition[place.partition].add(place.offset)
    for partition, wanted in sorted(by_partition.items()):
        left = sorted(wanted)
        while left:
            first = left[0]
            end = left[bisect_left(left, first + OFFSETS_AT_A_TIME) - 1] + 1
            for topic_id, part in letters_in_order(reader, topic, partition, first, end):
                yield from ((letter, topic_id) for letter in part if letter.offset in wanted)
            left = left[bisect_left(left, end) :]


def letter_of(received: ConsumerRecord, *, with_value: bool = False) -> DeadLetter:
    """Return the dead letter in a message of a dead-letter topic.

    Args:
        received: the message.
        with_value: include its value, which may be large.
    """
    texts = {name: _text_header(received, name) for name in ("error-class", "reason", "attempt", "trace-id")}
    original = [_text_header(received, f"original-{part}") for part in ("topic", "partition", "offset")]
    return DeadLetter(
        place=f"{received.topic}/{received.partition}/{received.offset}",
        original_location="/".join(map(str, original)) if None not in original else None,
        failed_at=_moment(_text_header(received, "last-failed-at")) or received.timestamp,
        error_class=texts["error-class"],
        reason=texts["reason"],
        attempt=texts["attempt"],
        trace_id=texts["trace-id"],
        key=shown_text(received.key),
        size_bytes=len(received.value or b""),
        begins=shown_text(received.value, BEGINNING_CHARACTERS),
        value=received.value if with_value else None,
    )


def as_text(content: bytes | None) -> str | None:
    """Decode any bytes as UTF-8, with an escape for each invalid byte."""
    return None if content is None else content.decode("utf-8", "backslashreplace")


def shown_text(content: bytes | None, length: int = MAX_HEADER_BYTES) -> str | None:
    """Return the beginning of any bytes for people: addresses without user and query, and no value of a secret's name.

    Args:
        content: of a letter.
        length: largest number of characters.
    """
    if content is None:
        return None
    text = _NAMED_SECRET.sub(r"\1…", as_text(content[: 4 * length + LONGEST_SECRET_BYTES]) or "")
    return _ADDRESS.sub(lambda found: redacted_url(found[0].replace("\\/", "/")), text)[:length]


class SkippedOffsets(msgspec.Struct, frozen=True, kw_only=True):
    """A range of offsets of one partition to skip.

    Args:
        topic_id: id of the topic, see `Positions`; empty if the broker has no ids.
        end_offset: offset of the first message that is not skipped.
        reason: the operator's reason.
    """

    topic: str
    topic_id: str
    partition: int
    first_offset: int
    end_offset: int
    reason: str
    asked_by: str
    asked_at: datetime

    def covers(self, partition: int, offset: int) -> bool:
        """Return True if a message is in the range."""
        return partition == self.partition and self.first_offset <= offset < self.end_offset


class SkippedOffsetStore:
    """Reads and writes the table `skipped_offsets`. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, offsets: SkippedOffsets) -> bool:
        """Store a range; of two that start at the same offset, keep the longer one.

        Returns:
            True if anything changed.
        """
        row = msgspec.structs.asdict(offsets)
        same = (
            (skipped_offsets.c.topic == offsets.topic)
            & (skipped_offsets.c.topic_id == offsets.topic_id)
            & (skipped_offsets.c.partition == offsets.partition)
            & (skipped_offsets.c.first_offset == offsets.first_offset)
        )
        longer = sa.update(skipped_offsets).where(same, skipped_offsets.c.end_offset < offsets.end_offset).values(row)
        with writing(self._engine) as connection:
            added = insert_missing(connection, skipped_offsets, [row], skipped_offsets.c.topic)
            return bool(added) or bool(connection.execute(longer).rowcount)

    def of(self, topic: str, topic_id: str) -> tuple[SkippedOffsets, ...]:
        """Return the ranges of a topic, without those of an earlier topic of the same name."""
        is_this_topic = skipped_offsets.c.topic_id.in_([topic_id, ""]) if topic_id else sa.true()
        query = sa.select(skipped_offsets).where(skipped_offsets.c.topic == topic, is_this_topic)
        return tuple(SkippedOffsets(**row) for row in fetch(self._engine, query).mappings())

    def list(self, limit: int = 100) -> tuple[SkippedOffsets, ...]:
        """Return every range that was ever stored, the newest first."""
        query = sa.select(skipped_offsets).order_by(skipped_offsets.c.asked_at.desc()).limit(limit)
        return tuple(SkippedOffsets(**row) for row in fetch(self._engine, query).mappings())


def _everything(reader: RangeReader, topic: str) -> Backlog | None:
    return reader.backlog(topic, Positions("", {}), 0)


def _newest_first(reader: RangeReader, topic: str, backlog: Backlog, partition: int) -> Iterator[ConsumerRecord]:
    start, end = backlog.log_starts[partition], backlog.ends[partition]
    with reader.opened() as ranges:
        while end > start:
            first = max(start, end - OFFSETS_AT_A_TIME)
            yield from reversed(_between(ranges, topic, backlog, partition, first, end))
            end = first


def _between(  # noqa: PLR0913, PLR0917 - a range is four facts
    reader: RangeReader | OpenRanges, topic: str, backlog: Backlog, partition: int, first: int, end: int
) -> list[ConsumerRecord]:
    chunks = reader.read(topic, backlog.topic_id, partition, first, end, OFFSETS_AT_A_TIME, MAX_BYTES_AT_A_TIME)
    return [message for chunk in chunks for message in chunk.messages]


def _text_header(received: ConsumerRecord, name: str) -> str | None:
    return as_text(received.header(HEADER_PREFIX + name))


def _moment(text: str | None) -> datetime | None:
    try:
        return as_utc(datetime.fromisoformat(text or ""))
    except (ValueError, OverflowError):
        return None
