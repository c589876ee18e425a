"""Exact ranges of offsets: what waits to be read, and reading just that, however often.

A tick that plans ranges does not read a message; the runs that read them later need not know of each other. What is no
longer there when a range is read (retention, a topic that was created again) is said, never skipped in silence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka.consumer import ReadBounds, TopicConsumer, starting_points
from ingest_project.platform.kafka.offsets import Positions, TopicState, TopicStates
from ingest_project.platform.kafka.records import ConsumerRecord

LOOK_AGAIN_SECONDS = 0.1


@dataclass(frozen=True)
class Backlog:
    """The messages that wait on a topic.

    Args:
        topic_id: of the topic, see `Positions`.
        starts: the first offset that a saved position has not passed, by partition.
        log_starts: the oldest offset that is still there, by partition.
        ends: the offset that the next message will get, by partition.
        notices: one sentence for each thing a person should know.
    """

    topic_id: str
    starts: Mapping[int, int]
    log_starts: Mapping[int, int]
    ends: Mapping[int, int]
    notices: list[str]

    @property
    def waiting(self) -> int:
        """Offsets between the positions and the ends."""
        return sum(max(0, self.ends[partition] - start) for partition, start in self.starts.items())


@dataclass(frozen=True)
class Chunk:
    """Part of a range, in the order of the offsets.

    Args:
        messages: those that are there.
        next_offset: where the next chunk begins.
        lost: how many of the offsets are gone for good.
    """

    messages: list[ConsumerRecord]
    next_offset: int
    lost: int = 0


class RangeReader:
    """Inspects topics and reads exact ranges of them. Every method raises BrokerUnavailableError without a broker."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._states = TopicStates(settings)

    def backlog(self, topic: str, saved: Positions | None, wait_seconds: float) -> Backlog | None:
        """Return what waits beyond a position; None where there is no such topic.

        Args:
            topic: to look at.
            saved: where the cursor stands; None before the first, see AUTO_OFFSET_RESET.
            wait_seconds: how long to stay for a first message where none waits.
        """
        give_up_at = time.monotonic() + wait_seconds
        while True:
            state = self._states.look_up(topic)
            found = None if state is None else self._beyond(topic, saved, state)
            if found is not None and found.waiting:
                return found
            if time.monotonic() + LOOK_AGAIN_SECONDS > give_up_at:
                return found
            if found is not None and saved is None:
                # With AUTO_OFFSET_RESET=latest what arrives while we wait must not move the first position.
                saved = Positions(found.topic_id, found.starts)
            time.sleep(LOOK_AGAIN_SECONDS)

    @contextmanager
    def opened(self) -> Iterator[OpenRanges]:
        """Open connections for several ranges: what comes after one is fetched while that one is used."""
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

    def _beyond(self, topic: str, saved: Positions | None, state: TopicState) -> Backlog:
        begin = starting_points(topic, saved, state, self._settings.auto_offset_reset)
        log_starts = {partition: bounds.start for partition, bounds in state.bounds.items()}
        return Backlog(state.topic_id, begin.offsets, log_starts, state.ends, begin.notices)


class OpenRanges:
    """Reads ranges over connections that stay open from one to the next. Not safe to share between threads."""

    def __init__(self, settings: KafkaSettings, states: TopicStates) -> None:
        self._settings = settings
        self._states = states
        self._consumers: dict[str, TopicConsumer] = {}

    def read(  # noqa: PLR0913, PLR0917 - a range is four facts
        self, topic: str, topic_id: str, partition: int, first: int, end: int, max_messages: int, max_bytes: int
    ) -> Iterator[Chunk]:
        """Yield the messages from `first` up to, not including, `end`, in chunks of at most so many and so much.

        Reading it again brings the same messages, less what retention has removed meanwhile.
        """
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
            # The log's own end: where more follows this range, it is fetched ahead.
            ends = {partition: state.bounds[partition].end}
            limits = ReadBounds(min(max_messages, end - first), max_bytes, 0)
            intake = self._consumer(topic).collect({partition: first}, ends, limits)
            first = self._advanced(topic, first, min(intake.next_offsets[partition], end))
            yield Chunk([message for message in intake.messages if message.offset < end], first)

    def close(self) -> None:
        """Disconnect."""
        while self._consumers:
            self._consumers.popitem()[1].close()

    def _consumer(self, topic: str) -> TopicConsumer:
        if topic not in self._consumers:
            self._consumers[topic] = TopicConsumer(self._settings, topic)
        return self._consumers[topic]

    def _advanced(self, topic: str, first: int, reached: int) -> int:
        if reached <= first:
            raise BrokerUnavailableError(self._settings.bootstrap_servers, f"{topic} changed while it was read")
        return reached


def _oldest(state: TopicState, topic_id: str, partition: int, end: int) -> int | None:
    """Return the oldest offset that can still be read; None where the topic is gone."""
    if state.topic_id and topic_id and state.topic_id != topic_id:
        return None
    bounds = state.bounds.get(partition)
    # Without topic ids, a log that ends before what it held was created again.
    return None if bounds is None or bounds.end < end else bounds.start
