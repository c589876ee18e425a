"""Append rows to the Delta table: a row that the table refuses becomes a dead letter, and the others are stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from ingest_project.core.errors import (
    BrokerUnavailableError,
    IngestError,
    PermanentError,
    UnexpectedError,
    UnreadableMessageError,
)
from ingest_project.core.items import store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.platform.delta import may_be_a_rows_fault, reason_of
from ingest_project.platform.delta.table import Committed
from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.engine import CHUNK_BYTES
from ingest_project.streams.positions import TopicPartition

logger = get_logger(__name__)

MAX_REFUSED_FROM_THE_FIRST = 10


@dataclass
class Appended:
    """The result of appending rows.

    Args:
        rows: the rows that the table has now.
        table_version: version of the last commit; None: the table had the rows already.
        refused: offsets of rows that the table refused; they are dead letters.
    """

    rows: pa.Table
    table_version: int | None = None
    refused: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class AppendTarget:
    """Target of an append.

    Args:
        partition: Kafka partition of the rows.
        app_id: application id under which the table keeps its position.
        after: position of the table before the rows.
        position_at: returns the position of the table once all rows before a row, given by its number, are stored.
        checked: version of the table that was last found complete.
    """

    partition: TopicPartition
    app_id: str
    after: int | None
    position_at: Callable[[int], int]
    checked: int | None = None


def append_bisecting(stream: DeltaStream, table: pa.Table, target: AppendTarget) -> Appended:
    """Append rows in one commit; where they are refused, in more, until the refused row is alone.

    Each commit begins where the one before it ended. The dead letter of a refused row is published before the commit
    that passes its offset: killed anywhere, the same call continues.

    Args:
        stream: the stream that the rows belong to.
        table: rows in the order of their offsets.
        target: where they go.

    Raises:
        IngestError: the store, its schema or another writer was in the way, and no row.
    """
    append = _Append(stream, table, target)
    if table.num_rows:
        store_bisecting(range(table.num_rows), append.part, lambda error: isinstance(error, _RefusedRowsError))
    else:
        append.commit(0, 0, 0)
    append.done.rows = _without(table, append.done.refused)
    return append.done


class _RefusedRowsError(Exception):
    """Some of the rows cannot be stored."""


class _Append:
    """Rows on their way into the table, some of them at a time."""

    def __init__(self, stream: DeltaStream, table: pa.Table, target: AppendTarget) -> None:
        self._stream, self._table, self._target = stream, table, target
        self._reached, self._accepted = target.after, 0
        self.done = Appended(table)

    def commit(self, first: int, count: int, next_row: int) -> None:
        """Commit some rows, or none, and move the position to the next one."""
        target, position = self._target, self._target.position_at(next_row)
        rows = self._table.slice(first, count)
        committed = self._stream.store.append(
            rows, app_id=target.app_id, version=position, after=self._reached, checked=target.checked
        )
        if isinstance(committed, Committed):
            self.done.table_version = committed.table_version
        self._reached = position
        self._accepted += count

    def part(self, rows: Sequence[int]) -> None:
        """Commit neighbouring rows; a single one that is refused becomes a dead letter.

        Raises:
            _RefusedRowsError: the table refuses some of several rows.
        """
        first, count, next_row = rows[0], len(rows), rows[-1] + 1
        try:
            self.commit(first, count, next_row)
        except Exception as error:
            if not self._is_row_fault(error, count):
                raise
            if count > 1:
                raise _RefusedRowsError from error
            self._single(first)

    def _is_row_fault(self, error: Exception, count: int) -> bool:
        """Blame a row only if the table takes a commit without these rows: its store may be away."""
        if not may_be_a_rows_fault(error):
            return False
        if count == 1 and not self._accepted and len(self.done.refused) >= MAX_REFUSED_FROM_THE_FIRST:
            # It accepts no row at all.
            return False
        is_certain = 1 < count < self._table.num_rows
        return is_certain or _takes_commits(self._stream, self._target.partition)

    def _single(self, row: int) -> None:
        """Retry one row, as the store may be back by now, and dead-letter it if it is refused again."""
        try:
            self.commit(row, 1, row + 1)
        except Exception as error:
            if not may_be_a_rows_fault(error):
                raise
            offset = self._table["kafka_offset"][row].as_py()
            _refuse(self._stream, self._target.partition, offset, error)
            self.done.refused.append(offset)
            self.commit(row, 0, row + 1)


def _without(table: pa.Table, offsets: Sequence[int]) -> pa.Table:
    if not offsets:
        return table
    return table.filter(pc.invert(pc.is_in(table["kafka_offset"], pa.array(offsets, pa.int64()))))


def _takes_commits(stream: DeltaStream, partition: TopicPartition) -> bool:
    """Try a commit without rows."""
    probe = f"{stream.app_id_of(partition)}/probe"
    try:
        stream.store.append(stream.no_rows(), app_id=probe, version=time.time_ns() // 1_000)
    except IngestError:
        return False
    return True


def _refuse(stream: DeltaStream, partition: TopicPartition, offset: int, error: Exception) -> None:
    """Publish the message of a row as a dead letter, with the reason of the table."""
    for chunk in stream.services.range_reader.read(*partition, offset, offset + 1, 1, CHUNK_BYTES):
        if chunk.lost:
            # Without its bytes there is no dead letter: the partition waits where a person sees it.
            reason = f"the message at {offset} is gone, and the table refuses its row"
            raise BrokerUnavailableError(stream.services.settings.kafka.bootstrap_servers, reason) from error
        refused = [(message, _refusal(error)) for message in chunk.messages]
        stream.dead_letter(refused, partition.topic_id)


def _refusal(error: Exception) -> PermanentError | UnreadableMessageError:
    if isinstance(error, IngestError):
        return UnreadableMessageError(f"The table refuses it: {reason_of(error.__cause__ or error)}.")
    logger.error("storing_failed_unexpectedly", exc_info=error)
    return UnexpectedError("Storing the message", error)
