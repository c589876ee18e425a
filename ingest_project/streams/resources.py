"""Resources of all streams, declared ones included."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from ingest_project.streams.declaration import LoadedStreams, StreamDeclaration, load_streams
from ingest_project.streams.delta.declared import declared_delta_stream
from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.positions import StreamPositions
from ingest_project.streams.sql.declared import DeclaredTable, KeyedRows
from ingest_project.streams.sql.sink import SqlSink
from ingest_project.streams.user_activity.resources import UserActivityResources


class KnownStream(NamedTuple):
    """A stream that is shipped or declared.

    Args:
        source: what its sensor is called after.
        topic: of its messages.
        open_positions: returns the positions of its partitions, which are in the database.
        dead_letters: topic of its dead letters; empty where a table keeps what cannot be read.
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


class DeclaredStreamResources(UserActivityResources):
    """The streams that are declared in the folder of declarations, and those that a component brings."""

    @property
    def store_urls(self) -> tuple[str, ...]:
        """The Delta tables of declared streams as well."""
        urls = (one.delta_url(self.settings) for one in self.declared_streams.usable if one.is_delta)
        return (*super().store_urls, *urls)

    @cached_property
    def declared_streams(self) -> LoadedStreams:
        """The streams that are declared in the folder of declarations."""
        return load_streams(self.settings)

    @property
    def streams(self) -> tuple[KnownStream, ...]:
        """Every stream, the shipped ones first."""
        topics = self.settings.topics
        return (
            KnownStream(
                "user_activity_events",
                topics.user_activity_events,
                lambda: self.activity_positions,
                topics.user_activity_events_dlq,
                lambda: self.user_activity,
            ),
            KnownStream("sales_events", topics.sales_events, lambda: self.crm_positions),
            *map(self._known, self.declared_streams.usable),
        )

    def positions_of(self, declaration: StreamDeclaration) -> StreamPositions:
        """Return the positions of a declared stream."""
        return StreamPositions(self.engine, declaration.name, declaration.topic)

    def delta_stream(self, declaration: StreamDeclaration) -> DeltaStream:
        """Return a declared stream whose sink is a Delta table; its decoder keeps the schemas that it has fetched."""
        # Another thread may have the declarations read again meanwhile.
        known = self._delta_streams
        if declaration.name not in known:
            known[declaration.name] = declared_delta_stream(declaration, self)
        return known[declaration.name]

    def sql_sink(self, declaration: StreamDeclaration) -> SqlSink[KeyedRows]:
        """Return the sink of a declared stream whose rows are stored by key."""
        return SqlSink(self, DeclaredTable(declaration, self))

    def _known(self, one: StreamDeclaration) -> KnownStream:
        delta = (lambda: self.delta_stream(one)) if one.is_delta else None
        return KnownStream(one.name, one.topic, lambda: self.positions_of(one), one.dlq, delta)

    @cached_property
    def _delta_streams(self) -> dict[str, DeltaStream]:
        return {}
