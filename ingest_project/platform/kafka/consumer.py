"""Bounded reads of a topic at a known position, by consumers that stay connected between reads.

The caller keeps the positions (a sensor's cursor) and gets new ones with the messages; nothing is remembered here that
matters. Partitions are assigned, never subscribed to: joining a group takes seconds, an assignment takes milliseconds.
A read that fails raises; an empty read means that the broker answered and that there is nothing.

A position outside the log is ordinary: retention removes what was not read in time, topics are deleted and created
again, an embedded broker starts empty. Reading goes on from the right end, and never silently.
"""

from __future__ import annotations

import atexit
import logging
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka.client import client_config, unavailable
from ingest_project.platform.kafka.offsets import LogBounds, Positions, TopicState, TopicStates
from ingest_project.platform.kafka.records import ConsumerRecord, received


@dataclass(frozen=True)
class StartingPoints:
    """Offset from which each partition is read, and one sentence for each one that is not where the last read ended."""

    offsets: Mapping[int, int]
    notices: list[str]


def starting_points(
    topic: str, saved: Positions | None, state: TopicState, first_read: Literal["earliest", "latest"]
) -> StartingPoints:
    """Decide where to begin.

    Args:
        topic: for the notices.
        saved: where the last read ended, or None before the first.
        state: the topic as it is now.
        first_read: which end of the log the very first read starts at. A partition that appears later is read from
            its beginning either way: all of it is new.
    """
    if saved is None:
        return StartingPoints(
            {p: bounds.start if first_read == "earliest" else bounds.end for p, bounds in state.bounds.items()}, []
        )
    if saved.topic_id and state.topic_id and saved.topic_id != state.topic_id:
        notice = f"{topic} was created again since it was last read; reading it from its beginning."
        return StartingPoints({p: bounds.start for p, bounds in state.bounds.items()}, [notice])
    notices = list(_lost_partitions(topic, saved, state))
    offsets = {}
    for partition, bounds in state.bounds.items():
        offsets[partition], notice_of_partition = _within(topic, partition, saved.next_offsets.get(partition), bounds)
        notices += notice_of_partition
    return StartingPoints(offsets, notices)


def fair_shares(waiting: Mapping[int, int], limit: int) -> dict[int, int]:
    """Divide a limit between partitions so that none starves and nothing of the limit is wasted.

    Args:
        waiting: messages waiting in each partition.
        limit: messages to hand out at most.

    Returns:
        the share of each partition that gets one. Where the limit does not divide evenly, chance decides who gets one
        more, so that over many reads every partition has its turn.
    """
    served = [partition for partition, count in waiting.items() if count > 0]
    random.shuffle(served)
    served = served[:limit]
    # The smallest go first: what they leave of an even share goes to the others.
    served.sort(key=lambda partition: min(waiting[partition], limit))
    shares: dict[int, int] = {}
    for position, partition in enumerate(served):
        shares[partition] = min(waiting[partition], limit // (len(served) - position))
        limit -= shares[partition]
    return shares


def _within(topic: str, partition: int, offset: int | None, bounds: LogBounds) -> tuple[int, list[str]]:
    if offset is None:
        return bounds.start, []
    if offset > bounds.end:
        notice = f"{topic}[{partition}] ends at offset {bounds.end}, before the saved position {offset}: "
        return bounds.start, [notice + "it was emptied or created again; reading it from its beginning."]
    if offset < bounds.start:
        notice = f"{topic}[{partition}] starts at offset {bounds.start}, after the saved position {offset}: "
        return bounds.start, [notice + f"{bounds.start - offset} messages were removed before they were read."]
    return offset, []


def _lost_partitions(topic: str, saved: Positions, state: TopicState) -> Iterator[str]:
    for partition in sorted(set(saved.next_offsets) - set(state.bounds)):
        yield f"{topic}[{partition}] no longer exists; its saved position is dropped."


# How long the broker holds back the answer to a fetch that finds nothing. The library's default, 500, also delays
# messages of other partitions that wait for the answer.
FETCH_WAIT_MS = 20
FETCH_AHEAD_KIB = 16 * 1024
# The library's default, 1000, is how long it stops fetching once that much has been fetched ahead.
FETCH_PAUSE_MS = 10
MOST_BYTES_AHEAD = 32 * 1024**2
MESSAGE_OVERHEAD_BYTES = 300
MESSAGES_PER_CALL = 10_000
# Once messages have come, a pause of this length ends the read: what is there is worth more than what is late.
STALL_SECONDS = 1.0

# The library's public names start with an underscore where the error is its own and not the broker's.
_END_OF_LOG = KafkaError._PARTITION_EOF  # noqa: SLF001
# The log changed while it was read (deleted, created again, cut by retention): the next read's look-up tells how.
_LOG_CHANGED = (
    KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
)


@dataclass(frozen=True)
class ReadBounds:
    """Bounds of one read.

    Args:
        max_messages: at most this many.
        max_bytes: keys and values, shared evenly by the partitions that are read; each of them may bring one message
            however large, or a large message could never be read.
        wait_seconds: how long a read of a topic with nothing waiting stays for a first message.
    """

    max_messages: int
    max_bytes: int
    wait_seconds: float


class TopicConsumer:
    """Reads one topic, one read at a time. Not safe to share between threads."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._goes_on_at: dict[int, int] | None = None
        self._forget_ahead()
        self._consumer = Consumer(
            {
                **client_config(settings),
                "group.id": settings.group_id,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                # A position outside the log must be noticed, not quietly replaced.
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "queued.max.messages.kbytes": FETCH_AHEAD_KIB,
                "fetch.queue.backoff.ms": FETCH_PAUSE_MS,
            }
        )

    def collect(self, start: Mapping[int, int], ends: Mapping[int, int], limits: ReadBounds) -> ReadBuffer:
        """Take what waits between `start` and `ends`, or where nothing does, wait for a first message.

        Raises:
            BrokerUnavailableError: messages are waiting and none could be fetched within the request time-out.
        """
        shares = fair_shares({p: ends[p] - offset for p, offset in start.items()}, limits.max_messages)
        if shares:
            intake = ReadBuffer(start, shares, limits, ends)
        else:
            intake = ReadBuffer(start, dict.fromkeys(start, limits.max_messages), limits)
        self._go_to(start)
        try:
            if shares:
                self._take_backlog(intake)
            else:
                self._take_first(intake, limits.wait_seconds)
        except KafkaException as error:
            self._rest()
            if not intake.messages:
                raise unavailable(self._settings, error) from error
        except BaseException:
            self._rest()
            raise
        if self._is_far_behind(intake, ends):
            self._goes_on_at = dict(intake.next_offsets)
        else:
            self._rest()
        return intake

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _go_to(self, start: Mapping[int, int]) -> None:
        if self._goes_on_at != start:
            self._forget_ahead()
            self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in start.items()])
        self._goes_on_at = None

    def _rest(self) -> None:
        self._goes_on_at = None
        self._forget_ahead()
        self._consumer.unassign()

    def _forget_ahead(self) -> None:
        self._ahead: list[Message] = []
        self._ahead_bytes = 0

    def _is_far_behind(self, intake: ReadBuffer, ends: Mapping[int, int]) -> bool:
        """Return whether the next read will want what is being fetched ahead, and it is not too much to keep."""
        return self._ahead_bytes <= MOST_BYTES_AHEAD and any(
            offset < ends[partition] for partition, offset in intake.next_offsets.items()
        )

    def _take_backlog(self, intake: ReadBuffer) -> None:
        patience = self._settings.request_timeout_seconds
        give_up_at = time.monotonic() + patience
        ahead = self._ahead
        self._forget_ahead()
        self._hand_over(ahead, intake)
        while intake.wanted and (left := give_up_at - time.monotonic()) > 0:
            timeout = min(left, STALL_SECONDS) if intake.messages else left
            if not self._take_arrived(intake, timeout) and intake.messages:
                return
        if intake.wanted and not intake.messages:
            raise unavailable(self._settings, f"messages wait on {self._topic}, and none came within {patience:g} s")

    def _take_first(self, intake: ReadBuffer, wait_seconds: float) -> None:
        give_up_at = time.monotonic() + wait_seconds
        while intake.wanted and not intake.messages and (left := give_up_at - time.monotonic()) > 0:
            self._take_arrived(intake, left)

    def _take_arrived(self, intake: ReadBuffer, timeout_seconds: float) -> bool:
        """Take everything that has arrived, waiting for the first thing if need be; whether anything came."""
        # Asking for many at once would wait until all of them are there.
        arrived = self._consumer.consume(1, timeout_seconds)
        if arrived:
            arrived += self._consumer.consume(min(MESSAGES_PER_CALL, intake.wanted), 0)
        self._hand_over(arrived, intake)
        return bool(arrived)

    def _hand_over(self, arrived: Iterable[Message], intake: ReadBuffer) -> None:
        for message in arrived:
            problem = message.error()
            if problem is None:
                taken = intake.take(message)
            elif problem.code() == _END_OF_LOG:
                taken = intake.reached_end(message.partition() or 0, message.offset() or 0)
            elif problem.code() in _LOG_CHANGED:
                taken = intake.finish(message.partition() or 0)
            elif problem.retriable():
                taken = True
            else:
                raise KafkaException(problem)
            if not taken:
                self._keep_for_next_read(message)

    def _keep_for_next_read(self, message: Message) -> None:
        # Past the bound messages are dropped, and with a gap in it the rest is of no use either: see _is_far_behind.
        self._ahead_bytes += len(message) + MESSAGE_OVERHEAD_BYTES
        if self._ahead_bytes <= MOST_BYTES_AHEAD:
            self._ahead.append(message)


class ReadBuffer:
    """Messages that one read has taken so far, without gaps in any partition.

    A partition is finished when it has had its share or has no more to give. What still comes from it is for the next
    read: the methods return whether they have dealt with what they were given.

    Args:
        start: the first offset to take, by partition.
        shares: messages each partition may bring.
        limits: of the whole read.
        ends: where each partition is known to end; None for a read that waits for what is yet to come.
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
        """Number of messages that this read may still take; 0 once every partition is finished."""
        return min(self._messages_left, sum(self._unfinished.values()))

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
        if share_left == 1 or (self._ends is not None and offset + 1 >= self._ends[partition]):
            self.finish(partition)
        return True

    def reached_end(self, partition: int, offset: int) -> bool:
        """Note that nothing more comes before an offset; it lies past the marks that transactions leave in the log."""
        if partition not in self._unfinished:
            return False
        self.next_offsets[partition] = max(offset, self.next_offsets[partition])
        if self._ends is not None:
            self.finish(partition)
        return True

    def finish(self, partition: int) -> bool:
        """Take no more from a partition."""
        self._unfinished.pop(partition, None)
        return True


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundedRead:
    """Result of one read.

    Args:
        messages: in order within each partition.
        positions: where the next read goes on; save them once the messages are safe.
        notices: one sentence for each thing a person should know: a topic that does not exist, a position that fell
            out of the log, messages that retention removed.
        remaining: messages that were there and were left for the next read.
    """

    messages: list[ConsumerRecord]
    positions: Positions
    notices: list[str]
    remaining: int


class TopicReader:
    """Reads topics for any number of threads, one consumer a topic, kept connected between reads.

    Every method raises BrokerUnavailableError where the broker does not answer within the request time-out.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._states = TopicStates(settings)
        self._slots: dict[str, _Slot] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def read(
        self, topic: str, positions: Positions | None, *, max_messages: int, max_bytes: int, wait_seconds: float
    ) -> BoundedRead:
        """Read on from a position.

        Returns at once with what is there; where nothing is, as soon as a first message arrives or after
        `wait_seconds`. A topic that does not exist is an empty read with a notice, and leaves the positions as they
        are. Reading the same positions again brings the same messages.

        Args:
            topic: to read.
            positions: where the last read ended; None for the first read, see AUTO_OFFSET_RESET.
            max_messages: brings at most this many, shared fairly by the partitions with messages waiting.
            max_bytes: brings at most about this much in keys and values, see `ReadBounds`.
            wait_seconds: how long to wait for a first message.
        """
        limits = ReadBounds(max_messages, max_bytes, wait_seconds)
        state = self._states.look_up(topic)
        if state is None:
            return BoundedRead([], positions or Positions("", {}), [f"Topic {topic} does not exist yet."], 0)
        begin = starting_points(topic, positions, state, self._settings.auto_offset_reset)
        with self._consumer(topic, state.topic_id) as consumer:
            intake = consumer.collect(begin.offsets, state.ends, limits)
        next_offsets = {**begin.offsets, **intake.next_offsets}
        if not intake.messages:
            # The broker may have gone away while nothing came. Silence is no answer; this is one.
            state_after = self._states.look_up(topic)
            state = replace(state_after, topic_id=state.topic_id) if state_after else state
        return BoundedRead(
            intake.messages, Positions(state.topic_id, next_offsets), begin.notices, _unread(state, next_offsets)
        )

    def commit(self, topic: str, positions: Positions) -> None:
        """Let the consumer group's offsets follow saved positions, for lag displays only.

        Best effort: a failure is logged and nothing depends on it. Setting the same offsets again changes nothing.
        """
        if not positions.next_offsets:
            return
        try:
            self._states.commit(topic, positions)
        except BrokerUnavailableError as error:
            _logger.warning("Offsets of %s were not committed for group %s: %s", topic, self._settings.group_id, error)

    def topic_id(self, topic: str) -> str:
        """Return the topic id, see `Positions`; empty where there is no such topic or the broker names none."""
        state = self._states.look_up(topic)
        return state.topic_id if state else ""

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Return the offset that each partition's next message will get; empty where there is no such topic."""
        state = self._states.look_up(topic)
        return state.ends if state else {}

    def lags(self, positions: Mapping[str, Positions | None]) -> dict[str, dict[int, int]]:
        """Count the messages that wait to be read.

        Args:
            positions: where each topic has been read to; None where it has not been read.

        Returns:
            by topic and partition; a topic that does not exist has no partitions.
        """
        return {topic: self._lag(topic, saved) for topic, saved in positions.items()}

    def close(self) -> None:
        """Disconnect. A later read connects again."""
        with self._lock:
            slots, self._slots = self._slots, {}
        for slot in slots.values():
            with slot.lock:
                slot.disconnect()

    def _lag(self, topic: str, saved: Positions | None) -> dict[int, int]:
        state = self._states.look_up(topic)
        if state is None:
            return {}
        begin = starting_points(topic, saved, state, self._settings.auto_offset_reset)
        return {partition: state.bounds[partition].end - offset for partition, offset in begin.offsets.items()}

    @contextmanager
    def _consumer(self, topic: str, topic_id: str) -> Iterator[TopicConsumer]:
        with self._lock:
            slot = self._slots.setdefault(topic, _Slot())
        with slot.lock:
            yield slot.connect(self._settings, topic, topic_id)


class _Slot:
    """Holder of one topic's consumer, locked by one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._consumer: TopicConsumer | None = None
        self._topic_id = ""

    def connect(self, settings: KafkaSettings, topic: str, topic_id: str) -> TopicConsumer:
        """Return the connected consumer, a new one for each topic id: a consumer remembers it."""
        if self._consumer is not None and self._topic_id != topic_id:
            self.disconnect()
        if self._consumer is None:
            self._consumer = TopicConsumer(settings, topic)
            self._topic_id = topic_id
        return self._consumer

    def disconnect(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def _unread(state: TopicState, next_offsets: Mapping[int, int]) -> int:
    return sum(max(0, bounds.end - next_offsets.get(partition, 0)) for partition, bounds in state.bounds.items())
