"""Tables of the warehouse as the sink of a stream: rows and position are one transaction.

Should storing messages together fail, for a reason that the rules did not foresee or because the database refuses a
value, they are halved until the message is found that fails alone, which the target then keeps or dead-letters with the
reason. The position follows each part: one message never stops the others, and no part is stored twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

import sqlalchemy as sa
import stamina

from ingest_project.core.errors import IngestError, SettingsError, TransientError, UnexpectedError
from ingest_project.core.items import store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.platform.database import writing
from ingest_project.platform.errors import sqlstate
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.runtime import Runtime
from ingest_project.streams.engine import Batch
from ingest_project.streams.positions import PositionConflictError, SinkPosition, StreamPositions, enter_lost, move

logger = get_logger(__name__)

CHUNK_MESSAGES = 5_000
# A run that waits longer would only occupy a slot: a tick requests the rest again minutes later.
PATIENCE_SECONDS = 60.0
# PostgreSQL's error classes of refused values: malformed, against a constraint, beyond a limit of the server.
REFUSALS = ("22", "23", "54")


class Decoded(Protocol):
    """Rows made of messages."""

    @property
    def messages(self) -> Sequence[ConsumerRecord]:
        """All of them, in their order."""


Rows = TypeVar("Rows", bound=Decoded)


class SqlTarget(Protocol[Rows]):
    """Decodes the messages of a stream, and stores them in its tables."""

    def prepare(self) -> None:
        """Create or extend the tables, before partitions are resumed."""

    def decode(self, messages: Sequence[ConsumerRecord], position: SinkPosition) -> Rows:
        """Turn messages of a partition into rows. No message makes it fail."""

    def refused(self, message: ConsumerRecord, position: SinkPosition, error: Exception) -> Rows:
        """Return what is stored of a message that the database refuses; what it publishes is published once."""

    def store(self, connection: sa.Connection, rows: Rows, now: datetime) -> Counter[str]:
        """Store rows in the caller's transaction; returns the number of messages by outcome."""


class SqlSink(Generic[Rows]):
    """Stores rows in the transaction of the position.

    Args:
        services: the database.
        target: the tables.
    """

    chunk_messages = CHUNK_MESSAGES
    processes = 1
    operation = "upsert"

    def __init__(self, services: Runtime, target: SqlTarget[Rows]) -> None:
        self._services, self._target = services, target

    def prepare(self, positions: Sequence[SinkPosition]) -> None:
        """Let the target prepare its tables; positions and rows are in one database."""
        self._target.prepare()

    def resume(self, position: SinkPosition) -> SinkPosition:
        """Return the current position: the target moves it back if its table was missing."""
        positions = StreamPositions(self._services.engine, position.stream, position.topic)
        now = positions.current().get(position.partition, position)
        return now if now.topic_id == position.topic_id else position

    def decode(self, messages: Sequence[ConsumerRecord], position: SinkPosition) -> Rows:
        """Turn messages into rows."""
        return self._target.decode(messages, position)

    def is_full(self, batch: Batch[Rows]) -> bool:
        """Store each chunk that was read."""
        return bool(batch.rows)

    def store(self, batch: Batch[Rows], position: SinkPosition) -> SinkPosition:
        """Store one chunk; see `Sink.store`."""
        storing = _Storing(self._services, self._target, batch, position)
        if storing.messages:
            rows = range(len(storing.messages))
            store_bisecting(rows, storing.part, lambda error: isinstance(error, _RefusedMessagesError))
        else:
            storing.part([])
        return storing.position


class _RefusedMessagesError(Exception):
    """Some of the messages cannot be stored."""


class _Storing(Generic[Rows]):
    """One batch on its way into the tables, some of its messages at a time, in their order."""

    def __init__(self, services: Runtime, target: SqlTarget[Rows], batch: Batch[Rows], position: SinkPosition) -> None:
        self._services, self._target, self._batch = services, target, batch
        self._found = batch.rows[0] if batch.rows else target.decode([], position)
        self.messages = self._found.messages
        self.position = position

    def part(self, rows: Sequence[int]) -> None:
        """Store neighbouring messages, given by their numbers; a single one that is refused is left to the target.

        Raises:
            _RefusedMessagesError: the database refuses some of several messages.
        """
        messages = [self.messages[row] for row in rows]
        is_whole = len(messages) == len(self.messages)
        found = self._found if is_whole else self._target.decode(messages, self.position)
        next_row = rows[-1] + 1 if rows else 0
        try:
            self._commit(found, next_row)
        except Exception as error:
            if not may_be_a_messages_fault(error) or not messages:
                raise
            if len(messages) > 1:
                raise _RefusedMessagesError from error
            self._commit(self._target.refused(messages[0], self.position, error), next_row)

    def _commit(self, found: Rows, next_row: int) -> None:
        retries = self._services.settings.retries
        for attempt in stamina.retry_context(
            on=lambda error: isinstance(error, TransientError) and not isinstance(error, PositionConflictError),
            attempts=retries.max_attempts,
            timeout=PATIENCE_SECONDS,
            wait_initial=retries.delay_seconds,
            wait_max=retries.max_delay_seconds,
            wait_jitter=retries.delay_seconds,
        ):
            with attempt:
                self.position = self._transaction(found, next_row)

    def _transaction(self, found: Rows, next_row: int) -> SinkPosition:
        now, position, is_last = datetime.now(UTC), self.position, next_row == len(self.messages)
        with writing(self._services.engine) as connection:
            outcome = self._target.store(connection, found, now)
            if is_last:
                enter_lost(connection, position.stream, self._batch.lost)
                outcome += self._batch.outcome
            to = self._batch.next_offset if is_last else self.messages[next_row].offset
            seconds = self._batch.seconds(now) if is_last else None
            return move(connection, position, to, outcome, now, seconds=seconds)


def may_be_a_messages_fault(error: Exception) -> bool:
    """Test whether one message may have caused an error, and not the tables, the connection or a concurrent writer."""
    if isinstance(error, SettingsError | TransientError):
        return False
    if isinstance(error, sa.exc.DBAPIError) and not isinstance(error, sa.exc.DataError | sa.exc.IntegrityError):
        return sqlstate(error).startswith(REFUSALS)
    return True


def reason_of(error: Exception) -> tuple[str, str]:
    """Return why a message could not be stored, and the class of that error."""
    if isinstance(error, sa.exc.DBAPIError):
        cause = next(iter(str(error.orig or error).splitlines()), type(error).__name__)
        return f"The database refuses it: {cause[:300]}", type(error).__name__
    if not isinstance(error, IngestError):
        logger.error("storing_failed_unexpectedly", exc_info=error)
        error = UnexpectedError("Storing the message", error)
    return str(error), error.error_class
