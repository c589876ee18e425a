"""Query the Delta table of a stream, and replace the rows of some offsets.

Every query names days, hours or offsets, so that the statistics in the table's log exclude files without such rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import stamina
from deltalake import DeltaTable, write_deltalake

from ingest_project.core.errors import TransactionConflictError
from ingest_project.platform.delta import delta_errors
from ingest_project.platform.delta.table import ROWS_OF_GROUP, DeltaStore, look_ups, query_events, query_version
from ingest_project.streams.positions import OffsetRange

REPLACE_TRIES = 8
LONGEST_PAUSE_SECONDS = 2.0
PLACE_COLUMNS = ("kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp")
EARLIEST = datetime.min.replace(tzinfo=UTC)
POSITION_COLUMNS = frozenset({"kafka_topic", "kafka_topic_id", "kafka_partition", "kafka_offset"})


def of_offsets(offsets: OffsetRange) -> str:
    """Return the SQL condition for the rows of some offsets."""
    return (
        f"kafka_topic = {_text(offsets.topic)} AND kafka_topic_id = {_text(offsets.topic_id)} AND"
        f" kafka_partition = {offsets.partition}"
        f" AND kafka_offset >= {offsets.first} AND kafka_offset < {offsets.end}"
    )


def of_hours(first: datetime, end: datetime, time_column: str = "timestamp") -> str:
    """Return the SQL condition for the rows from `first` up to, not including, `end`."""
    days = ", ".join(_text(day) for day in _days(first, end))
    return (
        f"(event_day IN ({days}) OR event_day IS NULL)"
        f' AND "{time_column}" >= {_text(first.isoformat())} AND "{time_column}" < {_text(end.isoformat())}'
    )


def rows_by_hour(store: DeltaStore, offsets: OffsetRange, time_column: str = "timestamp") -> dict[datetime, int]:
    """Count the rows of some offsets by hour.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    found: Counter[datetime] = Counter()
    # Not SQL's own date_trunc: it fails for the ends of the calendar, and with it for every row around them.
    for batch in query_events(store, f'SELECT "{time_column}" FROM events WHERE {of_offsets(offsets)}'):
        for count in pc.value_counts(pc.floor_temporal(batch[time_column], unit="hour")).to_pylist():
            if count["values"] is not None:
                found[count["values"].astimezone(UTC)] += count["counts"]
    return dict(found)


def stored_offsets(store: DeltaStore, offsets: OffsetRange) -> list[int]:
    """Return those of some offsets that have a row, in order. All of them are in memory together.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    query = f"SELECT DISTINCT kafka_offset FROM events WHERE {of_offsets(offsets)} ORDER BY 1"
    return [offset for batch in _ask_of(store, POSITION_COLUMNS, query) for offset in batch["kafka_offset"].to_pylist()]


def count_offsets(store: DeltaStore, offsets: OffsetRange, size: int) -> dict[int, int]:
    """Count the offsets that have a row, by pieces of `size` offsets; a piece is named by its first multiple.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    counted = f"kafka_offset / {size} AS piece, count(DISTINCT kafka_offset) AS offsets"
    query = f"SELECT {counted} FROM events WHERE {of_offsets(offsets)} GROUP BY 1"
    batches = _ask_of(store, POSITION_COLUMNS, query)
    return {row["piece"] * size: row["offsets"] for batch in batches for row in batch.to_pylist()}


def rows_with(
    store: DeltaStore, columns: Sequence[str], values: Sequence[str], limit: int, shown: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows with one of a few values in the first of some columns that has any, in the order of messages.

    The columns need Bloom filters, by which files without the value are left out; without them all are read.

    Args:
        store: store of the table.
        columns: columns of text.
        values: to find, at most 20: filters do not count for more.
        limit: most rows by each column.
        shown: further columns to return.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    needed = (*columns, *shown, *PLACE_COLUMNS)
    table = _opened_with(store, set(needed))
    named = ", ".join(f'"{name}"' for name in dict.fromkeys(needed))
    if table is None:
        return []
    session = look_ups(table)
    # Use one query for each column: with OR, no Bloom filter would apply.
    for column in columns:
        query = f'SELECT {named} FROM events WHERE "{column}" IN ({", ".join(map(_text, values))}) LIMIT {limit}'
        for batch in query_version(store, table, query, session):
            found |= {tuple(row[name] for name in PLACE_COLUMNS): row for row in batch.to_pylist()}
        if found:
            break
    return sorted(found.values(), key=lambda row: (row["kafka_timestamp"] or EARLIEST, row["kafka_offset"]))


def row_at(store: DeltaStore, topic: str, partition: int, offset: int) -> list[dict[str, Any]]:
    """Return the whole row of a message; none where it has no row.

    Raises:
        StoreUnavailableError: the store does not answer or refused.
    """
    where = f"kafka_topic = {_text(topic)} AND kafka_partition = {partition} AND kafka_offset = {offset}"
    batches = _ask_of(store, POSITION_COLUMNS, f"SELECT * FROM events WHERE {where} LIMIT 1")
    return [row for batch in batches for row in batch.to_pylist()]


def _ask_of(store: DeltaStore, columns: AbstractSet[str], query: str) -> Iterator[pa.RecordBatch]:
    """Query the table if it has these columns."""
    if table := _opened_with(store, columns):
        yield from query_version(store, table, query)


def _opened_with(store: DeltaStore, columns: AbstractSet[str]) -> DeltaTable | None:
    """Open the table; None where it lacks one of these columns: it may be older than one, or another program's."""
    table = store.opened()
    return table if table is not None and {field.name for field in table.schema().fields} >= columns else None


def replace(
    store: DeltaStore, condition: str, rows: Callable[[], tuple[pa.Schema, Iterator[pa.RecordBatch]]]
) -> int | None:
    """Replace all rows that meet a condition, in one commit. Idempotent.

    Args:
        store: store of the table.
        condition: SQL that all the rows meet as well.
        rows: gives them, once a try.

    Returns:
        the version of the table that has them; None where there is no table yet.

    Raises:
        TransactionConflictError: events of the same days were appended each time; wait for a quieter time.
        StoreUnavailableError: the store does not answer or refused.
    """
    tries = stamina.retry_context(
        on=TransactionConflictError, attempts=REPLACE_TRIES, timeout=None, wait_max=LONGEST_PAUSE_SECONDS
    )
    for attempt in tries:
        with attempt:
            return _replace(store, condition, rows)
    return None


def _replace(
    store: DeltaStore, condition: str, rows: Callable[[], tuple[pa.Schema, Iterator[pa.RecordBatch]]]
) -> int | None:
    table = store.opened()
    if table is None:
        return None
    schema, batches = rows()
    with delta_errors(store.location):
        # If reading a batch fails, this raises and commits nothing.
        write_deltalake(
            table,
            pa.RecordBatchReader.from_batches(schema, batches),
            mode="overwrite",
            predicate=condition,
            # The table may lack a newer column of ours, or have a column of another program.
            schema_mode="merge",
            writer_properties=store.writer_properties(ROWS_OF_GROUP),
        )
        table.update_incremental()
        return int(table.version())


def _days(first: datetime, end: datetime) -> Sequence[str]:
    count = (end - timedelta(microseconds=1)).date().toordinal() - first.date().toordinal() + 1
    return [(first.date() + timedelta(days=day)).isoformat() for day in range(count)]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
