"""One offset range: which offsets it is, and what the ledger knows of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa


class RangeState(StrEnum):
    """Where a range is in its life: pending -> requested -> running -> done | failed | lost."""

    PENDING = "pending"
    REQUESTED = "requested"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self in FINISHED


FINISHED = frozenset({RangeState.DONE, RangeState.FAILED, RangeState.LOST})
UNFINISHED = frozenset(RangeState) - FINISHED


class Lane(NamedTuple):
    """A partition in one life of its topic: offsets in it follow one another."""

    topic: str
    topic_id: str
    partition: int


class OffsetRange(msgspec.Struct, frozen=True, order=True):
    """Offsets of one partition.

    Args:
        topic_id: tells one life of a topic from the next.
        end: the first offset that is not in it.
    """

    topic: str
    topic_id: str
    partition: int
    first: int
    end: int

    @property
    def topic_partition(self) -> Lane:
        """Whose offsets these are."""
        return Lane(self.topic, self.topic_id, self.partition)

    @property
    def key(self) -> str:
        """Its name in the ledger. Where it ends is not in it: the first plan decides that."""
        return f"{self.topic}/{self.topic_id}/{self.partition}/{self.first}"

    def __len__(self) -> int:
        """How many offsets."""
        return self.end - self.first

    def __str__(self) -> str:
        """As people write it."""
        return f"{self.topic}[{self.partition}] {self.first} to {self.end - 1}"


class RangeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one range."""

    range_key: str
    offsets: OffsetRange
    state: RangeState
    attempts: int
    reason: str | None
    run_id: str | None
    messages: int | None
    outcome: dict[str, int] | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: sa.RowMapping) -> RangeRecord:
        """Of a row of the table `stream_ranges`."""
        own = {name: row[name] for name in cls.__struct_fields__ if name not in {"offsets", "state"}}
        return cls(**own, state=RangeState(row["state"]), offsets=_offsets(row))


def cut(  # noqa: PLR0913, PLR0917 - a range is four facts
    topic: str, topic_id: str, partition: int, start: int, end: int, size: int
) -> list[OffsetRange]:
    """Divide offsets into ranges of at most this size."""
    return [OffsetRange(topic, topic_id, partition, first, min(first + size, end)) for first in range(start, end, size)]


def range_row(entry: OffsetRange, state: RangeState, now: datetime) -> dict[str, Any]:
    """A range that is new, as a row of the table `stream_ranges`."""
    return {
        "range_key": entry.key,
        "topic": entry.topic,
        "topic_id": entry.topic_id,
        "partition": entry.partition,
        "first_offset": entry.first,
        "end_offset": entry.end,
        "state": state,
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "updated_at": now,
    }


def offset_columns(table: sa.Table) -> list[sa.Column[Any]]:
    """The columns from which an `OffsetRange` is made, in its order."""
    return [table.c[name] for name in ("topic", "topic_id", "partition", "first_offset", "end_offset")]


def _offsets(row: sa.RowMapping) -> OffsetRange:
    return OffsetRange(row["topic"], row["topic_id"], row["partition"], row["first_offset"], row["end_offset"])
