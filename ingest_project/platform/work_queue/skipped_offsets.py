"""What an operator has asked to be skipped: messages that go to the dead letters unseen once their turn comes.

The saved cursor owns the positions, so that nobody moves it from outside: a tick that reads a message of this list puts
it aside and goes on, whether it runs while the list is written or an hour later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec
import sqlalchemy as sa

from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.work_queue.sql_helpers import insert_missing
from ingest_project.platform.work_queue.tables import skipped_offsets as skipped


class SkippedOffsets(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of one partition that are to be skipped.

    Args:
        topic_id: of the topic, see `Positions`; empty where nobody tells it.
        end_offset: of the first message that is not skipped.
        reason: why, by whoever asked.
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
        """Tell whether a message of this life of the topic is one of them."""
        return partition == self.partition and self.first_offset <= offset < self.end_offset


class SkipLedger:
    """Reads and writes the table `skipped_offsets`. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, asked: SkippedOffsets) -> bool:
        """Have messages skipped; asked for again from the same offset on, the longer of the two counts.

        Returns:
            whether anything changed.
        """
        row = msgspec.structs.asdict(asked)
        same = (
            (skipped.c.topic == asked.topic)
            & (skipped.c.topic_id == asked.topic_id)
            & (skipped.c.partition == asked.partition)
            & (skipped.c.first_offset == asked.first_offset)
        )
        longer = sa.update(skipped).where(same, skipped.c.end_offset < asked.end_offset).values(row)
        with writing(self._engine) as connection:
            added = insert_missing(connection, skipped, [row], skipped.c.topic)
            return bool(added) or bool(connection.execute(longer).rowcount)

    def of(self, topic: str, topic_id: str) -> tuple[SkippedOffsets, ...]:
        """What is to be skipped in this life of a topic."""
        is_this_life = skipped.c.topic_id.in_([topic_id, ""]) if topic_id else sa.true()
        query = sa.select(skipped).where(skipped.c.topic == topic, is_this_life)
        with reading(self._engine) as connection:
            return tuple(_rows(connection.execute(query).mappings()))

    def list(self, limit: int = 100) -> tuple[SkippedOffsets, ...]:
        """Everything that was ever asked for, the newest first."""
        query = sa.select(skipped).order_by(skipped.c.asked_at.desc()).limit(limit)
        with reading(self._engine) as connection:
            return tuple(_rows(connection.execute(query).mappings()))


def _rows(rows: Iterable[sa.RowMapping]) -> Iterator[SkippedOffsets]:
    for row in rows:
        yield SkippedOffsets(**row)
