"""Bounded reads of a topic at a known position.

The caller keeps the positions (a sensor's cursor) and gets new ones with the messages; nothing is remembered here that
matters. Partitions are assigned, never subscribed to: joining a group takes seconds, an assignment takes milliseconds.
A read that fails raises; an empty read means that the broker answered and that there is nothing.
"""

from __future__ import annotations

import atexit
import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ingest_project.errors import BrokerUnavailable
from ingest_project.kafka.positions import Positions
from ingest_project.kafka.starting_points import starting_points
from ingest_project.kafka.topic_consumer import Limits, TopicConsumer
from ingest_project.kafka.topic_state import TopicState, TopicStates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ingest_project.kafka.received import Received
    from ingest_project.settings import KafkaSettings

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundedRead:
    """What one read brought.

    Args:
        messages: in order within each partition.
        positions: where the next read goes on; save them once the messages are safe.
        notices: one sentence for each thing a person should know: a topic that does not exist, a position that fell
            out of the log, messages that retention removed.
        remaining: messages that were there and were left for the next read.
    """

    messages: list[Received]
    positions: Positions
    notices: list[str]
    remaining: int


class TopicReader:
    """Reads topics for any number of threads, one consumer a topic, kept connected between reads.

    Every method raises BrokerUnavailable where the broker does not answer within the request time-out.
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
            max_bytes: brings at most about this much in keys and values, see `Limits`.
            wait_seconds: how long to wait for a first message.
        """
        limits = Limits(max_messages, max_bytes, wait_seconds)
        state = self._states.look_up(topic)
        if state is None:
            return BoundedRead([], positions or Positions("", {}), [f"Topic {topic} does not exist yet."], 0)
        begin = starting_points(topic, positions, state, self._settings.auto_offset_reset)
        with self._consumer(topic, state.generation) as consumer:
            intake = consumer.collect(begin.offsets, state.ends, limits)
        next_offsets = {**begin.offsets, **intake.next_offsets}
        if not intake.messages:
            # The broker may have gone away while nothing came. Silence is no answer; this is one.
            state_after = self._states.look_up(topic)
            state = replace(state_after, generation=state.generation) if state_after else state
        return BoundedRead(
            intake.messages, Positions(state.generation, next_offsets), begin.notices, _unread(state, next_offsets)
        )

    def commit(self, topic: str, positions: Positions) -> None:
        """Let the consumer group's offsets follow saved positions, for lag displays only.

        Best effort: a failure is logged and nothing depends on it. Setting the same offsets again changes nothing.
        """
        if not positions.next_offsets:
            return
        try:
            self._states.commit(topic, positions)
        except BrokerUnavailable as error:
            _logger.warning("Offsets of %s were not committed for group %s: %s", topic, self._settings.group_id, error)

    def generation(self, topic: str) -> str:
        """Which life of the topic this is, see `Positions`; empty where there is no such topic or nobody can tell."""
        state = self._states.look_up(topic)
        return state.generation if state else ""

    def end_offsets(self, topic: str) -> dict[int, int]:
        """The offset that each partition's next message will get; empty where there is no such topic."""
        state = self._states.look_up(topic)
        return state.ends if state else {}

    def lags(self, positions: Mapping[str, Positions | None]) -> dict[str, dict[int, int]]:
        """How many messages wait to be read.

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
    def _consumer(self, topic: str, generation: str) -> Iterator[TopicConsumer]:
        with self._lock:
            slot = self._slots.setdefault(topic, _Slot())
        with slot.lock:
            yield slot.connect(self._settings, topic, generation)


class _Slot:
    """The place of one topic's consumer, held by one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._consumer: TopicConsumer | None = None
        self._generation = ""

    def connect(self, settings: KafkaSettings, topic: str, generation: str) -> TopicConsumer:
        """The connected consumer, a new one for each life of the topic: a consumer remembers the topic's id."""
        if self._consumer is not None and self._generation != generation:
            self.disconnect()
        if self._consumer is None:
            self._consumer = TopicConsumer(settings, topic)
            self._generation = generation
        return self._consumer

    def disconnect(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def _unread(state: TopicState, next_offsets: Mapping[int, int]) -> int:
    return sum(max(0, bounds.end - next_offsets.get(partition, 0)) for partition, bounds in state.bounds.items())
