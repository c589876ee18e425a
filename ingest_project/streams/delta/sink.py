"""A Delta table as the sink of a stream.

Every commit carries the position to which it brings the table in its partition, and is made only where the table is
just before it: killed, repeated or run twice at the same time, it stores the same rows. A message without a row is
published as a dead letter before the commit that passes it. The row of `sink_positions` and the marks of changed hours
follow each commit in their own transaction; after a kill in between, the next run finds the table ahead and adds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from ingest_project.core.errors import PermanentError, TransactionConflictError
from ingest_project.core.logging import get_logger
from ingest_project.platform.database import exclusive, writing
from ingest_project.platform.delta.table import Standing, query_events
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.delta.appending import Appended, AppendTarget, append_bisecting
from ingest_project.streams.delta.queries import of_offsets, rows_by_hour
from ingest_project.streams.delta.recovery import Recovered, is_in_doubt, recover
from ingest_project.streams.delta.rows import StreamRows
from ingest_project.streams.delta.stream import CHUNK_MESSAGES, LOCK_WAIT_SECONDS, DeltaStream
from ingest_project.streams.engine import Batch
from ingest_project.streams.hours import add_spans, count_changes
from ingest_project.streams.positions import OffsetRange, PositionConflictError, SinkPosition, move

logger = get_logger(__name__)

COMMIT_BYTES = 64 * 1024**2
LAST_OFFSET = 2**63 - 1
# Outcomes of messages: committed by the run, found in the table, no event or refused by the table.
EVENTS, FOUND_STORED, DEAD_LETTERS = "events", "found_stored", "dead_letters"


class DeltaSink:
    """Appends rows in commits that carry the position. One object per run.

    Args:
        stream: the stream that the rows belong to.
    """

    operation = "append"

    def __init__(self, stream: DeltaStream) -> None:
        self.stream = stream
        self._commit_rows = stream.commit_messages
        self.chunk_messages = min(CHUNK_MESSAGES, self._commit_rows)
        self.processes = stream.processes
        self._standings: dict[str, Standing] = {}
        # The position of the table in each partition; None where it has none yet.
        self._table_positions: dict[int, int | None] = {}
        self.hours: Counter[datetime] = Counter()
        self.recovered = Recovered()
        self.table_version: int | None = None

    def prepare(self, positions: Sequence[SinkPosition]) -> None:
        """Read the standing of the table, once for all partitions."""
        app_ids = [self.stream.app_id_of(one.topic_partition) for one in positions]
        self._standings = self.stream.store.standings(app_ids)

    def resume(self, position: SinkPosition) -> SinkPosition:
        """Recover the rows that the table lacks, and return its position.

        Raises:
            TransactionConflictError: another process recovers rows; try again later.
            TransientError: a service was away. What was recovered until then stays.
        """
        app_id = self.stream.app_id_of(position.topic_partition)
        standing = self._standings[app_id]
        table_position = standing.position
        if table_position is not None and table_position > position.next_offset:
            found = rows_by_hour(self.stream.store, position.until(table_position), self.stream.time_column)
            position = self._record(position, table_position, found, Counter({FOUND_STORED: sum(found.values())}))
        if is_in_doubt(standing, position):
            with exclusive(self.stream.services.engine, self.stream.lock, LOCK_WAIT_SECONDS):
                self.recovered.add(recover(self.stream, position))
            table_position = self.stream.store.committed_version(app_id)
        self._table_positions[position.partition] = table_position
        return position

    def _require_no_rows(self, position: SinkPosition) -> None:
        """Refuse a table that has rows of a partition, and no position of this stream: all would be there twice.

        Raises:
            PermanentError: another stream has stored them, or this one under another name.
        """
        whole = OffsetRange(*position.topic_partition, 0, LAST_OFFSET)
        query = f"SELECT kafka_offset FROM events WHERE {of_offsets(whole)} LIMIT 1"
        has_rows = any(batch.num_rows for batch in query_events(self.stream.store, query))
        # Another run of this stream may have stored them just now.
        if has_rows and self.stream.store.committed_version(self.stream.app_id_of(position.topic_partition)) is None:
            raise PermanentError(
                f"The table {self.stream.store.url} has rows of {position} that another stream has stored, or this one"
                " under its former name. Give it that name again, or name another table as sink.delta."
            )

    def decode(self, messages: Sequence[ConsumerRecord], position: SinkPosition) -> StreamRows:
        """Turn messages into rows."""
        return self.stream.decode(messages, position.topic_id)

    def is_full(self, batch: Batch[StreamRows]) -> bool:
        """Return whether there are enough messages for a commit."""
        refused = (message.value or b"" for rows in batch.rows for message, _ in rows.refused)
        size_bytes = sum(rows.table.nbytes for rows in batch.rows) + sum(map(len, refused))
        return bool(batch.messages >= self._commit_rows or size_bytes >= COMMIT_BYTES)

    def store(self, batch: Batch[StreamRows], position: SinkPosition) -> SinkPosition:
        """Publish dead letters, commit rows with the position, then note it in the database; see `Sink.store`."""
        self.stream.positions.add_lost(batch.lost)
        for rows in batch.rows:
            self.stream.dead_letter(rows.refused, position.topic_id)
        done = self._append(batch, position)
        self.table_version = done.table_version or self.table_version
        outcome, is_new = batch.outcome, done.table_version is not None
        outcome[EVENTS if is_new else FOUND_STORED] += done.rows.num_rows
        outcome[DEAD_LETTERS] += len(done.refused) + sum(len(rows.refused) for rows in batch.rows)
        self._table_positions[batch.partition] = batch.next_offset
        logger.info("events_committed", offsets=str(position.until(batch.next_offset)), rows=done.rows.num_rows)
        seconds = batch.seconds(datetime.now(UTC)) if is_new else None
        return self._record(position, batch.next_offset, self.stream.hours_of(done.rows), outcome, seconds)

    def _append(self, batch: Batch[StreamRows], position: SinkPosition) -> Appended:
        from ingest_project.streams.delta.rows import with_few_days

        tables = [rows.table for rows in batch.rows] or [self.stream.no_rows()]
        table = with_few_days(pa.concat_tables(tables, promote_options="default"))

        def position_at(row: int) -> int:
            return batch.next_offset if row == table.num_rows else int(table["kafka_offset"][row].as_py())

        app_id, after = self.stream.app_id_of(position.topic_partition), self._table_positions[batch.partition]
        if after is None and self._standings[app_id].table_version >= 0:
            self._require_no_rows(position)
        checked = max(0, self._standings[app_id].table_version)
        target = AppendTarget(position.topic_partition, app_id, after, position_at, checked)
        try:
            return append_bisecting(self.stream, table, target)
        except TransactionConflictError as conflict:
            if self.stream.store.committed_version(app_id) != after:
                raise PositionConflictError(str(position), conflict) from conflict
            raise

    def _record(
        self,
        position: SinkPosition,
        to: int,
        hours: Mapping[datetime, int],
        outcome: Counter[str],
        seconds: Mapping[str, float] | None = None,
    ) -> SinkPosition:
        """Note in the database where the table is, and which hours changed."""
        now = datetime.now(UTC)
        with writing(self.stream.services.engine) as connection:
            moved = move(connection, position, to, outcome, now, seconds=seconds)
            count_changes(connection, self.stream.name, hours, now)
            add_spans(connection, self.stream.name, position.until(to), hours)
        self.hours.update(hours)
        return moved
