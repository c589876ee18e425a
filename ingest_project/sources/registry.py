"""Kinds of source by name.

Another package adds one by an entry point in the group `ingest_project.sources`; its name is the `source_type`, its
value a `SourceFactory`:

    [project.entry-points."ingest_project.sources"]
    webdav = "my_package.webdav:open_webdav"
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from ingest_project.contracts.files import SECRET_NAMES
from ingest_project.core.errors import PermanentError
from ingest_project.core.settings import Credential, PollingSettings
from ingest_project.sources.context import NO_CREDENTIALS, Clients, SourceContext
from ingest_project.sources.protocol import Source, SourceFactory

ENTRY_POINT_GROUP = "ingest_project.sources"
# By address and not by import: a run that reads local files need not load every other source's client library.
SHIPPED = {
    "dummy": "ingest_project.sources.dummy:open_dummy",
    "ftp": "ingest_project.sources.ftp.source:open_ftp",
    "http": "ingest_project.sources.http.source:open_http",
    "local": "ingest_project.sources.local:open_local",
    "onelake": "ingest_project.sources.onelake:open_onelake",
    "s3": "ingest_project.sources.s3.source:open_s3",
    "sftp": "ingest_project.sources.sftp.source:open_sftp",
}
NO_CLIENTS = Clients()


def open_source(
    source_config: Mapping[str, Any],
    settings: PollingSettings,
    credentials: Mapping[str, Credential] = NO_CREDENTIALS,
    clients: Clients = NO_CLIENTS,
) -> Source:
    """The source that a polling job's or file event's `source_config` names. Nothing is connected to yet.

    Args:
        source_config: `source_type`, `path`, and what that type needs; `credentials` names a stored one.
        settings: what may be looked at.
        credentials: the stored ones by name.
        clients: for the kinds of source that need one.

    Raises:
        UnknownCredentialsError: the config names some that are not stored.
        PermanentError: no such source_type; the message lists those there are. Or the config lacks something, or it
            carries a secret.
    """
    _refuse_secrets(source_config)
    factory = _factory(str(source_config.get("source_type", "")))
    return factory(source_config, SourceContext(settings, credentials, clients))


def canonical_location(
    source_type: str,
    source_config: Mapping[str, Any],
    path: str,
    settings: PollingSettings,
    credentials: Mapping[str, Credential] = NO_CREDENTIALS,
) -> str:
    """The one address of a file over all sources, e.g. `local:/data/in/a.csv`; what `file_key` is made from.

    Raises:
        PermanentError: no such source_type.
    """
    return open_source({**source_config, "source_type": source_type}, settings, credentials).canonical_location(path)


def known_source_types() -> list[str]:
    """Every source_type that can be opened, sorted."""
    return sorted({*SHIPPED, *_registered()})


def _refuse_secrets(source_config: Mapping[str, Any]) -> None:
    """A file event carries a config as well, and what is in a message is in logs, ledgers and dead letters."""
    for name in source_config:
        if name.lower() in SECRET_NAMES:
            raise PermanentError(
                f'source_config carries {name!r}: name stored credentials instead ("credentials": "…").'
            )


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
