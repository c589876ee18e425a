"""Kinds of source by name.

Another package adds one by an entry point in the group `ingest_project.sources`; its name is the `source_type`, its
value a `SourceFactory`:

    [project.entry-points."ingest_project.sources"]
    webdav = "my_package.webdav:open_webdav"
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from ingest_project.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest_project.settings import PollingSettings
    from ingest_project.sources.protocol import Source, SourceFactory

ENTRY_POINT_GROUP = "ingest_project.sources"
# By address and not by import: a run that reads local files need not load every other source's client library.
SHIPPED = {
    "dummy": "ingest_project.sources.dummy:open_dummy",
    "local": "ingest_project.sources.local:open_local",
}


def open_source(source_config: Mapping[str, Any], settings: PollingSettings) -> Source:
    """The source that a polling job's or file event's `source_config` names. Nothing is connected to yet.

    Raises:
        PermanentError: no such source_type; the message lists those there are. Or the config lacks something.
    """
    return _factory(str(source_config.get("source_type", "")))(source_config, settings)


def canonical_location(source_type: str, source_config: Mapping[str, Any], path: str, settings: PollingSettings) -> str:
    """The one address of a file over all sources, e.g. `local:/data/in/a.csv`; what `file_key` is made from.

    Raises:
        PermanentError: no such source_type.
    """
    return open_source({**source_config, "source_type": source_type}, settings).canonical_location(path)


def known_source_types() -> list[str]:
    """Every source_type that can be opened, sorted."""
    return sorted({*SHIPPED, *_registered()})


@cache
def _factory(source_type: str) -> SourceFactory:
    if address := SHIPPED.get(source_type):
        module, _, name = address.partition(":")
        return cast("SourceFactory", getattr(import_module(module), name))
    if entry_point := _registered().get(source_type):
        return cast("SourceFactory", entry_point.load())
    raise PermanentError(f"Unknown source_type {source_type[:100]!r}. Known are: {', '.join(known_source_types())}.")


@cache
def _registered() -> Mapping[str, Any]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}
