"""A declared stream whose rows are stored by key in a table of the warehouse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import compress
from typing import Any

import msgspec
import polars as pl
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.contracts import trace_id_in
from ingest_project.contracts.columns import StreamColumn
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.logging import get_logger
from ingest_project.platform.database.declared_tables import DeclaredTables, TableKind, columns_of_table, sql_type
from ingest_project.platform.database.sql import Json, UtcTime, in_parts, lookup_indexes
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.consume import dead_letter_message
from ingest_project.streams.contract import Contract
from ingest_project.streams.declaration import SqlTarget, StreamDeclaration
from ingest_project.streams.decoders import DECODERS, Refusal, decode_apart
from ingest_project.streams.delta.rows import position_columns
from ingest_project.streams.positions import SinkPosition, StreamPositions
from ingest_project.streams.sql.sink import reason_of
from ingest_project.streams.sql.upsert import KAFKA_ORDER, upsert_rows
from ingest_project.streams.values import array_of

logger = get_logger(__name__)

ROWS, ROWS_CHANGED, TOMBSTONES, DEAD_LETTERS = "rows", "rows_changed", "tombstones", "dead_letters"

KEYS_AT_A_TIME = 1_000
DELETED_AT = "deleted_at"
TABLES = TableKind(proof="kafka_offset", setting="sink.table")

# Headers that name the schema of a key and of a value, as Confluent's serializers write them.
KEY_SCHEMA, VALUE_SCHEMA = "__key_schema_id", "__value_schema_id"
# Columns that are stored for a tombstone.
POSITION = (*KAFKA_ORDER, "kafka_timestamp", "trace_id")


@dataclass
class KeyedRows:
    """Messages as rows by key.

    Args:
        messages: all of them, in their order.
        rows: rows of the messages with a value.
        deleted: keys and positions of the tombstones.
        refused: number of messages that became dead letters.
    """

    messages: Sequence[ConsumerRecord]
    rows: pl.DataFrame = field(default_factory=pl.DataFrame)
    deleted: pl.DataFrame = field(default_factory=pl.DataFrame)
    refused: int = 0


@dataclass
class _Versions:
    """Rows around the tombstones of their keys, to be stored one after the other.

    Args:
        before: rows before the first tombstone, or of keys without one.
        tombstones: the last one of each key.
        after: rows after a tombstone, which any row replaces: those between the same two as the last one.
        gone: keys whose last message is a tombstone.
    """

    before: pl.DataFrame
    tombstones: pl.DataFrame
    after: pl.DataFrame
    gone: pl.DataFrame


class DeclaredTable:
    """The table of a declared stream. One object per run.

    Args:
        declaration: declaration of the stream.
        services: the database, Kafka and the settings.
    """

    def __init__(self, declaration: StreamDeclaration, services: Runtime) -> None:
        assert isinstance(declaration.sink, SqlTarget)  # noqa: S101 - the caller chose by it
        self._declaration, self._services, self._sink = declaration, services, declaration.sink
        self._table = table_of(declaration)
        self._order = (*([self._sink.version] if self._sink.version else []), *KAFKA_ORDER)

    def prepare(self) -> None:
        """Create the table, or add what is new to it; see `declared_tables`.

        Where it is not there, everything is stored again that the topic still has: it was dropped, or another name
        was declared for it.
        """
        if not self._columns_of_table()[1]:
            positions = StreamPositions(self._services.engine, self._declaration.name, self._declaration.topic)
            if again := positions.begin_again(datetime.now(UTC)):
                logger.warning("table_is_stored_again", table=self._table.name, partitions=list(map(str, again)))
        self._ensure(self._table)
        if self._declaration.drift == "evolve":
            self._table = self._with_texts(self._columns_of_table()[0])

    def decode(self, messages: Sequence[ConsumerRecord], position: SinkPosition) -> KeyedRows:
        """Turn messages into rows; publish those that break the contract as dead letters."""
        rows: list[pl.DataFrame] = []
        deleted: list[pl.DataFrame] = []
        refused: list[tuple[ConsumerRecord, Refusal]] = []

        def decode_part(part: Sequence[ConsumerRecord]) -> None:
            found, tombstones, unreadable = self._decoded(part, position)
            rows.append(found)
            deleted.append(tombstones)
            refused.extend(unreadable)

        refused += decode_apart(messages, decode_part)
        self._dead_letter(refused, position)
        # Only the part that evolved a column and later parts have it.
        return KeyedRows(messages, _together(rows), _together(deleted), len(refused))

    def refused(self, message: ConsumerRecord, position: SinkPosition, error: Exception) -> KeyedRows:
        """Publish a message that the database refuses as a dead letter."""
        self._dead_letter([(message, UnreadableMessageError(reason_of(error)[0]))], position)
        return KeyedRows([message], refused=1)

    def store(self, connection: sa.Connection, rows: KeyedRows, now: datetime) -> Counter[str]:
        """Delete or mark the keys of tombstones, and upsert the rows after them."""
        stored = self._versions(rows)
        if self._sink.tombstones == "mark":
            changed = self._upsert(connection, stored.before, now)
            changed += self._mark(connection, stored.tombstones, now)
            changed += self._upsert(connection, stored.after, now)
            changed += self._mark(connection, self._of(self._of(stored.tombstones, stored.gone), stored.after), now)
        else:
            kept = [
                self._of(stored.before, stored.tombstones, are=False),
                self._of(stored.after, stored.gone, are=False),
            ]
            changed = self._delete(connection, stored.tombstones)
            changed += self._upsert(connection, _together(kept), now)
        outcome = {ROWS: rows.rows.height, ROWS_CHANGED: changed, DEAD_LETTERS: rows.refused}
        ignored = len(rows.messages) - rows.rows.height - rows.refused
        return Counter({**outcome, TOMBSTONES: ignored})

    @cached_property
    def _contract(self) -> Contract:
        return Contract(self._declaration, self._services.settings, self._columns_of_table)

    def _decoded(
        self, messages: Sequence[ConsumerRecord], position: SinkPosition
    ) -> tuple[pl.DataFrame, pl.DataFrame, list[tuple[ConsumerRecord, Refusal]]]:
        filled = [message for message in messages if message.value is not None]
        found = self._contract.rows_of(filled)
        self._add_evolved(set(found.table.column_names) - set(self._table.c.keys()))
        rows = pl.DataFrame(pl.from_arrow(found.table)).with_columns(_positions(found.messages, position))
        deleted, unreadable = self._tombstones([one for one in messages if one.value is None], position)
        return rows, deleted, [*found.refused, *unreadable]

    def _tombstones(
        self, messages: Sequence[ConsumerRecord], position: SinkPosition
    ) -> tuple[pl.DataFrame, list[tuple[ConsumerRecord, Refusal]]]:
        """Return the keys of messages without a value, and the messages whose key cannot be read."""
        if self._sink.tombstones == "ignore" or not messages:
            return pl.DataFrame(), []
        by_name = {column.name: column for column in self._declaration.typed_columns}
        columns = _in_key([by_name[name] for name in self._sink.key])
        decoder = DECODERS[self._sink.key_decoder](columns, self._services.settings)
        decoded = decoder.decode([_key_as_value(message) for message in messages])
        originals = {message.offset: message for message in messages}
        refused: list[tuple[ConsumerRecord, Refusal]] = [
            (originals[one.offset], UnreadableMessageError(f"A tombstone whose key cannot be read: {why}"))
            for one, why in decoded.refused
        ]
        arrays = [array_of(column, values)[0] for column, values in zip(columns, decoded.columns, strict=True)]
        keys = pl.DataFrame({name: pl.from_arrow(array) for name, array in zip(self._sink.key, arrays, strict=True)})
        is_whole = keys.select(pl.all_horizontal(pl.all().is_not_null())).to_series().to_list() if arrays else []
        kept = [originals[one.offset] for one in compress(decoded.kept, is_whole)]
        why = "A tombstone whose key is missing or not of its columns' types."
        broken = compress(decoded.kept, [not whole for whole in is_whole])
        refused += [(originals[one.offset], UnreadableMessageError(why)) for one in broken]
        return keys.filter(pl.Series(is_whole, dtype=pl.Boolean)).with_columns(_positions(kept, position)), refused

    def _versions(self, found: KeyedRows) -> _Versions:
        """Separate rows before the tombstones of their keys from those after them, by offset."""
        keys, offset = list(self._sink.key), "kafka_offset"
        tombstones = found.deleted if found.deleted.is_empty() else _newest(found.deleted, keys)
        if found.deleted.is_empty() or found.rows.is_empty():
            return _Versions(found.rows, tombstones, found.rows.clear(), tombstones)
        numbers = pl.col(offset).rank("ordinal").over(keys).alias("passed")
        passed = found.deleted.sort(offset).select(*keys, offset, numbers)
        rows = found.rows.sort(offset).join_asof(passed, on=offset, by=keys).with_columns(pl.col("passed").fill_null(0))
        is_before, is_last = pl.col("passed") == 0, pl.col("passed") == pl.col("passed").max().over(keys)
        ends = _newest(found.rows, keys).select(*keys, pl.col(offset).alias("end"))
        is_gone = pl.col("end").is_null() | (pl.col("end") < pl.col(offset))
        return _Versions(
            rows.filter(is_before).drop("passed"),
            tombstones,
            rows.filter(~is_before & is_last).drop("passed"),
            tombstones.join(ends, on=keys, how="left").filter(is_gone),
        )

    def _of(self, rows: pl.DataFrame, others: pl.DataFrame, *, are: bool = True) -> pl.DataFrame:
        """Return the rows whose keys are, or are not, among those of others."""
        if rows.is_empty() or others.is_empty():
            return rows.clear() if are else rows
        return rows.join(others, on=list(self._sink.key), how="semi" if are else "anti")

    def _upsert(self, connection: sa.Connection, rows: pl.DataFrame, now: datetime) -> int:
        # Every column, so that no value of an older version stays.
        dated = rows.with_columns(stored_at=pl.lit(now))
        missing = [pl.lit(None).alias(one.name) for one in self._table.c if one.name not in dated.columns]
        return upsert_rows(connection, self._table, self._order, dated.with_columns(missing))

    def _mark(self, connection: sa.Connection, tombstones: pl.DataFrame, now: datetime) -> int:
        if tombstones.is_empty():
            return 0
        marked = tombstones.select(*self._sink.key, *POSITION).with_columns(
            pl.lit(now).alias("stored_at"), pl.col("kafka_timestamp").fill_null(now).alias(DELETED_AT)
        )
        return upsert_rows(connection, self._table, KAFKA_ORDER, marked)

    def _delete(self, connection: sa.Connection, tombstones: pl.DataFrame) -> int:
        if tombstones.is_empty():
            return 0
        key = sa.tuple_(*(self._table.c[name] for name in self._sink.key))
        return sum(
            connection.execute(sa.delete(self._table).where(key.in_(part))).rowcount
            for part in in_parts(sorted(tombstones.select(self._sink.key).rows(), key=str), KEYS_AT_A_TIME)
        )

    def _dead_letter(self, refused: Sequence[tuple[ConsumerRecord, Refusal]], position: SinkPosition) -> None:
        ordered = sorted(refused, key=lambda one: one[0].offset)
        dead_letter_message(self._services, self._declaration.dlq, ordered, position.topic_id)

    def _columns_of_table(self) -> tuple[set[str], set[str]]:
        found = columns_of_table(self._services.engine, self._table.name)
        return {name for name, kind in found.items() if kind == "TEXT"}, set(found)

    def _add_evolved(self, names: set[str]) -> None:
        """Add columns of text to the table, in their own transaction; doing it again changes nothing."""
        if names:
            evolved = self._with_texts(names)
            self._ensure(evolved)
            self._table = evolved

    def _with_texts(self, names: set[str]) -> sa.Table:
        table = self._table.to_metadata(sa.MetaData())
        for name in sorted(names - set(table.c.keys())):
            table.append_column(Col(name, sa.Text))
        return table

    def _ensure(self, table: sa.Table) -> None:
        # The table keeps what drift has added to it also when the declaration does not evolve it any more.
        DeclaredTables([table], TABLES, evolving=True).ensure(self._services.engine)


def table_of(declaration: StreamDeclaration) -> sa.Table:
    """Return the table of a declared stream, in its own catalogue: migrations do not know it."""
    sink = declaration.sink
    assert isinstance(sink, SqlTarget)  # noqa: S101 - the caller chose by it
    # Only keys are NOT NULL: the contract requires values, and a tombstone may mark a row that never came.
    columns = [
        Col(one.name, sql_type(one), primary_key=one.name in sink.key, autoincrement=False, comment=one.description)
        for one in sorted(declaration.typed_columns, key=lambda one: one.name not in sink.key)
    ]
    name = sink.table or declaration.name
    return sa.Table(
        name,
        sa.MetaData(),
        *columns,
        Col("rescued_data", Json),
        Col("kafka_topic", sa.Text, nullable=False),
        Col("kafka_topic_id", sa.Text, nullable=False),
        Col("kafka_epoch", sa.Integer, nullable=False),
        Col("kafka_partition", sa.Integer, nullable=False),
        Col("kafka_offset", sa.BigInteger, nullable=False),
        Col("kafka_timestamp", UtcTime),
        Col("trace_id", sa.Text),
        Col("stored_at", UtcTime, nullable=False),
        *([Col(DELETED_AT, UtcTime)] if sink.tombstones == "mark" else []),
        *lookup_indexes(name, "trace_id"),
    )


def _positions(messages: Sequence[ConsumerRecord], position: SinkPosition) -> list[pl.Series]:
    """Return the columns that say which message a row is from."""
    columns: dict[str, Any] = {**position_columns(messages, position.topic_id)}
    traces = [trace_id_in(message.headers) if message.headers else None for message in messages]
    return [
        *(pl.Series(name, pl.from_arrow(column)) for name, column in columns.items()),
        pl.Series("kafka_epoch", [position.epoch] * len(messages), pl.Int64),
        pl.Series("trace_id", traces, pl.String),
    ]


def _in_key(columns: Sequence[StreamColumn]) -> Sequence[StreamColumn]:
    """Return columns with the paths of their fields in a key, which has what is deep inside a value at its top."""
    names = [column.steps[-1] for column in columns]
    if len(set(names)) < len(names):
        return columns
    return [one.model_copy(update={"path": f"$.{name}"}) for one, name in zip(columns, names, strict=True)]


def _key_as_value(message: ConsumerRecord) -> ConsumerRecord:
    headers = tuple((VALUE_SCHEMA, value) for name, value in message.headers if name == KEY_SCHEMA)
    return msgspec.structs.replace(message, value=message.key, headers=headers)


def _newest(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the row of each key with the greatest offset."""
    return rows.sort("kafka_offset").unique(keys, keep="last", maintain_order=True)


def _together(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    filled = [part for part in parts if not part.is_empty()]
    return pl.concat(filled, how="diagonal") if filled else pl.DataFrame()
