"""Topics and offsets: the state of topics at the broker, positions in them, and committed offsets.

For queue topics, a sensor's saved cursor owns the positions; the consumer group's committed offsets only follow it. One
client looks up all topics for all threads; each look-up takes two requests of about a millisecond.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from ingest_project.core.errors import BrokerUnavailableError, IngestError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka import (
    DENIED_CODES,
    PresentPassword,
    client_config,
    error_code,
    is_event_hubs,
    note_refusal,
    unavailable,
)

RETRY_SECONDS = 0.1
# The library accepts no shorter timeout.
MIN_TIMEOUT_SECONDS = 0.05
NO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"
# The library does not annotate these two.
_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
ABSENT_TOPIC_CODES = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)  # noqa: SLF001 - a public code


class Positions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next offset to read of each partition, valid for one topic id.

    Args:
        topic_id: distinguishes a topic from an earlier one of the same name; empty, not compared, without topic ids.
        next_offsets: offset of the first unread message, by partition.
    """

    topic_id: str
    next_offsets: Mapping[int, Annotated[int, msgspec.Meta(ge=0)]]

    def to_cursor(self) -> str:
        """Return compact JSON, the same text for the same positions."""
        return msgspec.json.encode(
            {"topic_id": self.topic_id, "next_offsets": dict(sorted(self.next_offsets.items()))}
        ).decode()

    @classmethod
    def from_cursor(cls, text: str | None) -> Positions | None:
        """Return the positions in a cursor; None if nothing has been saved yet.

        Raises:
            IngestError: the cursor has another format. Silently starting over would read everything twice, so a person
                decides.
        """
        if not text:
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeEncodeError) as error:
            raise IngestError(
                f"The saved cursor {text[:80]!r} holds no Kafka positions: {error}. "
                "Reset the sensor's cursor to read the topic from its first message again."
            ) from error


def committed_positions(settings: KafkaSettings, topic: str, partitions: Iterable[int]) -> Positions | None:
    """Return the positions that the group committed for a topic; None if it committed none.

    Args:
        settings: settings with the group.
        topic: the topic.
        partitions: partitions of the topic; brokers answer differently if none are named.

    Raises:
        BrokerUnavailableError: the broker does not answer.
    """
    wanted = [TopicPartition(topic, partition) for partition in partitions]
    if not wanted:
        return None
    admin = AdminClient(client_config(settings))
    try:
        answers = admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(settings.group_id, wanted)], request_timeout=settings.request_timeout_seconds
        )
        committed = answers[settings.group_id].result().topic_partitions
    except KafkaException as error:
        raise unavailable(settings, error) from error
    # A negative offset means that nothing was committed.
    offsets = {one.partition: one.offset for one in committed if one.offset >= 0}
    return Positions("", offsets) if offsets else None


@dataclass(frozen=True)
class LogBounds:
    """Offsets in a partition's log: from `start` up to, not including, `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class TopicState:
    """A topic at one moment.

    Args:
        topic_id: id of the topic, see `Positions`.
        bounds: bounds of the log, by partition.
    """

    topic_id: str
    bounds: Mapping[int, LogBounds]

    @property
    def ends(self) -> dict[int, int]:
        """Return the offset that each partition's next message will get."""
        return {partition: bounds.end for partition, bounds in self.bounds.items()}


class TopicStates:
    """Look up topics at the broker. Safe to share between threads."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._last_error = ""

    def look_up(self, topic: str) -> TopicState | None:
        """Return the topic's current state, or None if the topic does not exist.

        Raises:
            BrokerUnavailableError: no answer within the request timeout, which covers a dropped connection or a leader
                election.
        """
        give_up_at = time.monotonic() + self._settings.request_timeout_seconds
        while True:
            try:
                return self._query(topic, give_up_at - time.monotonic())
            except KafkaException as error:
                if error_code(error) in ABSENT_TOPIC_CODES:
                    return None
                if error_code(error) in DENIED_CODES:
                    raise unavailable(self._settings, error, f"{topic}: ") from error
                if time.monotonic() + RETRY_SECONDS + MIN_TIMEOUT_SECONDS > give_up_at:
                    raise self._unavailable(error) from error
            time.sleep(RETRY_SECONDS)

    def commit(self, topic: str, positions: Positions) -> None:
        """Set the consumer group's offsets.

        Raises:
            BrokerUnavailableError: no answer, or the group refused the offsets (other consumers are active in it).
        """
        offsets = [TopicPartition(topic, partition, offset) for partition, offset in positions.next_offsets.items()]
        request = ConsumerGroupTopicPartitions(self._settings.group_id, offsets)
        timeout = self._settings.request_timeout_seconds
        try:
            answers = self._client.alter_consumer_group_offsets([request], request_timeout=timeout)
            committed = [partition for answer in answers.values() for partition in answer.result().topic_partitions]
        except KafkaException as error:
            raise self._unavailable(error) from error
        for partition in committed:
            if partition.error is not None:
                raise unavailable(self._settings, partition.error)

    @cached_property
    def _client(self) -> AdminClient:
        configuration: dict[str, Any] = {**client_config(self._settings), "error_cb": self._note_error}
        self._password = PresentPassword(self._settings)
        return AdminClient(configuration)

    def _note_error(self, error: KafkaError) -> None:
        note_refusal(self._settings, error)
        # These errors name the reason, e.g. "Connection refused" or "Authentication failed"; the request that then
        # fails reports only "timed out". The final one, ALL_BROKERS_DOWN, only counts the brokers.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - the library's public name
            self._last_error = error.str()

    def _unavailable(self, error: KafkaException) -> BrokerUnavailableError:
        self._client.poll(0)
        return unavailable(self._settings, self._last_error or error)

    def _query(self, topic: str, timeout: float) -> TopicState:
        self._last_error = ""
        self._client.poll(0)  # delivers pending error callbacks
        self._password.give(self._client)
        describe = self._list if is_event_hubs(self._settings) else self._describe
        topic_id, partitions = describe(topic, timeout)
        return TopicState(topic_id, self._bounds(topic, partitions, timeout))

    def _describe(self, topic: str, timeout: float) -> tuple[str, list[int]]:
        description = self._client.describe_topics(TopicCollection([topic]), request_timeout=timeout)[topic].result()
        topic_id = str(description.topic_id)
        topic_id = self._settings.generation if topic_id == NO_TOPIC_ID else topic_id
        return topic_id, [partition.id for partition in description.partitions]

    def _list(self, topic: str, timeout: float) -> tuple[str, list[int]]:
        metadata = self._client.list_topics(topic, timeout=timeout).topics[topic]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        return self._settings.generation, list(metadata.partitions)

    def _bounds(self, topic: str, partitions: list[int], timeout: float) -> dict[int, LogBounds]:
        # Send both requests before waiting for the first answer.
        requests = [
            self._client.list_offsets(
                {TopicPartition(topic, partition): spec for partition in partitions},
                # A reader cannot see beyond the oldest open transaction, so for it the log ends there.
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=timeout,
            )
            for spec in (_EARLIEST, _LATEST)
        ]
        starts, ends = (
            {one.partition: answer.result().offset for one, answer in answers.items()} for answers in requests
        )
        if any(offset < 0 for offset in (*starts.values(), *ends.values())):
            # If the broker disconnects during the request, the library returns an invalid offset without an error.
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))  # noqa: SLF001 - a public code
        return {partition: LogBounds(starts[partition], ends[partition]) for partition in sorted(partitions)}


@dataclass(frozen=True)
class StartingPoints:
    """Starting offset of each partition, and one sentence for each that differs from the saved position."""

    offsets: Mapping[int, int]
    notices: list[str]


def starting_points(
    topic: str, saved: Positions | None, state: TopicState, first_read: Literal["earliest", "latest"]
) -> StartingPoints:
    """Decide at which offsets to start reading.

    Args:
        topic: name of the topic, for the notices.
        saved: where the last read ended, or None before the first.
        state: current state of the topic.
        first_read: end of the log at which the very first read starts. A partition that appears later is always read
            from its beginning, because all its messages are new.
    """
    if saved is None:
        return StartingPoints(
            {p: bounds.start if first_read == "earliest" else bounds.end for p, bounds in state.bounds.items()}, []
        )
    if saved.topic_id and state.topic_id and saved.topic_id != state.topic_id:
        notice = f"{topic} was created again since it was last read; reading it from its beginning."
        return StartingPoints({p: bounds.start for p, bounds in state.bounds.items()}, [notice])
    gone = sorted(set(saved.next_offsets) - set(state.bounds))
    notices = [f"{topic}[{partition}] no longer exists; its saved position is dropped." for partition in gone]
    offsets = {}
    for partition, bounds in state.bounds.items():
        offsets[partition], notice_of_partition = _within(topic, partition, saved.next_offsets.get(partition), bounds)
        notices += notice_of_partition
    return StartingPoints(offsets, notices)


def fair_shares(waiting: Mapping[int, int], limit: int) -> dict[int, int]:
    """Divide a limit between partitions so that none starves and the limit is used up.

    Args:
        waiting: messages waiting in each partition.
        limit: largest sum of the shares.

    Returns:
        the share of each partition that gets one. A remainder is distributed at random, so that over many reads every
        partition has its turn.
    """
    served = [partition for partition, count in waiting.items() if count > 0]
    random.shuffle(served)
    served = served[:limit]
    # Serve the smallest first: the unused rest of their even share goes to the others.
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
