"""Resources of all streams, declared ones included."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.positions import StreamPositions
from ingest_project.streams.sql.sink import SqlSink
from ingest_project.streams.user_activity.resources import UserActivityResources

if TYPE_CHECKING:
    # A declaration brings Polars, which most commands never need.
    from ingest_project.streams.declaration import BrokenStream, StreamDeclaration
    from ingest_project.streams.sql.declared import KeyedRows


@dataclass(frozen=True)
class DeclaredStreams:
    """The streams that are declared in a folder."""

    usable: tuple[StreamDeclaration, ...] = ()
    broken: tuple[BrokenStream, ...] = ()


class DeclaredStreamResources(UserActivityResources):
    """The streams that are declared in the folder of declarations, and those that a component brings."""

    @property
    def store_urls(self) -> tuple[str, ...]:
        """The Delta tables of declared streams as well."""
        urls = (one.delta_url(self.settings) for one in self.declared_streams.usable if one.is_delta)
        return (*super().store_urls, *urls)

    @cached_property
    def declared_streams(self) -> DeclaredStreams:
        """The streams that are declared in the folder of declarations."""
        if not self.settings.declarations.is_dir():
            return DeclaredStreams()
        from ingest_project.streams.declaration import load_streams  # brings Polars

        return DeclaredStreams(*load_streams(self.settings))

    @property
    def stream_positions(self) -> tuple[StreamPositions, ...]:
        """Positions of every stream, the shipped ones first."""
        declared = (self.positions_of(one) for one in self.declared_streams.usable)
        return (self.activity_positions, self.crm_positions, *declared)

    def positions_of(self, declaration: StreamDeclaration) -> StreamPositions:
        """Return the positions of a declared stream."""
        return StreamPositions(self.engine, declaration.name, declaration.topic)

    def delta_stream(self, declaration: StreamDeclaration) -> DeltaStream:
        """Return a declared stream whose sink is a Delta table; its decoder keeps the schemas that it has fetched."""
        from ingest_project.streams.delta.declared import declared_delta_stream  # brings Polars

        # Another thread may have the declarations read again meanwhile.
        known = self._delta_streams
        if declaration.name not in known:
            known[declaration.name] = declared_delta_stream(declaration, self)
        return known[declaration.name]

    def sql_sink(self, declaration: StreamDeclaration) -> SqlSink[KeyedRows]:
        """Return the sink of a declared stream whose rows are stored by key."""
        from ingest_project.streams.sql.declared import DeclaredTable  # brings Polars
        from ingest_project.streams.sql.sink import SqlSink

        return SqlSink(self, DeclaredTable(declaration, self))

    @cached_property
    def _delta_streams(self) -> dict[str, DeltaStream]:
        return {}
