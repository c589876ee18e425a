"""A declared stream whose rows are stored by key in a table of the warehouse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.contracts import trace_id_in
from ingest_project.core.errors import TransientError, UnexpectedError, UnreadableMessageError
from ingest_project.core.items import store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.platform.database.declared_tables import TableKind, columns_of_table, ensure_tables
from ingest_project.platform.database.sql import Json, UtcTime, in_parts, lookup_indexes, sql_type
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.consume import dead_letter_message
from ingest_project.streams.declaration import SqlTarget, StreamDeclaration
from ingest_project.streams.decoders import DECODERS, Refusal
from ingest_project.streams.positions import SinkPosition
from ingest_project.streams.sql.sink import reason_of
from ingest_project.streams.sql.upsert import KAFKA_ORDER, upsert_rows

if TYPE_CHECKING:
    from ingest_project.streams.contract import Contract

logger = get_logger(__name__)

ROWS, ROWS_CHANGED, TOMBSTONES, DEAD_LETTERS = "rows", "rows_changed", "tombstones", "dead_letters"

KEYS_AT_A_TIME = 1_000
DELETED_AT = "deleted_at"
TABLES = TableKind(proof="kafka_offset", setting="sink.table")

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass
class KeyedRows:
    """Messages as rows by key.

    Args:
        messages: all of them, in their order.
        rows: of those with a value, in the order of their offsets.
        deleted: of tombstones, the columns of their keys and of their positions.
        refused: number of messages that became dead letters.
    """

    messages: Sequence[ConsumerRecord]
    rows: list[Row] = field(default_factory=list)
    deleted: list[Row] = field(default_factory=list)
    refused: int = 0


@dataclass
class _Versions:
    """What is left of each key.

    Args:
        before: the newest row before the first tombstone.
        tombstones: the last one.
        after: the newest row after a tombstone, which any row replaces.
        gone: keys whose last message is a tombstone.
    """

    before: dict[Key, Row] = field(default_factory=dict)
    tombstones: dict[Key, Row] = field(default_factory=dict)
    after: dict[Key, Row] = field(default_factory=dict)
    gone: set[Key] = field(default_factory=set)


class DeclaredTable:
    """The table of a declared stream. One object per run.

    Args:
        declaration: of the stream.
        services: the database, Kafka and the settings.
    """

    def __init__(self, declaration: StreamDeclaration, services: Runtime) -> None:
        assert isinstance(declaration.sink, SqlTarget)  # noqa: S101 - the caller chose by it
        self._declaration, self._services, self._sink = declaration, services, declaration.sink
        self._table = table_of(declaration)
        self._order = (*([self._sink.version] if self._sink.version else []), *KAFKA_ORDER)

    def prepare(self) -> None:
        """Create the table, or add what is new to it; see `declared_tables`."""
        self._ensure(self._table)
        if self._declaration.drift == "evolve":
            self._table = self._with_texts(self._columns_of_table()[0])

    def decode(self, messages: Sequence[ConsumerRecord], position: SinkPosition) -> KeyedRows:
        """Turn messages into rows; publish those that break the contract as dead letters."""
        found = KeyedRows(messages)
        refused: list[tuple[ConsumerRecord, Refusal]] = []

        def decode_part(part: Sequence[ConsumerRecord]) -> None:
            rows, deleted, unreadable = self._decoded(part, position)
            found.rows += rows
            found.deleted += deleted
            refused.extend(unreadable)

        for message, error in store_bisecting(messages, decode_part, _is_message_fault):
            logger.error("decoding_failed_unexpectedly", exc_info=error)
            refused.append((message, UnexpectedError("Reading the message", error)))
        self._dead_letter(refused, position)
        found.refused = len(refused)
        return found

    def refused(self, message: ConsumerRecord, position: SinkPosition, error: Exception) -> KeyedRows:
        """Publish a message that the database refuses as a dead letter."""
        self._dead_letter([(message, UnreadableMessageError(reason_of(error)[0]))], position)
        return KeyedRows([message], refused=1)

    def store(self, connection: sa.Connection, rows: KeyedRows, now: datetime) -> Counter[str]:
        """Delete or mark the keys of tombstones, and upsert the rows after them."""
        versions = self._versions(rows)
        if self._sink.tombstones == "mark":
            changed = self._upsert(connection, versions.before, now)
            changed += self._mark(connection, versions.tombstones.values(), now)
            changed += self._upsert(connection, versions.after, now)
            again = [versions.tombstones[key] for key in versions.gone if key in versions.after]
            changed += self._mark(connection, again, now)
        else:
            before = {key: row for key, row in versions.before.items() if key not in versions.tombstones}
            after = {key: row for key, row in versions.after.items() if key not in versions.gone}
            changed = self._delete(connection, versions.tombstones)
            changed += self._upsert(connection, before | after, now)
        outcome = {ROWS: len(rows.rows), ROWS_CHANGED: changed, DEAD_LETTERS: rows.refused}
        ignored = len(rows.messages) - len(rows.rows) - rows.refused
        return Counter({**outcome, TOMBSTONES: ignored})

    @cached_property
    def _contract(self) -> Contract:
        from ingest_project.streams.contract import Contract  # heavy

        return Contract(self._declaration, self._services.settings, self._columns_of_table)

    def _decoded(
        self, messages: Sequence[ConsumerRecord], position: SinkPosition
    ) -> tuple[list[Row], list[Row], list[tuple[ConsumerRecord, Refusal]]]:
        filled = [message for message in messages if message.value is not None]
        found = self._contract.rows_of(filled)
        self._add_evolved(set(found.table.column_names) - set(self._table.c.keys()))
        values = found.table.to_pylist()
        rows = [row | _position(one, position) for one, row in zip(found.messages, values, strict=True)]
        deleted, unreadable = self._tombstones([one for one in messages if one.value is None], position)
        return rows, deleted, [*found.refused, *unreadable]

    def _tombstones(
        self, messages: Sequence[ConsumerRecord], position: SinkPosition
    ) -> tuple[list[Row], list[tuple[ConsumerRecord, Refusal]]]:
        """Return the keys of messages without a value, and the messages whose key cannot be read."""
        if self._sink.tombstones == "ignore" or not messages:
            return [], []
        from ingest_project.streams.values import array_of  # heavy

        by_name = {column.name: column for column in self._declaration.typed_columns}
        columns = [by_name[name] for name in self._sink.key]
        decoder = DECODERS[self._sink.key_decoder](columns, self._services.settings)
        decoded = decoder.decode([msgspec.structs.replace(message, value=message.key) for message in messages])
        originals = {message.offset: message for message in messages}
        refused: list[tuple[ConsumerRecord, Refusal]] = [
            (originals[one.offset], UnreadableMessageError(f"A tombstone whose key cannot be read: {why}"))
            for one, why in decoded.refused
        ]
        arrays = [array_of(column, values)[0] for column, values in zip(columns, decoded.columns, strict=True)]
        deleted: list[Row] = []
        for index, one in enumerate(decoded.kept):
            key = {column.name: array[index].as_py() for column, array in zip(columns, arrays, strict=True)}
            if None in key.values():
                why = "A tombstone whose key is missing or not of its columns' types."
                refused.append((originals[one.offset], UnreadableMessageError(why)))
            else:
                deleted.append(key | _position(originals[one.offset], position))
        return deleted, refused

    def _versions(self, rows: KeyedRows) -> _Versions:
        """Go through rows and tombstones in the order of their offsets."""
        found = _Versions()
        tombstones = {row["kafka_offset"]: row for row in rows.deleted}
        for row in sorted([*rows.rows, *rows.deleted], key=lambda one: one["kafka_offset"]):
            key = self._key(row)
            if row["kafka_offset"] in tombstones:
                found.tombstones[key] = row
                found.gone.add(key)
                continue
            among = found.after if key in found.tombstones else found.before
            if key in found.gone or key not in among or self._version(row) > self._version(among[key]):
                among[key] = row
            found.gone.discard(key)
        return found

    def _upsert(self, connection: sa.Connection, rows: Mapping[Key, Row], now: datetime) -> int:
        # Every column, so that no value of an older version stays.
        nothing = dict.fromkeys(self._table.c.keys())
        stored = [nothing | row | {"stored_at": now} for row in rows.values()]
        return upsert_rows(connection, self._table, self._order, stored)

    def _mark(self, connection: sa.Connection, tombstones: Iterable[Row], now: datetime) -> int:
        marked = [row | {"stored_at": now, DELETED_AT: row["kafka_timestamp"] or now} for row in tombstones]
        return upsert_rows(connection, self._table, KAFKA_ORDER, marked)

    def _delete(self, connection: sa.Connection, tombstones: Iterable[Key]) -> int:
        key = sa.tuple_(*(self._table.c[name] for name in self._sink.key))
        return sum(
            connection.execute(sa.delete(self._table).where(key.in_(part))).rowcount
            for part in in_parts(sorted(tombstones, key=str), KEYS_AT_A_TIME)
        )

    def _key(self, row: Mapping[str, Any]) -> Key:
        return tuple(row[name] for name in self._sink.key)

    def _version(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        version = (row[self._sink.version],) if self._sink.version else ()
        return (*version, row["kafka_offset"])

    def _dead_letter(self, refused: Sequence[tuple[ConsumerRecord, Refusal]], position: SinkPosition) -> None:
        ordered = sorted(refused, key=lambda one: one[0].offset)
        dead_letter_message(self._services, self._declaration.dlq, ordered, position.topic_id)

    def _columns_of_table(self) -> tuple[set[str], set[str]]:
        found = columns_of_table(self._services.engine, self._table.name)
        return {name for name, kind in found.items() if kind == "TEXT"}, set(found)

    def _add_evolved(self, names: set[str]) -> None:
        """Add columns of text to the table, in a transaction of their own; doing it again changes nothing."""
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
        ensure_tables(self._services.engine, [table], TABLES, evolving=True)


def table_of(declaration: StreamDeclaration) -> sa.Table:
    """Return the table of a declared stream, in a catalogue of its own: migrations do not know it."""
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


def _position(message: ConsumerRecord, position: SinkPosition) -> Row:
    return {
        "kafka_topic": message.topic,
        "kafka_topic_id": position.topic_id,
        "kafka_epoch": position.epoch,
        "kafka_partition": message.partition,
        "kafka_offset": message.offset,
        "kafka_timestamp": message.timestamp,
        "trace_id": trace_id_in(message.headers) if message.headers else None,
    }


def _is_message_fault(error: Exception) -> bool:
    return not isinstance(error, MemoryError | TransientError | sa.exc.SQLAlchemyError)
