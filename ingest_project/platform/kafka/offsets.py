"""Positions of a topic: those that a sensor's cursor keeps, and those that the consumer group has committed.

The saved cursor owns the positions; the consumer group's committed offsets only follow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from ingest_project.core.errors import IngestError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka.client import client_config, unavailable


class Positions(msgspec.Struct, frozen=True):
    """The next offset to read of each partition, valid for one topic id.

    Args:
        topic_id: tells a topic from an earlier one of the same name. Empty: the broker names none; never compared.
        next_offsets: partition to the offset of the first message not yet read.
    """

    topic_id: str
    next_offsets: Mapping[int, int]

    def to_cursor(self) -> str:
        """Return compact JSON, the same text for the same positions."""
        return msgspec.json.encode(
            {"topic_id": self.topic_id, "next_offsets": dict(sorted(self.next_offsets.items()))}
        ).decode()

    @classmethod
    def from_cursor(cls, text: str | None) -> Positions | None:
        """Return the positions that a cursor holds, or None where nothing has been saved yet.

        Raises:
            IngestError: the cursor is not one of ours. Starting again silently would read everything twice, so a
                person decides.
        """
        if not text:
            return None
        try:
            positions = msgspec.json.decode(text, type=_Cursor)
        except (msgspec.MsgspecError, UnicodeEncodeError) as error:
            raise IngestError(
                f"The saved cursor {text[:80]!r} holds no Kafka positions: {error}. "
                "Reset the sensor's cursor to read the topic from its first message again."
            ) from error
        return cls(positions.topic_id, positions.next_offsets)


class _Cursor(msgspec.Struct, forbid_unknown_fields=True):
    topic_id: str
    next_offsets: dict[int, Annotated[int, msgspec.Meta(ge=0)]]


def committed_positions(settings: KafkaSettings, topic: str, partitions: Iterable[int]) -> Positions | None:
    """Return what the group committed for a topic; None where it committed nothing.

    Args:
        settings: name the group.
        topic: whose offsets.
        partitions: of the topic; brokers differ in what they answer when none are named.

    Raises:
        BrokerUnavailableError: no answer.
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
    # A negative offset says that nothing was committed.
    offsets = {one.partition: one.offset for one in committed if one.offset >= 0}
    return Positions("", offsets) if offsets else None
