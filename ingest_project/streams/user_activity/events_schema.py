"""Questions to the Delta table of user activity, and the replacing of the rows of some offsets.

Every question names days, hours or offsets, by which the table's log leaves files out that cannot have such rows.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from ingest_project.core.errors import TransactionConflictError
from ingest_project.platform.delta.location import delta_errors
from ingest_project.platform.delta.table import DeltaStore, answer, ask

if TYPE_CHECKING:
    import pyarrow as pa

REPLACE_TRIES = 8
LONGEST_PAUSE_SECONDS = 2.0
MOST_OF_TRACE = 1_000
POSITION_COLUMNS = frozenset({"kafka_topic", "kafka_topic_id", "kafka_partition", "kafka_offset"})


class Offsets(NamedTuple):
    """Offsets of one partition in one life of a topic: from `first` up to, not including, `end`."""

    topic: str
    topic_id: str
    partition: int
    first: int
    end: int

    @property
    def condition(self) -> str:
        """The rows of these offsets, in SQL."""
        return (
            f"kafka_topic = {_text(self.topic)} AND kafka_topic_id = {_text(self.topic_id)} AND"
            f" kafka_partition = {self.partition} AND kafka_offset >= {self.first} AND kafka_offset < {self.end}"
        )


def of_hours(first: datetime, end: datetime) -> str:
    """The rows of events from `first` up to, not including, `end`, in SQL."""
    days = ", ".join(_text(day) for day in _days(first, end))
    return (
        f"(event_day IN ({days}) OR event_day IS NULL)"
        f' AND "timestamp" >= {_text(first.isoformat())} AND "timestamp" < {_text(end.isoformat())}'
    )


def rows_by_hour(store: DeltaStore, offsets: Offsets) -> dict[datetime, int]:
    """How many rows of some offsets are of which hour.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    import pyarrow.compute as pc  # noqa: PLC0415 - heavy

    found: Counter[datetime] = Counter()
    # Not SQL's own date_trunc: it fails for the ends of the calendar, and with it for every row around them.
    for batch in ask(store, f'SELECT "timestamp" FROM events WHERE {offsets.condition}'):
        for count in pc.value_counts(pc.floor_temporal(batch["timestamp"], unit="hour")).to_pylist():
            found[count["values"].astimezone(UTC)] += count["counts"]
    return dict(found)


def stored_offsets(store: DeltaStore, offsets: Offsets) -> list[int]:
    """Which of some offsets have a row, in order. All of them are in memory at once.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    query = f"SELECT DISTINCT kafka_offset FROM events WHERE {offsets.condition} ORDER BY 1"
    return [offset for batch in _ask_of(store, POSITION_COLUMNS, query) for offset in batch["kafka_offset"].to_pylist()]


def count_offsets(store: DeltaStore, offsets: Offsets, size: int) -> dict[int, int]:
    """How many of some offsets have a row, by pieces of so many offsets; a piece is named by its first multiple.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    counted = f"kafka_offset / {size} AS piece, count(DISTINCT kafka_offset) AS offsets"
    query = f"SELECT {counted} FROM events WHERE {offsets.condition} GROUP BY 1"
    return {
        row["piece"] * size: row["offsets"]
        for batch in _ask_of(store, POSITION_COLUMNS, query)
        for row in batch.to_pylist()
    }


def events_of_trace(store: DeltaStore, trace_id: str) -> list[dict[str, Any]]:
    """The events of a trace, at most MOST_OF_TRACE, in the order in which they were written to Kafka.

    Goes through the whole table: a trace says nothing of the day.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    columns = 'event_id, event_type, "timestamp", kafka_topic, kafka_partition, kafka_offset, kafka_timestamp'
    query = f"SELECT {columns} FROM events WHERE trace_id = {_text(trace_id)} LIMIT {MOST_OF_TRACE}"
    found = [row for batch in _ask_of(store, {"trace_id"}, query) for row in batch.to_pylist()]
    return sorted(found, key=lambda row: (row["kafka_timestamp"] or row["timestamp"], row["kafka_offset"]))


def _ask_of(store: DeltaStore, columns: AbstractSet[str], query: str) -> Iterator[pa.RecordBatch]:
    """Ask, where the table has these columns: it may be older than one, or somebody else's."""
    table = store.opened()
    if table is not None and {field.name for field in table.schema().fields} >= columns:
        yield from answer(store, table, query)


def replace(
    store: DeltaStore, condition: str, rows: Callable[[], tuple[pa.Schema, Iterator[pa.RecordBatch]]]
) -> int | None:
    """Put rows in the place of all that meet a condition, in one commit; the second time it is the same.

    Args:
        store: of the table.
        condition: SQL that all the rows meet as well.
        rows: gives them, once a try.

    Returns:
        the version of the table that has them; None where there is no table yet.

    Raises:
        TransactionConflictError: events of the same days were appended each time; wait for a quieter time.
        StoreUnavailableError: the store does not answer or refused.
    """
    for attempt in range(REPLACE_TRIES):
        try:
            return _replace(store, condition, rows)
        except TransactionConflictError:
            if attempt + 1 == REPLACE_TRIES:
                raise
        time.sleep(random.uniform(0.5, 1) * min(LONGEST_PAUSE_SECONDS, 0.1 * 2**attempt))  # noqa: S311 - no secret
    return None


def _replace(
    store: DeltaStore, condition: str, rows: Callable[[], tuple[pa.Schema, Iterator[pa.RecordBatch]]]
) -> int | None:
    import pyarrow as pa  # noqa: PLC0415 - heavy
    from deltalake import write_deltalake  # noqa: PLC0415

    table = store.opened()
    if table is None:
        return None
    schema, batches = rows()
    with delta_errors(store.location):
        # Raises where a batch cannot be had: nothing is committed then.
        write_deltalake(
            table,
            pa.RecordBatchReader.from_batches(schema, batches),
            mode="overwrite",
            predicate=condition,
            # The table may be older than a column of ours, or have one of somebody else's.
            schema_mode="merge",
        )
        table.update_incremental()
        return int(table.version())


def _days(first: datetime, end: datetime) -> Sequence[str]:
    count = (end - timedelta(microseconds=1)).date().toordinal() - first.date().toordinal() + 1
    return [(first.date() + timedelta(days=day)).isoformat() for day in range(count)]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
