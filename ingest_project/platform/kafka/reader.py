"""Read topics from saved positions, read exact ranges of offsets repeatably, or only detect new messages.

The caller stores the positions (in a sensor's cursor) and gets new ones with the messages. A tick that plans ranges
reads no messages; the runs that read them later are independent of each other. A failed read raises; an empty result
means that the broker answered and has no messages.

A position outside the log is normal: retention removes unread messages, topics are deleted and created again, an
embedded broker starts empty. Reading continues from the appropriate end of the log, and lost messages are always
reported.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from confluent_kafka import Consumer, KafkaException, TopicPartition

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka import PresentPassword, client_config
from ingest_project.platform.kafka.consumer import ConsumerRecord, ReadBounds, TopicConsumer
from ingest_project.platform.kafka.offsets import Positions, TopicState, TopicStates, starting_points

POLL_SECONDS = 0.1
# Fetches in a row from which nothing came because the log changed since it was looked up.
MAX_TRIES = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backlog:
    """Unread messages of a topic.

    Args:
        topic_id: id of the topic, see `Positions`.
        starts: first unread offset, by partition.
        log_starts: oldest offset that is still in the log, by partition.
        ends: offset that the next message will get, by partition.
        notices: one sentence for each event that a person should know.
    """

    topic_id: str
    starts: Mapping[int, int]
    log_starts: Mapping[int, int]
    ends: Mapping[int, int]
    notices: list[str]

    @property
    def waiting(self) -> int:
        """Return the number of offsets between the positions and the ends."""
        return sum(max(0, self.ends[partition] - start) for partition, start in self.starts.items())


@dataclass(frozen=True)
class Chunk:
    """Part of a range, in offset order.

    Args:
        messages: messages that still exist.
        next_offset: first offset of the next chunk.
        lost: number of its offsets that are permanently gone.
    """

    messages: list[ConsumerRecord]
    next_offset: int
    lost: int = 0


class RangeReader:
    """Inspects topics and reads exact ranges. Every method raises BrokerUnavailableError if the broker is not there."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._states = TopicStates(settings)

    def backlog(self, topic: str, saved: Positions | None, wait_seconds: float) -> Backlog | None:
        """Return the unread messages beyond a position; None if the topic does not exist.

        Args:
            topic: topic to inspect.
            saved: saved positions; None before the first read, see AUTO_OFFSET_RESET.
            wait_seconds: longest wait for a first message if none is there.
        """
        give_up_at = time.monotonic() + wait_seconds
        while True:
            state = self._states.look_up(topic)
            found = None if state is None else self._beyond(topic, saved, state)
            if found is not None and found.waiting:
                return found
            if time.monotonic() + POLL_SECONDS > give_up_at:
                return found
            if found is not None and saved is None:
                # With AUTO_OFFSET_RESET=latest, messages that arrive during the wait must not move the first position.
                saved = Positions(found.topic_id, found.starts)
            time.sleep(POLL_SECONDS)

    @contextmanager
    def opened(self) -> Iterator[OpenRanges]:
        """Open connections for several ranges; they prefetch messages while the caller processes the present ones."""
        ranges = OpenRanges(self._settings, self._states)
        try:
            yield ranges
        finally:
            ranges.close()

    def read(  # noqa: PLR0913, PLR0917 - a range is four facts
        self, topic: str, topic_id: str, partition: int, first: int, end: int, max_messages: int, max_bytes: int
    ) -> Iterator[Chunk]:
        """Yield the messages of one range, see `OpenRanges.read`."""
        with self.opened() as ranges:
            yield from ranges.read(topic, topic_id, partition, first, end, max_messages, max_bytes)

    def message(self, topic: str, partition: int, offset: int, topic_id: str = "") -> ConsumerRecord | None:
        """Return one message; None if there is none (any more) at the offset.

        Args:
            topic: topic of the message.
            partition: partition of the message.
            offset: offset of the message.
            topic_id: id of the intended topic; empty for the current topic of that name.
        """
        state = self._states.look_up(topic)
        bounds = state.bounds.get(partition) if state else None
        if state is None or bounds is None or not bounds.start <= offset < bounds.end:
            return None
        chunks = self.read(topic, topic_id or state.topic_id, partition, offset, offset + 1, 1, 1)
        return next((message for chunk in chunks for message in chunk.messages), None)

    def _beyond(self, topic: str, saved: Positions | None, state: TopicState) -> Backlog:
        begin = starting_points(topic, saved, state, self._settings.auto_offset_reset)
        log_starts = {partition: bounds.start for partition, bounds in state.bounds.items()}
        return Backlog(state.topic_id, begin.offsets, log_starts, state.ends, begin.notices)


class OpenRanges:
    """Reads several ranges over the same connections. Not safe to share between threads."""

    def __init__(self, settings: KafkaSettings, states: TopicStates) -> None:
        self._settings = settings
        self._states = states
        self._consumers: dict[str, TopicConsumer] = {}

    def read(  # noqa: PLR0913, PLR0917 - a range is four facts
        self, topic: str, topic_id: str, partition: int, first: int, end: int, max_messages: int, max_bytes: int
    ) -> Iterator[Chunk]:
        """Yield the messages from `first` up to, not including, `end`, in chunks within the two limits.

        A repeated read returns the same messages, except those that retention has removed since.
        """
        tries = 0
        while first < end:
            state = self._states.look_up(topic)
            available = first if state is None else _oldest(state, topic_id, partition, end)
            if available is None or state is None:
                yield Chunk([], end, lost=end - first)
                return
            if available > first:
                available = min(available, end)
                yield Chunk([], available, lost=available - first)
                first = available
                continue
            # Pass the end of the log, not of the range, so that messages after the range are prefetched.
            ends = {partition: state.bounds[partition].end}
            limits = ReadBounds(min(max_messages, end - first), max_bytes, 0)
            buffer = self._consumer(topic).collect({partition: first}, ends, limits)
            reached = min(buffer.next_offsets[partition], end)
            # Retention may remove what was just looked up.
            tries = 0 if reached > first else tries + 1
            if tries == MAX_TRIES:
                raise BrokerUnavailableError(self._settings.bootstrap_servers, f"{topic} changed while it was read")
            first = reached
            yield Chunk([message for message in buffer.messages if message.offset < end], first)

    def close(self) -> None:
        """Disconnect."""
        while self._consumers:
            self._consumers.popitem()[1].close()

    def _consumer(self, topic: str) -> TopicConsumer:
        if topic not in self._consumers:
            self._consumers[topic] = TopicConsumer(self._settings, topic)
        return self._consumers[topic]


def _oldest(state: TopicState, topic_id: str, partition: int, end: int) -> int | None:
    """Return the oldest offset that can still be read; None if the topic no longer exists."""
    if state.topic_id and topic_id and state.topic_id != topic_id:
        return None
    bounds = state.bounds.get(partition)
    # Without topic ids, a log that ends before the range's end must belong to a recreated topic.
    return None if bounds is None or bounds.end < end else bounds.start


@dataclass(frozen=True)
class BoundedRead:
    """Result of one read.

    Args:
        messages: messages, in order within each partition.
        positions: positions of the next read; save them once the messages are stored.
        notices: one sentence for each event that a person should know: a topic that does not exist, a position outside
            the log, messages that retention removed.
        remaining: number of messages left for the next read.
    """

    messages: list[ConsumerRecord]
    positions: Positions
    notices: list[str]
    remaining: int


class TopicReader:
    """Reads topics for any number of threads, with one consumer per topic that stays connected between reads.

    Every method raises BrokerUnavailableError if the broker does not answer within the request timeout.
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
        """Read a topic from a position.

        Returns available messages immediately; otherwise waits until a first message arrives, at most
        `wait_seconds`. For a topic that does not exist, returns an empty read with a notice and unchanged positions.
        Reading from the same positions again returns the same messages.

        Args:
            topic: topic to read.
            positions: where the last read ended; None for the first read, see AUTO_OFFSET_RESET.
            max_messages: maximum number of messages, shared fairly by the partitions with waiting messages.
            max_bytes: approximate maximum size of keys and values, see `ReadBounds`.
            wait_seconds: how long to wait for a first message.
        """
        limits = ReadBounds(max_messages, max_bytes, wait_seconds)
        state = self._states.look_up(topic)
        if state is None:
            return BoundedRead([], positions or Positions("", {}), [f"Topic {topic} does not exist yet."], 0)
        begin = starting_points(topic, positions, state, self._settings.auto_offset_reset)
        if not wait_seconds and all(begin.offsets[partition] == end for partition, end in state.ends.items()):
            return BoundedRead([], Positions(state.topic_id, begin.offsets), begin.notices, 0)
        with self._consumer(topic, state.topic_id) as consumer:
            buffer = consumer.collect(begin.offsets, state.ends, limits)
        next_offsets = {**begin.offsets, **buffer.next_offsets}
        if not buffer.messages:
            # No messages may mean that the broker is unavailable: only a response proves that it is there.
            state_after = self._states.look_up(topic)
            state = replace(state_after, topic_id=state.topic_id) if state_after else state
        unread = sum(max(0, bounds.end - next_offsets.get(partition, 0)) for partition, bounds in state.bounds.items())
        return BoundedRead(buffer.messages, Positions(state.topic_id, next_offsets), begin.notices, unread)

    def commit(self, topic: str, positions: Positions) -> None:
        """Set the consumer group's offsets to saved positions, for lag displays only.

        Best effort: a failure is only logged, because nothing depends on the commit. Idempotent.
        """
        if not positions.next_offsets:
            return
        try:
            self._states.commit(topic, positions)
        except BrokerUnavailableError as error:
            _logger.warning("Offsets of %s were not committed for group %s: %s", topic, self._settings.group_id, error)

    def topic_id(self, topic: str) -> str:
        """Return the topic id, see `Positions`; empty if the topic does not exist or the broker has no ids."""
        state = self._states.look_up(topic)
        return state.topic_id if state else ""

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Return the offset that each partition's next message will get; empty if the topic does not exist."""
        state = self._states.look_up(topic)
        return state.ends if state else {}

    def lag(self, topic: str, saved: Positions | None) -> dict[int, int]:
        """Count the unread messages of each partition; a topic that does not exist has none.

        Args:
            topic: topic to measure.
            saved: positions in it; None if it has not been read yet.
        """
        state = self._states.look_up(topic)
        if state is None:
            return {}
        begin = starting_points(topic, saved, state, self._settings.auto_offset_reset)
        return {partition: state.bounds[partition].end - offset for partition, offset in begin.offsets.items()}

    def close(self) -> None:
        """Disconnect. A later read reconnects."""
        with self._lock:
            slots, self._slots = self._slots, {}
        for slot in slots.values():
            with slot.lock:
                slot.disconnect()

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
        """Return the connected consumer; a new topic id needs a new one, because a consumer caches the id."""
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


# How long the broker delays an empty response. The embedded broker delays it that long even if a message arrives.
WATCH_WAIT_MS = 100
# Fetch little: one message is enough to detect news.
WATCH_BYTES = 1_024
WATCHED_AT_A_TIME = 100


class TopicWatch:
    """Detects new messages on topics, without reading busy topics a second time.

    One consumer watches the ends of any number of topics, with one request that the broker delays until a message
    arrives. After the first message on a topic, the topic is no longer watched, so that only its own reader reads it,
    until the caller watches it again. Not safe to share between threads.

    Args:
        settings: settings of the cluster.

    Raises:
        BrokerUnavailableError: from `watch`, if the broker does not answer.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._states = TopicStates(settings)
        self._partitions: dict[str, list[int]] = {}
        self._consumer = Consumer(
            {
                **client_config(settings),
                # Required but unused: nothing is committed, and no group is joined.
                "group.id": settings.group_id,
                "enable.auto.commit": False,
                # A recreated topic counts as having new messages.
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": WATCH_WAIT_MS,
                "fetch.message.max.bytes": WATCH_BYTES,
                "queued.min.messages": 1,
            }
        )
        self._password = PresentPassword(settings)

    def watch(self, topic: str) -> bool:
        """Watch a topic for messages that arrive from now on; return False if it does not exist."""
        self._leave(topic)
        state = self._states.look_up(topic)
        if state is None:
            return False
        self._password.give(self._consumer)
        self._consumer.incremental_assign(
            [TopicPartition(topic, partition, end) for partition, end in state.ends.items()]
        )
        self._partitions[topic] = list(state.ends)
        return True

    def wait(self, seconds: float) -> Collection[str]:
        """Wait until messages arrive, stop watching their topics, and return these.

        Raises:
            KafkaException: the cluster reported a fatal error.
        """
        self._password.give(self._consumer)
        found: set[str] = set()
        for message in [*self._consumer.consume(1, seconds), *self._consumer.consume(WATCHED_AT_A_TIME, 0)]:
            problem = message.error()
            if problem is None:
                found.add(message.topic() or "")
            elif problem.fatal():
                raise KafkaException(problem)
        for topic in found:
            self._leave(topic)
        return found

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _leave(self, topic: str) -> None:
        if partitions := self._partitions.pop(topic, None):
            self._consumer.incremental_unassign([TopicPartition(topic, partition) for partition in partitions])
