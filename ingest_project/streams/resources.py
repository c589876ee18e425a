"""Resources of all streams: this package declares two, the folder of declarations the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

from ingest_project.platform.runtime import Runtime
from ingest_project.streams.crm.sink import Crm, crm_stream
from ingest_project.streams.declaration import LoadedStreams, StreamDeclaration, load_streams
from ingest_project.streams.delta.declared import declared_delta_stream
from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.positions import StreamPositions
from ingest_project.streams.sql.declared import DeclaredTable
from ingest_project.streams.sql.sink import SqlSink
from ingest_project.streams.user_activity.event_table import UserActivity, user_activity_stream


class ShippedStreams(NamedTuple):
    """The streams that this package declares."""

    user_activity: UserActivity
    crm: Crm


class KnownStream(NamedTuple):
    """A stream that is shipped or declared.

    Args:
        source: the name that its sensor is derived from.
        topic: topic of its messages.
        open_positions: returns the positions of its partitions, which are in the database.
        dead_letters: topic of its dead letters; empty if a table keeps unreadable messages.
        delta: opens it where its sink is a Delta table; None for tables of the warehouse.
    """

    source: str
    topic: str
    open_positions: Callable[[], StreamPositions]
    dead_letters: str = ""
    delta: Callable[[], DeltaStream] | None = None

    @property
    def positions(self) -> StreamPositions:
        """Positions of its partitions."""
        return self.open_positions()

    @property
    def sensor(self) -> str:
        """Name of the sensor that requests its runs."""
        return f"{self.source}_sensor"


class StreamResources(Runtime):
    """The streams that are shipped, those of the folder of declarations, and those that a component brings."""

    @property
    def store_urls(self) -> tuple[str, ...]:
        """The Delta tables of streams as well."""
        return (*super().store_urls, *(one.delta_url(self.settings) for one in self.declarations if one.is_delta))

    @cached_property
    def declared_streams(self) -> LoadedStreams:
        """The streams that are declared in the folder of declarations."""
        return load_streams(self.settings)

    @cached_property
    def shipped_streams(self) -> ShippedStreams:
        """The streams that this package declares."""
        return ShippedStreams(user_activity_stream(self.settings), crm_stream(self.settings))

    @property
    def declarations(self) -> tuple[StreamDeclaration, ...]:
        """Every stream, the shipped ones first; a broken one is left out."""
        return (*self.shipped_streams, *self.declared_streams.usable)

    @property
    def streams(self) -> tuple[KnownStream, ...]:
        """What is known of every stream, the shipped ones first."""
        return tuple(map(self._known_stream, self.declarations))

    @property
    def user_activity(self) -> DeltaStream:
        """The stream of user activity."""
        return self.delta_stream(self.shipped_streams.user_activity)

    def positions_of(self, declaration: StreamDeclaration) -> StreamPositions:
        """Return the positions of a stream."""
        return StreamPositions(self.engine, declaration.name, declaration.topic)

    def delta_stream(self, declaration: StreamDeclaration) -> DeltaStream:
        """Return a stream whose sink is a Delta table; its decoder keeps the schemas that it has fetched."""
        # Another thread may have the declarations read again meanwhile.
        known = self._delta_streams
        if declaration.name not in known:
            known[declaration.name] = declared_delta_stream(declaration, self)
        return known[declaration.name]

    def sql_sink(self, declaration: StreamDeclaration) -> SqlSink[Any]:
        """Return the sink of a stream whose rows are stored by key."""
        return SqlSink(self, declaration.own_tables(self.settings) or DeclaredTable(declaration, self))

    def _known_stream(self, one: StreamDeclaration) -> KnownStream:
        delta = (lambda: self.delta_stream(one)) if one.is_delta else None
        return KnownStream(one.source, one.topic, lambda: self.positions_of(one), one.dlq, delta)

    @cached_property
    def _delta_streams(self) -> dict[str, DeltaStream]:
        return {}
