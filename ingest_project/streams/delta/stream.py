"""A stream whose sink is a Delta table, and the names and bounds that its readers and writers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from ingest_project.platform.delta.table import DeltaStore
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.consume import Refused, dead_letter_message
from ingest_project.streams.delta.rows import StreamRows, hours_in
from ingest_project.streams.hours import FIRST_HOUR, StreamHours
from ingest_project.streams.positions import StreamPositions, TopicPartition

# Messages to decode at a time: a chunk holds them as objects, a commit as columns.
CHUNK_MESSAGES = 10_000
LOCK_WAIT_SECONDS = 900.0


@dataclass(frozen=True)
class DeltaStream:
    """A topic, a Delta table, and how a message becomes a row.

    Args:
        services: Kafka and the database.
        name: of the stream, in positions and in the table's own positions.
        topic: of the messages.
        dead_letter_topic: of the messages that are no rows.
        store: the table.
        lock: replacing, recovering and maintenance take turns: each looks at rows or files that another may change.
        decode: turns messages of a topic, given by its id, into rows. No message makes it fail.
        schema_of: returns the columns of the rows.
        time_column: when it happened.
        commit_messages: most messages of one commit.
        processes: in how many processes `decode` may be called, see `parallel`.
        first_hour: an earlier time is no partition.
        evolved: returns the further columns of text of the table.
    """

    services: Runtime
    name: str
    topic: str
    dead_letter_topic: str
    store: DeltaStore
    lock: str
    decode: Callable[[Sequence[ConsumerRecord], str], StreamRows]
    schema_of: Callable[[], pa.Schema]
    time_column: str = "timestamp"
    commit_messages: int = 50_000
    processes: int = 1
    first_hour: datetime = FIRST_HOUR
    evolved: Callable[[], Sequence[str]] = tuple

    @property
    def positions(self) -> StreamPositions:
        """Positions of the stream."""
        return StreamPositions(self.services.engine, self.name, self.topic)

    @property
    def hours(self) -> StreamHours:
        """Hours whose rows changed."""
        return StreamHours(self.services.engine, self.name)

    def app_id_of(self, partition: TopicPartition) -> str:
        """Return the name under which the table keeps its position in a partition."""
        return f"ingest_project/{self.name}/{partition.topic}/{partition.topic_id}/{partition.partition}"

    def dead_letter(self, refused: Sequence[Refused], topic_id: str) -> None:
        """Publish messages that are no rows, each once."""
        dead_letter_message(self.services, self.dead_letter_topic, refused, topic_id)

    def no_rows(self) -> pa.Table:
        """Return a table without rows: a commit of it moves the position."""
        return self.schema_of().empty_table()

    def schema_with_evolved(self) -> pa.Schema:
        """Return the columns of the rows, those that drift has added to the table included."""
        return pa.schema([*self.schema_of(), *((name, pa.string()) for name in self.evolved())])

    def hours_of(self, table: pa.Table) -> dict[datetime, int]:
        """Count the rows of each hour that is, or soon will be, a partition."""
        return hours_in(table, self.time_column, self.first_hour)
