"""Questions to the Delta table of user activity, and the replacing of the rows of some offsets.

Every question names days, hours or offsets, by which the table's log leaves files out that cannot have such rows.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from ingest_project.errors import TransactionConflict
from ingest_project.stores.delta_failures import delta_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa

    from ingest_project.stores.delta_tables import DeltaStore

REPLACE_TRIES = 8
LONGEST_PAUSE_SECONDS = 2.0


class Offsets(NamedTuple):
    """Offsets of one partition in one life of a topic: from `first` up to, not including, `end`."""

    topic: str
    generation: str
    partition: int
    first: int
    end: int

    @property
    def condition(self) -> str:
        """The rows of these offsets, in SQL."""
        return (
            f"kafka_topic = {_text(self.topic)} AND kafka_generation = {_text(self.generation)} AND"
            f" kafka_partition = {self.partition} AND kafka_offset >= {self.first} AND kafka_offset < {self.end}"
        )


def of_hours(first: datetime, end: datetime) -> str:
    """The rows of events from `first` up to, not including, `end`, in SQL."""
    days = ", ".join(_text(day) for day in _days(first, end))
    return (
        f"(event_day IN ({days}) OR event_day IS NULL)"
        f' AND "timestamp" >= {_text(first.isoformat())} AND "timestamp" < {_text(end.isoformat())}'
    )


def ask(store: DeltaStore, query: str) -> Iterator[pa.RecordBatch]:
    """The answer to a query over `events`, a few thousand rows at a time; nothing where there is no table yet.

    Raises:
        StoreUnavailable: the store does not answer or refused.
    """
    import pyarrow as pa  # noqa: PLC0415 - heavy
    from deltalake import QueryBuilder  # noqa: PLC0415

    table = store.opened()
    if table is None:
        return
    with delta_errors(store.place):
        for batch in QueryBuilder().register("events", table).execute(query):
            yield pa.record_batch(batch)


def rows_by_hour(store: DeltaStore, offsets: Offsets) -> dict[datetime, int]:
    """How many rows of some offsets are of which hour.

    Raises:
        StoreUnavailable: the store does not answer or refused.
    """
    query = (
        "SELECT date_trunc('hour', \"timestamp\") AS hour, count(*) AS events"
        f" FROM events WHERE {offsets.condition} GROUP BY 1"
    )
    return {row["hour"]: row["events"] for batch in ask(store, query) for row in batch.to_pylist()}


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
        TransactionConflict: events of the same days were appended each time; wait for a quieter time.
        StoreUnavailable: the store does not answer or refused.
    """
    for attempt in range(REPLACE_TRIES):
        try:
            return _replace(store, condition, rows)
        except TransactionConflict:
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
    with delta_errors(store.place):
        # Raises where a batch cannot be had: nothing is committed then.
        write_deltalake(
            table, pa.RecordBatchReader.from_batches(schema, batches), mode="overwrite", predicate=condition
        )
        table.update_incremental()
        return int(table.version())


def _days(first: datetime, end: datetime) -> Sequence[str]:
    count = (end - timedelta(microseconds=1)).date().toordinal() - first.date().toordinal() + 1
    return [(first.date() + timedelta(days=day)).isoformat() for day in range(count)]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
