"""Consume one topic in bounded reads over a connection that stays open between them.

Partitions are assigned instead of subscribed to: joining a group takes seconds, an assignment takes milliseconds.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from operator import lt
from typing import Any

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition

from ingest_project.contracts import trace_id_in
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka import PresentPassword, client_config, unavailable
from ingest_project.platform.kafka.offsets import ABSENT_TOPIC_CODES, fair_shares

_logger = logging.getLogger(__name__)
_messages = get_logger(__name__)
# Of Kafka: 2011-01-01.
FIRST_RELEASE_MS = 1_293_840_000_000
Headers = tuple[tuple[str, bytes | None], ...]


class ConsumerRecord(msgspec.Struct, frozen=True, gc=False):
    """A message and its position.

    Args:
        topic: its topic.
        partition: its partition.
        offset: its position in the partition.
        timestamp_ms: time of writing in milliseconds since 1970; None if the broker has none.
        key: key as sent.
        value: value as sent; None is a tombstone.
        headers: headers in the order of sending; a name may occur more than once.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def timestamp(self) -> datetime | None:
        """When it was written, UTC; None where the broker states none, or one that no message can have.

        Senders state their own time: one in seconds would be in 1970, one in microseconds outside the calendar.
        """
        if self.timestamp_ms is None or self.timestamp_ms < FIRST_RELEASE_MS:
            return None
        try:
            return datetime.fromtimestamp(self.timestamp_ms / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            return None

    def header(self, name: str) -> bytes | None:
        """Return the last value of a header, which takes precedence; None without one."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


def received(message: Message) -> ConsumerRecord:
    """Convert a message of the client library."""
    kind, timestamp_ms = message.timestamp()
    # The stubs also cover messages to send, whose fields may be unset; these messages come from a broker.
    record: Any = message
    return ConsumerRecord(
        record.topic(),
        record.partition(),
        record.offset(),
        None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms,
        record.key(),
        record.value(),
        _headers(record),
    )


def _headers(message: Any) -> Headers:  # noqa: ANN401 - as above
    """Return the headers in order; none if a name is not UTF-8, which the client library cannot decode."""
    try:
        return tuple(message.headers() or ())
    except (UnicodeDecodeError, SystemError) as error:
        position = f"{message.topic()}[{message.partition()}]@{message.offset()}"
        _logger.warning("Headers of %s cannot be read and are left out: %s", position, error)
        return ()


def received_together(messages: Sequence[Message]) -> list[ConsumerRecord]:
    """Convert messages of one partition, none of them an error, column by column, which is faster than one by one."""
    # As for `received`: these come from a broker.
    kind: Any = Message
    try:
        has_headers = any(map(kind.headers, messages))
    except (UnicodeDecodeError, SystemError):
        has_headers = True
    if has_headers:
        return list(map(received, messages))
    times = [None if how == TIMESTAMP_NOT_AVAILABLE else ms for how, ms in map(kind.timestamp, messages)]
    topics, partitions, offsets = (map(read, messages) for read in (kind.topic, kind.partition, kind.offset))
    keys, values = map(kind.key, messages), map(kind.value, messages)
    return list(map(ConsumerRecord, topics, partitions, offsets, times, keys, values, repeat(())))


def log_each(messages: Sequence[ConsumerRecord]) -> None:
    """Log each message that was read at level DEBUG: its position, size and trace, but not its content."""
    if not _logger.isEnabledFor(logging.DEBUG):
        return
    for message in messages:
        _messages.debug(
            "message_read",
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            size_bytes=len(message.value or b""),
            trace_id=trace_id_in(message.headers),
        )


# How long the broker delays the response to an empty fetch. The library's default, 500, also delays messages of other
# partitions that wait for the response.
FETCH_WAIT_MS = 20
FETCH_AHEAD_KIB = 16 * 1024
# Pause of fetching once FETCH_AHEAD_KIB have been prefetched; the library's default is 1000.
FETCH_PAUSE_MS = 10
MAX_BYTES_AHEAD = 32 * 1024**2
MESSAGE_OVERHEAD_BYTES = 300
MESSAGES_PER_CALL = 10_000
# Once messages have arrived, a pause of this length ends the read, so that they are not delayed by late ones.
STALL_SECONDS = 1.0

# The library's public names start with an underscore for its own errors, unlike the broker's.
_END_OF_LOG = KafkaError._PARTITION_EOF  # noqa: SLF001
# The log changed during the read (deleted, created again, cut by retention): the next read looks up how.
_LOG_CHANGED = (
    KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    KafkaError.OFFSET_OUT_OF_RANGE,
    *ABSENT_TOPIC_CODES,
    KafkaError.UNKNOWN_TOPIC_ID,
)


@dataclass(frozen=True)
class ReadBounds:
    """Bounds of one read.

    Args:
        max_messages: maximum number of messages.
        max_bytes: maximum size of keys and values, shared evenly by the partitions; each partition may deliver one
            message of any size, so that a large message can always be read.
        wait_seconds: how long to wait for a first message if none is waiting.
    """

    max_messages: int
    max_bytes: int
    wait_seconds: float


class TopicConsumer:
    """Reads one topic, one read at a time. Not safe to share between threads."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._resumes_at: dict[int, int] | None = None
        self._clear_ahead()
        self._consumer = Consumer(
            {
                **client_config(settings),
                "group.id": settings.group_id,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                # A position outside the log must raise an error instead of being silently replaced.
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "queued.max.messages.kbytes": FETCH_AHEAD_KIB,
                "fetch.queue.backoff.ms": FETCH_PAUSE_MS,
            }
        )
        self._password = PresentPassword(settings)

    def collect(self, start: Mapping[int, int], ends: Mapping[int, int], limits: ReadBounds) -> ReadBuffer:
        """Read the messages between `start` and `ends`; if there are none, wait for a first one.

        Raises:
            BrokerUnavailableError: messages are waiting and none could be fetched within the request time-out.
        """
        self._password.give(self._consumer)
        shares = fair_shares({p: ends[p] - offset for p, offset in start.items()}, limits.max_messages)
        if shares:
            buffer = ReadBuffer(start, shares, limits, ends)
        else:
            buffer = ReadBuffer(start, dict.fromkeys(start, limits.max_messages), limits)
        self._seek(start)
        try:
            if shares:
                self._read_backlog(buffer)
            else:
                self._read_first(buffer, limits.wait_seconds)
        except KafkaException as error:
            self._reset()
            if not buffer.messages:
                raise unavailable(self._settings, error, f"{self._topic}: ") from error
        except BaseException:
            self._reset()
            raise
        if self._is_far_behind(buffer, ends):
            self._resumes_at = dict(buffer.next_offsets)
        else:
            self._reset()
        return buffer

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _seek(self, start: Mapping[int, int]) -> None:
        if self._resumes_at != start:
            self._clear_ahead()
            self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in start.items()])
        self._resumes_at = None

    def _reset(self) -> None:
        self._resumes_at = None
        self._clear_ahead()
        self._consumer.unassign()

    def _clear_ahead(self) -> None:
        self._ahead: list[Message] = []
        self._ahead_bytes = 0

    def _is_far_behind(self, buffer: ReadBuffer, ends: Mapping[int, int]) -> bool:
        """Return True if the next read needs the prefetched messages, and they are not too large to keep."""
        return self._ahead_bytes <= MAX_BYTES_AHEAD and any(
            offset < ends[partition] for partition, offset in buffer.next_offsets.items()
        )

    def _read_backlog(self, buffer: ReadBuffer) -> None:
        timeout_seconds = self._settings.request_timeout_seconds
        give_up_at = time.monotonic() + timeout_seconds
        ahead = self._ahead
        self._clear_ahead()
        self._buffer_arrived(ahead, buffer)
        while buffer.wanted and (left := give_up_at - time.monotonic()) > 0:
            timeout = min(left, STALL_SECONDS) if buffer.messages else left
            if not self._read_arrived(buffer, timeout) and buffer.messages:
                return
        if buffer.wanted and not buffer.messages:
            raise unavailable(
                self._settings, f"messages wait on {self._topic}, and none came within {timeout_seconds:g} s"
            )

    def _read_first(self, buffer: ReadBuffer, wait_seconds: float) -> None:
        give_up_at = time.monotonic() + wait_seconds
        while buffer.wanted and not buffer.messages and (left := give_up_at - time.monotonic()) > 0:
            self._read_arrived(buffer, left)

    def _read_arrived(self, buffer: ReadBuffer, timeout_seconds: float) -> bool:
        """Read everything that has arrived, waiting for a first message if needed; return True if anything arrived."""
        # A request for many messages would wait until all of them have arrived.
        arrived = self._consumer.consume(1, timeout_seconds)
        if arrived:
            arrived += self._consumer.consume(min(MESSAGES_PER_CALL, buffer.wanted), 0)
        self._buffer_arrived(arrived, buffer)
        return bool(arrived)

    def _buffer_arrived(self, arrived: Sequence[Message], buffer: ReadBuffer) -> None:
        for message in arrived[buffer.take_first(arrived) :]:
            problem = message.error()
            if problem is None:
                taken = buffer.take(message)
            elif problem.code() == _END_OF_LOG:
                taken = buffer.reached_end(message.partition() or 0, message.offset() or 0)
            elif problem.code() in _LOG_CHANGED:
                taken = buffer.finish(message.partition() or 0)
            elif problem.retriable():
                taken = True
            else:
                raise KafkaException(problem)
            if not taken:
                self._keep_for_next_read(message)

    def _keep_for_next_read(self, message: Message) -> None:
        # Messages beyond the bound are dropped, and a gap makes the kept ones useless too: see _is_far_behind.
        self._ahead_bytes += len(message) + MESSAGE_OVERHEAD_BYTES
        if self._ahead_bytes <= MAX_BYTES_AHEAD:
            self._ahead.append(message)


class ReadBuffer:
    """Messages that one read has taken so far, without gaps in any partition.

    A partition is finished when its share is used up or it has no more messages. Later messages from it belong to the
    next read: the methods return False for them.

    Args:
        start: first offset to take, by partition.
        shares: maximum number of messages, by partition.
        limits: limits of the whole read.
        ends: known end of each partition; None for a read that waits for new messages.
    """

    def __init__(
        self,
        start: Mapping[int, int],
        shares: Mapping[int, int],
        limits: ReadBounds,
        ends: Mapping[int, int] | None = None,
    ) -> None:
        self.messages: list[ConsumerRecord] = []
        self.next_offsets = dict(start)
        self._start = start
        self._ends = ends
        self._unfinished = dict(shares)
        self._messages_left = limits.max_messages
        self._bytes_left = dict.fromkeys(shares, limits.max_bytes // max(1, len(shares)))

    @property
    def wanted(self) -> int:
        """Return the number of messages that this read may still take; 0 once every partition is finished."""
        return min(self._messages_left, sum(self._unfinished.values()))

    def take_first(self, arrived: Sequence[Message]) -> int:
        """Keep as many of the first messages as one bulk conversion can take; return their number, 0 in case of doubt.

        Leaves the same state as calling `take` for each of them.
        """
        kind: Any = Message
        problems = list(map(kind.error, arrived))
        if any(problems):
            arrived = arrived[: next(index for index, problem in enumerate(problems) if problem is not None)]
        partition = next(iter(self._unfinished), None)
        if not arrived or partition is None or set(map(kind.partition, arrived)) != {partition}:
            return 0
        offsets = list(map(kind.offset, arrived))
        if offsets[0] < self.next_offsets[partition] or not all(map(lt, offsets, offsets[1:])):
            return 0
        count = min(len(arrived), self._unfinished[partition], self._messages_left)
        if self._ends is not None:
            # The message at or beyond the last known offset is the last one to take.
            count = min(count, bisect_left(offsets, self._ends[partition] - 1) + 1)
        arrived = arrived[:count]
        size_bytes = sum(map(len, arrived)) + sum(map(len, filter(None, map(kind.key, arrived))))
        if not count or size_bytes > self._bytes_left[partition]:
            return 0
        self.messages += received_together(arrived)
        self.next_offsets[partition] = offsets[count - 1] + 1
        self._bytes_left[partition] -= size_bytes
        self._unfinished[partition] -= count
        self._messages_left -= count
        if not self._unfinished[partition] or self._is_at_end(partition):
            self.finish(partition)
        return count

    def take(self, arrived: Message) -> bool:
        """Keep a message, unless its partition is finished."""
        share_left = self._unfinished.get(arrived.partition() or 0)
        if share_left is None or not self._messages_left:
            return False
        message = received(arrived)
        partition, offset = message.partition, message.offset
        if offset < self.next_offsets[partition]:
            return True
        bytes_left = self._bytes_left[partition] - len(message.value or b"") - len(message.key or b"")
        if bytes_left < 0 and self.next_offsets[partition] > self._start[partition]:
            self.finish(partition)
            return False
        self.messages.append(message)
        self.next_offsets[partition] = offset + 1
        self._bytes_left[partition] = bytes_left
        self._unfinished[partition] = share_left - 1
        self._messages_left -= 1
        if share_left == 1 or self._is_at_end(partition):
            self.finish(partition)
        return True

    def reached_end(self, partition: int, offset: int) -> bool:
        """Record that the log ends at an offset, which may follow transaction markers."""
        if partition not in self._unfinished:
            return False
        self.next_offsets[partition] = max(offset, self.next_offsets[partition])
        if self._ends is not None:
            self.finish(partition)
        return True

    def finish(self, partition: int) -> bool:
        """Stop reading a partition."""
        self._unfinished.pop(partition, None)
        return True

    def _is_at_end(self, partition: int) -> bool:
        return self._ends is not None and self.next_offsets[partition] >= self._ends[partition]
