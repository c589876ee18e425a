"""Offsets that an operator skips: their messages are dead-lettered without being decoded.

The saved cursor owns the positions, and nothing else moves it: a tick that reads a message of this list
dead-letters it and continues, whether it runs while the list is written or an hour later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.database.sql import UtcTime, insert_missing, metadata

# A topic that is created again has another id, and other messages at these offsets.
skipped_offsets = sa.Table(
    "skipped_offsets",
    metadata,
    Col("topic", sa.Text, primary_key=True),
    Col("topic_id", sa.Text, primary_key=True),
    Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    Col("first_offset", sa.BigInteger, primary_key=True, autoincrement=False),
    # Of the first message that is not skipped.
    Col("end_offset", sa.BigInteger, nullable=False),
    Col("reason", sa.Text, nullable=False),
    Col("asked_by", sa.Text, nullable=False),
    Col("asked_at", UtcTime, nullable=False),
)


class SkippedOffsets(msgspec.Struct, frozen=True, kw_only=True):
    """A range of offsets of one partition to skip.

    Args:
        topic_id: of the topic, see `Positions`; empty where the broker does not name it.
        end_offset: of the first message that is not skipped.
        reason: given by the operator.
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
        """Test whether a message is in the range."""
        return partition == self.partition and self.first_offset <= offset < self.end_offset


class SkippedOffsetStore:
    """Reads and writes the table `skipped_offsets`. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, offsets: SkippedOffsets) -> bool:
        """Store a range; of two from the same offset on, the longer one counts.

        Returns:
            whether anything changed.
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
        """Return the ranges of a topic; those of an earlier topic of the same name do not count."""
        is_this_topic = skipped_offsets.c.topic_id.in_([topic_id, ""]) if topic_id else sa.true()
        query = sa.select(skipped_offsets).where(skipped_offsets.c.topic == topic, is_this_topic)
        with reading(self._engine) as connection:
            return tuple(_rows(connection.execute(query).mappings()))

    def list(self, limit: int = 100) -> tuple[SkippedOffsets, ...]:
        """Return every range that was ever stored, the newest first."""
        query = sa.select(skipped_offsets).order_by(skipped_offsets.c.asked_at.desc()).limit(limit)
        with reading(self._engine) as connection:
            return tuple(_rows(connection.execute(query).mappings()))


def _rows(rows: Iterable[sa.RowMapping]) -> Iterator[SkippedOffsets]:
    for row in rows:
        yield SkippedOffsets(**row)
