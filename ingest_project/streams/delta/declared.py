"""A declared stream whose rows are appended to a Delta table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import pyarrow as pa

from ingest_project.contracts import trace_id_in
from ingest_project.core.settings import Settings
from ingest_project.platform.delta import delta_credentials
from ingest_project.platform.delta.table import DeltaStore, open_delta_table
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.runtime import Runtime
from ingest_project.streams.contract import Contract
from ingest_project.streams.declaration import DeltaTarget, StreamDeclaration
from ingest_project.streams.delta.rows import (
    StreamRows,
    days_of,
    decode_bisecting,
    hours_in,
    hours_of_day,
    position_columns,
    table_schema,
)
from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.hours import DAY, FIRST_HOUR
from ingest_project.streams.parallel import processes_of

HOUR = "event_hour"
STRING = 'PrimitiveType("string")'


def declared_delta_stream(declaration: StreamDeclaration, services: Runtime) -> DeltaStream:
    """Return the stream. Its decoder is made when the first messages are decoded."""
    sink = declaration.sink
    assert isinstance(sink, DeltaTarget)  # noqa: S101 - the caller chose by it
    by = (DAY,) if sink.partition_by == "day" else (DAY, HOUR)
    url = declaration.delta_url(services.settings)
    ids = ("trace_id", *declaration.id_columns)
    store = open_delta_table(url, delta_credentials(services.settings), partition_by=by, looked_up_by=ids)
    rows, own = _Rows(declaration, services.settings, store), declaration.own_decoder()
    return DeltaStream(
        services=services,
        name=declaration.name,
        topic=declaration.topic,
        dead_letter_topic=declaration.dlq,
        store=store,
        lock=f"stream_{declaration.name}",
        decode=own or rows.decode,
        schema_of=lambda: schema_of(declaration),
        time_column=declaration.time_column,
        commit_messages=sink.commit_messages,
        processes=processes_of(declaration.max_parallel_batches, services.settings.kafka) if own else 1,
        evolved=rows.evolved,
    )


def schema_of(declaration: StreamDeclaration) -> pa.Schema:
    """Return the columns of the table, those that were evolved left out."""
    by_hour = isinstance(declaration.sink, DeltaTarget) and declaration.sink.partition_by == "hour"
    more = [(HOUR, pa.string())] if by_hour else []
    return pa.schema([*table_schema(declaration.typed_columns, declaration.rescued), *more])


class _Rows:
    """Messages to rows of the table. A message without a value is left out."""

    def __init__(self, declaration: StreamDeclaration, settings: Settings, store: DeltaStore) -> None:
        self._declaration, self._settings, self._store = declaration, settings, store

    @cached_property
    def _contract(self) -> Contract:
        return Contract(self._declaration, self._settings, self._columns_of_table)

    @cached_property
    def _schema(self) -> pa.Schema:
        return schema_of(self._declaration)

    def evolved(self) -> list[str]:
        """Return the columns that drift has added to the table."""
        texts, _ = self._columns_of_table()
        return sorted(texts - set(self._schema.names)) if self._declaration.drift == "evolve" else []

    def decode(self, messages: Sequence[ConsumerRecord], topic_id: str) -> StreamRows:
        """Turn messages of a topic, given by its id, into rows."""
        filled = [message for message in messages if message.value is not None]
        return decode_bisecting(filled, self._schema, lambda part: self._decode(part, topic_id))

    def _decode(self, messages: Sequence[ConsumerRecord], topic_id: str) -> StreamRows:
        rows = self._contract.rows_of(messages)
        columns = position_columns(rows.messages, topic_id)
        columns |= {name: rows.table[name].combine_chunks() for name in rows.table.column_names}
        traces = [trace_id_in(one.headers) if one.headers else None for one in rows.messages]
        columns["trace_id"] = pa.array(traces, pa.string())
        moments = columns[self._declaration.time_column]
        columns[DAY] = days_of(moments, columns["kafka_timestamp"], FIRST_HOUR)
        if HOUR in self._schema.names:
            columns[HOUR] = hours_of_day(moments, columns[DAY])
        evolved = [pa.field(name, pa.string()) for name in columns if name not in self._schema.names]
        schema = pa.schema([*self._schema, *evolved])
        table = pa.table([columns[name] for name in schema.names], schema=schema)
        # Storing the rows needs their hours: a row without one must be found here.
        hours_in(table, self._declaration.time_column, FIRST_HOUR)
        return StreamRows(table, list(rows.refused))

    def _columns_of_table(self) -> tuple[set[str], set[str]]:
        table = self._store.opened()
        fields = [] if table is None else table.schema().fields
        texts = {one.name for one in fields if str(one.type) == STRING}
        return texts, {one.name for one in fields}
