"""What the ledgers of files and of polling jobs have in common: where an entry came from, and what a call did."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import RowMapping

DelayRule = Callable[[int], timedelta]
"""From the number of attempts so far to the pause before the next one."""


class KafkaPosition(msgspec.Struct, frozen=True):
    """The Kafka position an entry came from.

    Args:
        topic_id: tells one life of a topic from the next: after a topic was recreated its offsets start again.
        at: the message's own timestamp, where it has one.
    """

    topic: str
    partition: int
    offset: int
    topic_id: str = ""
    at: datetime | None = None

    def __str__(self) -> str:
        """As people write it: `topic[partition]@offset`."""
        return f"{self.topic}[{self.partition}]@{self.offset}"

    @property
    def position(self) -> tuple[str, int, int, str]:
        """What makes two arrivals the same message."""
        return (self.topic, self.partition, self.offset, self.topic_id)

    def columns(self) -> dict[str, Any]:
        """As the tables name them."""
        return {
            "kafka_topic": self.topic,
            "kafka_partition": self.partition,
            "kafka_offset": self.offset,
            "kafka_topic_id": self.topic_id,
            "kafka_timestamp": self.at,
        }

    @classmethod
    def of(cls, row: RowMapping) -> KafkaPosition:
        """Of a stored entry."""
        return cls(
            topic=row["kafka_topic"],
            partition=row["kafka_partition"],
            offset=row["kafka_offset"],
            topic_id=row["kafka_topic_id"],
            at=row["kafka_timestamp"],
        )


class Recorded(msgspec.Struct, frozen=True):
    """What `record` found, by key.

    Args:
        new: not known before; now pending.
        reopened: asked for by a tick whose cursor was never saved, hence never really asked for; pending again.
        known: there already; left as they are.
    """

    new: tuple[str, ...] = ()
    reopened: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


class RequeuedEntry(msgspec.Struct, frozen=True):
    """What became of entries that were given back.

    Args:
        pending: how many will be asked for again.
        failed: keys of those that had no attempt left.
    """

    pending: int = 0
    failed: tuple[str, ...] = ()
