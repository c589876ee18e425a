"""What is remembered of messages on their way out, so that a publisher that was killed sends each of them once.

An intent is written before its message; a message with an intent and no mark may be on the topic or not, and whoever
publishes next looks there first.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ingest_project.database.engine import reading, writing
from ingest_project.database.tables import outbox
from ingest_project.ledger.statements import in_parts, insert_missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INTENDED = "intended"
SENT = "sent"


class MessageOutbox:
    """Reads and writes the table `outbox`. Every method is durable when it returns.

    Raises:
        DatabaseUnavailable, TransactionConflict: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def unsent(self, message_ids: Sequence[str]) -> list[str]:
        """Those of the ids that are not marked as sent, in order."""
        sent: set[str] = set()
        with reading(self._engine) as connection:
            for part in in_parts(message_ids):
                query = sa.select(outbox.c.message_id).where(outbox.c.message_id.in_(part), outbox.c.state == SENT)
                sent.update(connection.execute(query).scalars())
        return [message_id for message_id in message_ids if message_id not in sent]

    def intend(self, topic: str, message_ids: Sequence[str], since: Mapping[int, int]) -> None:
        """Remember that these are about to be written, and where the topic ended before that.

        An intent that exists keeps its earlier `since`.
        """
        entry = {
            "topic": topic,
            "state": INTENDED,
            "since": {str(partition): offset for partition, offset in since.items()},
            "created_at": datetime.now(UTC),
        }
        rows = [{"message_id": message_id, **entry} for message_id in sorted(set(message_ids))]
        with writing(self._engine) as connection:
            insert_missing(connection, outbox, rows, outbox.c.message_id)

    def interrupted(self, topic: str, message_ids: Sequence[str]) -> dict[str, dict[int, int]]:
        """Those of the ids with an intent and no mark, each with the offset by partition it may be found from."""
        found: dict[str, dict[int, int]] = {}
        with reading(self._engine) as connection:
            for part in in_parts(message_ids):
                query = sa.select(outbox.c.message_id, outbox.c.since).where(
                    outbox.c.topic == topic, outbox.c.message_id.in_(part), outbox.c.state == INTENDED
                )
                for message_id, since in connection.execute(query):
                    found[message_id] = {int(partition): offset for partition, offset in since.items()}
        return found

    def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
        """Remember that these are on the topic. Marking twice changes nothing."""
        with writing(self._engine) as connection:
            for part in in_parts(sorted(message_ids)):
                connection.execute(
                    sa.update(outbox)
                    .where(outbox.c.topic == topic, outbox.c.message_id.in_(part))
                    .values(state=SENT, since=sa.null())
                )
