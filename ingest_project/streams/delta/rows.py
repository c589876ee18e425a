"""Rows of a Delta table made of messages: the columns that every stream has, and the bounds of one commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest_project.contracts.columns import StreamColumn
from ingest_project.core.errors import PermanentError, SchemaConflictError, UnreadableMessageError
from ingest_project.core.items import end_of
from ingest_project.core.logging import get_logger
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.decoders import decode_apart
from ingest_project.streams.hours import DAY, hours_between
from ingest_project.streams.values import BEGINNING, INSTANT, arrow_type

logger = get_logger(__name__)

# A sender's clock may be wrong: a time further ahead of the broker's gets no partition of its own.
MAX_AHEAD = timedelta(days=1)
# A commit writes a file for each day, and senders choose the days.
MAX_DAYS_PER_COMMIT = 32
LAST_MILLISECOND = 253_402_300_799_999
HOUR_MICROSECONDS = 3_600_000_000

POSITION_FIELDS = [
    ("kafka_topic", pa.string()),
    ("kafka_topic_id", pa.string()),
    ("kafka_partition", pa.int32()),
    ("kafka_offset", pa.int64()),
    ("kafka_timestamp", INSTANT),
    ("trace_id", pa.string()),
    (DAY, pa.string()),
]


def table_schema(columns: Sequence[StreamColumn], rescued: str) -> pa.Schema:
    """Return the columns of a table.

    Args:
        columns: the columns that are declared.
        rescued: name of the column with the fields that are not.
    """
    declared = [(column.name, arrow_type(column)) for column in columns]
    return pa.schema([*declared, (rescued, pa.string()), *POSITION_FIELDS])


RefusedMessage = tuple[ConsumerRecord, PermanentError | UnreadableMessageError]


@dataclass(frozen=True)
class StreamRows:
    """Rows and refused messages.

    Args:
        table: a row each for the readable ones.
        refused: the others, with the reason.
    """

    table: pa.Table
    refused: list[RefusedMessage]


def decode_bisecting(
    messages: Sequence[ConsumerRecord], schema: pa.Schema, decode: Callable[[Sequence[ConsumerRecord]], StreamRows]
) -> StreamRows:
    """Decode messages; one with an unexpected error is found by halving, and refused alone.

    Raises:
        TransientError: a service that decoding needs is away.
    """
    found: list[StreamRows] = []
    refused = decode_apart(messages, lambda part: found.append(decode(part)))
    refused += [one for rows in found for one in rows.refused]
    tables = [rows.table for rows in found] or [schema.empty_table()]
    refused.sort(key=lambda one: (one[0].partition, one[0].offset))
    return StreamRows(pa.concat_tables(tables, promote_options="default"), refused)


def position_columns(messages: Sequence[ConsumerRecord], topic_id: str) -> dict[str, pa.Array]:
    """Return the columns that say which message a row is from."""
    count = len(messages)
    topics = list(map(attrgetter("topic"), messages))
    return {
        "kafka_topic": _repeat(topics[0], count) if len(set(topics)) == 1 else pa.array(topics, pa.string()),
        "kafka_topic_id": _repeat(topic_id, count),
        "kafka_partition": pa.array(np.fromiter(map(attrgetter("partition"), messages), np.int32, count)),
        "kafka_offset": pa.array(np.fromiter(map(attrgetter("offset"), messages), np.int64, count)),
        "kafka_timestamp": pa.array(_timestamps_of(messages), pa.timestamp("ms", tz="UTC")).cast(INSTANT),
    }


def _repeat(text: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), count)


def _timestamps_of(messages: Sequence[ConsumerRecord]) -> Sequence[int | None]:
    """Return when messages were written, in milliseconds since 1970; None outside the calendar."""
    written = list(map(attrgetter("timestamp_ms"), messages))
    if None not in written and written and min(written) >= 0 and max(written) <= LAST_MILLISECOND:
        return written
    return [ms if ms is not None and 0 <= ms <= LAST_MILLISECOND else None for ms in written]


def days_of(moments: pa.Array, written: pa.Array, first: datetime) -> pa.Array:
    """Return the day of each row, `yyyy-mm-dd`; null if impossible: before the first partition, or tomorrow."""
    not_before = pc.greater_equal(moments, pa.scalar(first, INSTANT))
    latest = pc.add(pc.fill_null(written, datetime.now(UTC)), pa.scalar(MAX_AHEAD, pa.duration("us")))
    is_possible, no_day = pc.and_(not_before, pc.less_equal(moments, latest)), pa.scalar(None, pa.string())
    return pc.if_else(is_possible, moments.cast(pa.date32()).cast(pa.string()), no_day)


def hours_of_day(moments: pa.Array, days: pa.Array) -> pa.Array:
    """Return the hour of each row, `00` to `23`; null for a row without a day."""
    hours = pc.strftime(moments, format="%H")
    return pc.if_else(pc.is_valid(days), hours, pa.scalar(None, pa.string()))


def aligned(table: pa.Table, schema: pa.Schema, url: str) -> pa.Table:
    """Return rows with the columns of a schema, null where they have none of a name.

    Raises:
        SchemaConflictError: they have a column that the schema lacks: another program removed it from the table.
    """
    for name in table.column_names:
        if name not in schema.names:
            raise SchemaConflictError(url, name, "another program removed it; store a message that has it first")
    nothing = schema.empty_table()
    return pa.concat_tables([nothing, table], promote_options="default")


def with_few_days(table: pa.Table) -> pa.Table:
    """Return the rows of one commit with a bounded number of days: those of its rarest days get none."""
    days = pc.value_counts(table[DAY].combine_chunks())
    if len(days) <= MAX_DAYS_PER_COMMIT:
        return table
    common = days.take(pc.sort_indices(days.field("counts"), sort_keys=[("", "descending")])[:MAX_DAYS_PER_COMMIT])
    is_common = pc.is_in(table[DAY], value_set=common.field("values"))
    kept = pc.if_else(is_common, table[DAY], pa.scalar(None, pa.string()))
    return table.set_column(table.schema.get_field_index(DAY), table.schema.field(DAY), kept)


def hours_in(table: pa.Table, time_column: str, first: datetime) -> dict[datetime, int]:
    """Count the rows of each hour that is, or soon will be, a partition."""
    moments = table[time_column].drop_null().cast(pa.int64()).to_numpy()
    # Whole numbers: Arrow's own rounding looks the time zone up for each row.
    hours, counts = np.unique(moments // HOUR_MICROSECONDS, return_counts=True)
    numbered = zip(hours.tolist(), counts.tolist(), strict=True)
    found = {BEGINNING + timedelta(hours=hour): count for hour, count in numbered}
    return {hour: found[hour] for hour in hours_between(found, first, datetime.now(UTC) + MAX_AHEAD)}


def of_hour(table: pa.Table, hour: datetime, time_column: str) -> pa.Table:
    """Return the rows of an hour."""
    begin, end = (pa.scalar(moment, INSTANT) for moment in (hour, end_of(hour)))
    moments = table[time_column]
    return table.filter(pc.and_(pc.greater_equal(moments, begin), pc.less(moments, end)))
