"""Messages of streams as items: find them by the ids of their rows, and describe the outcome of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from ingest_project.core.console import moment
from ingest_project.core.errors import StoreUnavailableError
from ingest_project.core.logging import to_json
from ingest_project.platform.capability import kafka_position, of_trace, rows_where
from ingest_project.platform.database import fetch, reading
from ingest_project.platform.database.declared_tables import columns_of_table
from ingest_project.platform.delta.table import DeltaStore
from ingest_project.platform.items import Hit, ItemRef, ItemView, Moment, Position, Search, conditions_of_trace, listed
from ingest_project.platform.tracing import trace_ids_of
from ingest_project.streams.crm.records import opportunities, projects, unidentified_messages
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project.streams.delta.queries import row_at, rows_with
from ingest_project.streams.positions import StreamPositions
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.sql.declared import table_of
from ingest_project.streams.user_activity.event_table import TABLE

UNIDENTIFIED = "unidentified"
MAX_OF_TRACE = 1_000
Row = Mapping[str, Any]


class SqlRows(NamedTuple):
    """A table of the warehouse with rows of a stream.

    Args:
        topic: topic of their messages.
        ids: columns by which a row is found; an index serves each.
    """

    topic: str
    table: sa.Table
    ids: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name

    def find(self, engine: sa.Engine, search: Search, limit: int) -> Sequence[Row]:
        """Return the rows that a search finds; no index of these ids knows how a value begins."""
        if search.by_prefix:
            return []
        by_id = search.equals(*(self.table.c[name] for name in self.ids))
        found: list[Row] = []
        with reading(engine) as connection:
            for condition in (*by_id, *conditions_of_trace(self.table, search.text)):
                found += map(dict, connection.execute(sa.select(self.table).where(condition).limit(limit)).mappings())
        return found

    def of_trace(self, engine: sa.Engine, trace_id: str) -> Sequence[Row]:
        """Return the rows of a trace."""
        with reading(engine) as connection:
            return [dict(row) for row in rows_where(connection, self.table, of_trace(self.table, trace_id))]

    def at(self, engine: sa.Engine, position: Position) -> Sequence[Row]:
        """Return the rows that a message brought."""
        query = sa.select(self.table).where(position.matches(self.table)).limit(1)
        return [dict(row) for row in fetch(engine, query).mappings()]


class DeltaRows(NamedTuple):
    """A Delta table with rows of a stream.

    Args:
        topic: topic of their messages.
        name: name of the table.
        ids: columns other than the trace by which a row is found; they have Bloom filters.
        open: opens the table.
        shown: further columns that its history shows.
    """

    topic: str
    name: str
    ids: tuple[str, ...]
    open: Callable[[], DeltaStore]
    shown: tuple[str, ...] = ()

    def find(self, engine: sa.Engine, search: Search, limit: int) -> Sequence[Row]:
        """Return the rows that a search finds; no Bloom filter knows how a value begins."""
        if search.by_prefix or search.position or "://" in search.text:
            return []
        return self._with((*self.ids, "trace_id"), search.text, limit)

    def of_trace(self, engine: sa.Engine, trace_id: str) -> Sequence[Row]:
        """Return the rows of a trace."""
        return self._with(("trace_id",), trace_id, MAX_OF_TRACE, (*self.ids, *self.shown))

    def _with(self, columns: Sequence[str], text: str, limit: int, shown: Sequence[str] = ()) -> Sequence[Row]:
        """Return the rows with an id or a trace, in any of its forms."""
        return rows_with(self.open(), columns, trace_ids_of(text), limit, shown)

    def at(self, engine: sa.Engine, position: Position) -> Sequence[Row]:
        """Return the rows that a message brought."""
        return row_at(self.open(), *position)


def tables_of(services: StreamResources) -> Iterator[SqlRows | DeltaRows]:
    """Yield the tables of all streams, those of the warehouse first: a store of Delta tables may be away."""
    topics = services.settings.topics
    for table in (opportunities, projects):
        yield SqlRows(topics.sales_events, table, ("event_id",))
    yield SqlRows(topics.sales_events, unidentified_messages, ("message_id",))
    for one in services.declared_streams.usable:
        if not one.is_delta:
            table = table_of(one)
            if columns_of_table(services.engine, table.name):
                yield SqlRows(one.topic, table, one.id_columns[:1])
    for one in services.declarations:
        if one.is_delta:
            yield DeltaRows(one.topic, one.source, one.id_columns, partial(_store_of, services, one), one.shown)


def find(services: StreamResources, search: Search, limit: int) -> Iterator[Hit]:
    """Yield the messages whose rows a search finds; see `Capability.find`."""
    for table, row in _query(services, lambda table: table.find(services.engine, search, limit)):
        ids = [str(row[name]) for name in table.ids if row.get(name) is not None]
        yield Hit("message", str(Position.of(row)), " ".join([table.name, *ids]), _state(row), _at(row))


def trace(services: StreamResources, trace_id: str) -> Iterator[Moment]:
    """Yield the history of the rows of a trace; see `Capability.trace`."""
    for table, row in _query(services, lambda table: table.of_trace(services.engine, trace_id)):
        yield from history(table.name, row)


def _query(
    services: StreamResources, ask: Callable[[SqlRows | DeltaRows], Sequence[Row]]
) -> Iterator[tuple[SqlRows | DeltaRows, Row]]:
    """Yield the rows of all tables; the error of one that does not answer is raised after those of the others."""
    away: StoreUnavailableError | None = None
    for table in tables_of(services):
        try:
            for row in ask(table):
                yield table, row
        except StoreUnavailableError as error:
            away = error
    if away is not None:
        raise away


def describe(services: StreamResources, ref: ItemRef) -> ItemView | None:
    """Describe the outcome of a message of a stream; None for a message of no stream."""
    position = Position.parse(ref.key)
    streams = [one.positions for one in services.streams if position and one.topic == position.topic]
    if position is None or not streams:
        return None
    asked = _query(services, lambda table: table.at(services.engine, position) if table.topic == position.topic else ())
    rows = [(table.name, row) for table, row in asked]
    stored = [(name, row) for name, row in rows if name != unidentified_messages.name]
    refused = [row for name, row in rows if name == unidentified_messages.name]
    state, reason = _standing(streams, position)
    if rows:
        state, reason = _state(rows[0][1]), refused[0]["reason"] if refused else None
    return ItemView(
        ref=ref,
        name=str(position),
        state=state,
        reason=reason,
        trace_id=next((row["trace_id"] for _, row in rows if row["trace_id"]), None),
        facts={"Stored in": ", ".join(name for name, _ in stored) or None},
        moments=[moment for name, row in rows for moment in history(name, row)],
        rows={
            name: listed(
                ("column", "value"),
                tuple((column, _shown(value)) for column, value in row.items() if value is not None),
            )
            for name, row in stored
        },
    )


def history(name: str, row: Row) -> Iterator[Moment]:
    """Yield the history of a row of a stream."""
    if name == unidentified_messages.name:
        subject = f"message {row['message_id']}"
        yield Moment(row["received_at"], subject, UNIDENTIFIED, row["reason"])
        if row["identified_at"]:
            yield Moment(row["identified_at"], subject, "identified", f"{row['identified_as']} {row['event_id']}")
        return
    key, at = row.get("event_id"), _at(row)
    if name == TABLE and at:
        yield Moment(at, f"event {key}", str(row["event_type"]), kafka_position(row))
    elif at:
        subject = f"{name} {key}" if key else f"row of {name}"
        version = f"version of {moment(row['last_modified'])} from " if row.get("last_modified") else ""
        yield Moment(at, subject, "stored", version + kafka_position(row))


def _standing(streams: Sequence[StreamPositions], position: Position) -> tuple[str, str | None]:
    """Return the outcome of a message without a row, by the positions of the sinks, and the reason."""
    known = [one for stream in streams for one in [stream.current().get(position.partition)] if one]
    if any(position.offset >= one.next_offset for one in known) or not known:
        reasons = (f"{one.attempts} runs in a row did not store it: {one.reason}" for one in known if one.reason)
        return "waiting", next(reasons, None)
    for stream in streams:
        for lost in stream.lost():
            if (
                lost.offsets.partition == position.partition
                and lost.offsets.first <= position.offset < lost.offsets.end
            ):
                return "lost", lost.reason
    return "read", "It has no row: it became a dead letter, or a newer version of the same record replaced it."


def _state(row: Row) -> str:
    if "identified_at" not in row:
        return "stored"
    return "identified" if row["identified_at"] else UNIDENTIFIED


def _shown(value: object) -> object:
    return to_json(value) if isinstance(value, dict | list) else value


def _at(row: Row) -> datetime | None:
    return row.get("stored_at") or row.get("received_at") or row.get("kafka_timestamp")


def _store_of(services: StreamResources, declaration: StreamDeclaration) -> DeltaStore:
    return services.delta_stream(declaration).store
