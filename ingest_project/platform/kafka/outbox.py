"""Record of messages on their way out, so that a publisher that was killed sends each of them once.

An intent is written before its message; a message with an intent and no mark may be on the topic or not, and the next
publisher looks there first. It takes the intent over before it looks, and a publisher makes sure that its intents
are still its own right before it writes: one that was suspended in between and taken for dead finds that they are not.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Column as Col
from sqlalchemy.dialects.postgresql import ARRAY

from ingest_project.platform.database.columns import Json, UtcTime, metadata
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.work_queue.sql_helpers import in_parts, insert_missing

# What a producer was about to send, written before it is sent; a row still `intended` after a crash may have been sent.
outbox = sa.Table(
    "outbox",
    metadata,
    Col("message_id", sa.Text, primary_key=True),
    Col("topic", sa.Text, primary_key=True),
    Col("state", sa.Text, nullable=False),
    Col("since", Json),
    Col("created_at", UtcTime, nullable=False),
    # The publisher that is about to send it: one that takes the intent over enters its own name, and the other stops.
    Col("owner", sa.Text),
)


INTENDED = "intended"
SENT = "sent"
_UNSENT = sa.text(
    "SELECT wanted.id FROM unnest(CAST(:message_ids AS text[])) WITH ORDINALITY AS wanted(id, place)"
    f" WHERE NOT EXISTS (SELECT FROM outbox WHERE message_id = wanted.id AND state = '{SENT}')"
    " ORDER BY wanted.place"
)


class MessageOutbox:
    """Reads and writes the table `outbox`. Every method is durable when it returns.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._name = uuid.uuid4().hex

    def unsent(self, message_ids: Sequence[str]) -> list[str]:
        """Return those of the ids that are not marked as sent, in order."""
        if self._engine.dialect.name == "postgresql":
            # Asks for what is missing, which is usually little, in one parameter; `IN` takes thousands of both.
            with reading(self._engine) as connection:
                return list(connection.execute(_UNSENT, {"message_ids": list(message_ids)}).scalars())
        sent: set[str] = set()
        with reading(self._engine) as connection:
            for part in in_parts(message_ids):
                query = sa.select(outbox.c.message_id).where(outbox.c.message_id.in_(part), outbox.c.state == SENT)
                sent.update(connection.execute(query).scalars())
        return [message_id for message_id in message_ids if message_id not in sent]

    def intend(self, topic: str, message_ids: Sequence[str], since: Mapping[int, int]) -> Callable[[], bool]:
        """Remember that these are about to be written, and where the topic ended before that.

        An intent that exists keeps its earlier `since` and its owner.

        Returns:
            tells whether all of them are still this publisher's; to be asked right before they are written.
        """
        owner = self._owner()
        entry = {
            "topic": topic,
            "state": INTENDED,
            "since": {str(partition): offset for partition, offset in since.items()},
            "created_at": datetime.now(UTC),
            "owner": owner,
        }
        rows = [{"message_id": message_id, **entry} for message_id in sorted(set(message_ids))]
        with writing(self._engine) as connection:
            insert_missing(connection, outbox, rows, outbox.c.message_id)
        return lambda: self._owns(topic, message_ids, owner)

    def interrupted(self, topic: str, message_ids: Sequence[str]) -> dict[str, dict[int, int]]:
        """Take over those of the ids with an intent and no mark: their earlier publisher will not write them any more.

        Each with the offset by partition it may be found from.
        """
        found: dict[str, dict[int, int]] = {}
        query = sa.select(outbox.c.message_id, outbox.c.since)
        with reading(self._engine) as connection:
            for part in in_parts(message_ids):
                for message_id, since in connection.execute(query.where(*self._intended(topic, part))):
                    found[message_id] = {int(partition): offset for partition, offset in since.items()}
        if found:
            with writing(self._engine) as connection:
                for part in in_parts(sorted(found)):
                    taken = sa.update(outbox).where(*self._intended(topic, part)).values(owner=self._owner())
                    connection.execute(taken)
        return found

    def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
        """Remember that these are on the topic. Marking twice changes nothing."""
        with writing(self._engine) as connection:
            self._mark(connection, topic, message_ids)

    def ids(self, topic: str, prefix: str) -> list[str]:
        """Return the ids of messages to a topic that begin so."""
        query = sa.select(outbox.c.message_id).where(
            outbox.c.topic == topic, outbox.c.message_id.startswith(prefix, autoescape=True)
        )
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def remember(self, topic: str, message_id: str) -> None:
        """Mark as sent what stands for other messages and has none of its own. A second time changes nothing."""
        row = {"message_id": message_id, "topic": topic, "state": SENT, "created_at": datetime.now(UTC)}
        with writing(self._engine) as connection:
            insert_missing(connection, outbox, [row], outbox.c.message_id)

    def _mark(self, connection: sa.Connection, topic: str, message_ids: Sequence[str]) -> int:
        """Mark them; how many of them were not marked before."""
        marked = 0
        for part in in_parts(sorted(message_ids)):
            statement = sa.update(outbox).where(*self._intended(topic, part)).values(state=SENT, since=sa.null())
            marked += connection.execute(statement).rowcount
        return marked

    def _owns(self, topic: str, message_ids: Sequence[str], owner: str) -> bool:
        owned = 0
        with reading(self._engine) as connection:
            for part in in_parts(sorted(set(message_ids))):
                query = sa.select(sa.func.count()).where(*self._intended(topic, part), outbox.c.owner == owner)
                owned += connection.execute(query).scalar_one()
        return owned == len(set(message_ids))

    def _owner(self) -> str:
        """Return a name of this process and thread alone, also after a fork."""
        return f"{self._name}/{os.getpid()}/{threading.get_ident()}"

    def _intended(self, topic: str, message_ids: Sequence[str]) -> tuple[sa.ColumnElement[bool], ...]:
        return outbox.c.topic == topic, self._is_one_of(message_ids), outbox.c.state == INTENDED

    def _is_one_of(self, message_ids: Sequence[str]) -> sa.ColumnElement[bool]:
        if self._engine.dialect.name == "postgresql":
            # One parameter, however many there are: `IN` would be spelt out again each time.
            return outbox.c.message_id == sa.any_(sa.cast(list(message_ids), ARRAY(sa.Text)))
        return outbox.c.message_id.in_(message_ids)
