"""Kinds of source by name.

Another package adds one by an entry point in the group `ingest_project.sources`; its name is the `source_type`, its
value a `SourceFactory`:

    [project.entry-points."ingest_project.sources"]
    webdav = "my_package.webdav:open_webdav"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ingest_project.contracts.files import SECRET_NAMES
from ingest_project.core.errors import PermanentError
from ingest_project.platform.runtime import Runtime
from ingest_project.sources.context import SourceContext
from ingest_project.sources.protocol import Source

SourceFactory = Callable[[Mapping[str, Any], SourceContext], Source]
"""Makes a source from a job's `source_config` and the settings of this process."""

ENTRY_POINT_GROUP = "ingest_project.sources"
# Loaded when first used: a run that reads local files need not load every other source's client library.
SHIPPED = {
    "dummy": "ingest_project.sources.local:open_dummy",
    "ftp": "ingest_project.sources.ftp:open_ftp",
    "http": "ingest_project.sources.http:open_http",
    "local": "ingest_project.sources.local:open_local",
    "onelake": "ingest_project.sources.onelake:open_onelake",
    "s3": "ingest_project.sources.s3:open_s3",
    "sftp": "ingest_project.sources.sftp:open_sftp",
}


def open_source(source_config: Mapping[str, Any], context: SourceContext) -> Source:
    """Make the source of a polling job's or file event's `source_config`. Nothing is connected to yet.

    Args:
        source_config: `source_type`, `path`, and what that type needs; `credentials` names a stored one.
        context: settings and shared clients.

    Raises:
        UnknownCredentialsError: the config names credentials that are not stored.
        PermanentError: no such source_type; the message lists those there are. Or the config lacks something, carries
            a secret, or names what is not allowed.
    """
    for name in source_config:
        # A file event carries a config as well, and messages are in logs, work queues and dead letters.
        if name.lower() in SECRET_NAMES:
            raise PermanentError(
                f'source_config carries {name!r}: name stored credentials instead ("credentials": "…").'
            )
    return _factory(str(source_config.get("source_type", "")))(source_config, context)


def known_source_types() -> list[str]:
    """Return every source_type that can be opened, sorted."""
    return sorted(_entry_points())


class SourceResources(Runtime):
    """Opens sources that share their clients."""

    @cached_property
    def source_context(self) -> SourceContext:
        """Settings and shared clients of sources."""
        return SourceContext(self.settings)

    def open_source(self, source_config: Mapping[str, Any]) -> Source:
        """Make the source of a job's or file event's `source_config`, see `open_source` of this module."""
        return open_source(source_config, self.source_context)


@cache
def _factory(source_type: str) -> SourceFactory:
    entry_point = _entry_points().get(source_type)
    if entry_point is None:
        known = ", ".join(known_source_types())
        raise PermanentError(f"Unknown source_type {source_type[:100]!r}. Known are: {known}.")
    factory: SourceFactory = entry_point.load()
    return factory


@cache
def _entry_points() -> Mapping[str, EntryPoint]:
    """Return all kinds by name; another package cannot replace a shipped one."""
    registered = {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}
    return registered | {name: EntryPoint(name, address, ENTRY_POINT_GROUP) for name, address in SHIPPED.items()}
