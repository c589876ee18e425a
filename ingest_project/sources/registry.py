"""Kinds of source by name, and the settings and shared clients for opening sources.

Another package adds a kind by an entry point in the group `ingest_project.sources`; its name is the `source_type`, its
value a `SourceFactory`:

    [project.entry-points."ingest_project.sources"]
    webdav = "my_package.webdav:open_webdav"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from msgspec.structs import replace
from pydantic import ValidationError

from ingest_project.contracts.files import FileEvent, secret_problem
from ingest_project.core import plugins
from ingest_project.core.errors import ForbiddenPathError, PermanentError, UnknownCredentialsError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import ConfiguredSource, Credential, PollingSettings, Settings
from ingest_project.core.yaml_models import nearest_or_known
from ingest_project.platform.http.client import WebClient, web_client
from ingest_project.platform.http.host_policy import HostLists, HostPattern, host_lists
from ingest_project.sources import Source, sanitized
from ingest_project.sources.reading import SourceLimits

logger = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class SourceContext:
    """Settings and shared clients of one process's sources; a client is created at its first use.

    Args:
        settings: settings of this process.
    """

    settings: Settings

    @property
    def polling(self) -> PollingSettings:
        """Return the limits and allowed locations of sources."""
        return self.settings.polling

    @property
    def credentials(self) -> Mapping[str, Credential]:
        """Return the stored credentials by name."""
        return self.settings.credentials

    @property
    def limits(self) -> SourceLimits:
        """Return the limits of time and entries of one source."""
        return SourceLimits.of(self.polling)

    @cached_property
    def host_lists(self) -> HostLists:
        """Return the lists of denied hosts and of allowed internal hosts."""
        return host_lists(self.settings)

    @cached_property
    def web(self) -> WebClient:
        """Return the client for web hosts, shared by all listings.

        Raises:
            SettingsError: a host pattern or credential is malformed.
        """
        polling = self.polling
        return web_client(self.settings, polling.source_connections, polling.source_connections_per_host)

    def credential(self, source_config: Mapping[str, Any]) -> Credential | None:
        """Return the stored credential that a job names; None if it names none.

        Raises:
            UnknownCredentialsError: no credential with that name is stored.
        """
        name = source_config.get("credentials")
        if name is None:
            return None
        if not isinstance(name, str) or name not in self.credentials:
            raise UnknownCredentialsError(str(name)[:100])
        return self.credentials[name]


def patterns_for(hosts: Iterable[str], host: str, port: int) -> list[HostPattern]:
    """Return the patterns among these that match a host.

    Raises:
        SettingsError: an entry is not a host pattern.
    """
    return [pattern for pattern in map(HostPattern.parse, hosts) if pattern.matches_name(host, port)]


def require_for_host(credential: Credential, host: str, port: int, location: str) -> None:
    """Refuse to send a credential to a host that it does not list.

    Raises:
        ForbiddenPathError: the host is not one of its `hosts`.
        SettingsError: an entry of its `hosts` is not a host pattern.
    """
    if not patterns_for(credential.hosts, host, port):
        raise ForbiddenPathError(
            location, "the credentials that the job names are not for this host; list it in their 'hosts'."
        )


MISTAKES_SHOWN = 5
# Number of parts of an address up to the bucket, or up to the container of an account.
ROOT_PARTS = {"s3": 3, "onelake": 4}

# Besides source_type, path and credentials.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "dummy": (),
    "ftp": ("host", "port", "username", "tls", "encoding", "time_zone"),
    "http": ("elsewhere",),
    "local": (),
    "onelake": (),
    "s3": ("bucket", "endpoint_url", "region", "requester_pays"),
    "sftp": ("host", "port", "username", "encoding"),
}
_SWITCHES = ("elsewhere", "requester_pays")

SourceFactory = Callable[[Mapping[str, Any], SourceContext], Source]
"""Makes a source from a job's `source_config` and the settings of this process."""

_MODULES = {kind: kind for kind in OPTIONS} | {"dummy": "local"}
SOURCES: plugins.Plugins[SourceFactory] = plugins.Plugins(
    plugins.SOURCES, {kind: f"ingest_project.sources.{module}:open_{kind}" for kind, module in _MODULES.items()}
)


def open_source(source_config: Mapping[str, Any], context: SourceContext) -> Source:
    """Create the source for a polling job's or file event's `source_config`, without connecting.

    Args:
        source_config: `source_type`, `path`, and the options of that type; `credentials` names a stored credential.
        context: settings and shared clients.

    Raises:
        UnknownCredentialsError: the credentials are not stored.
        PermanentError: the source_type is unknown (the message lists the known ones), or the config is incomplete,
            contains a secret, or names a forbidden location.
    """
    # A file event carries a config as well.
    if problem := secret_problem(source_config):
        raise PermanentError(problem)
    source_type = str(source_config.get("source_type", ""))
    factory = SOURCES.named(source_type, "source_type")
    try:
        return factory(source_config, context)
    except ValidationError as error:
        # A source of another package validates its options with its own model.
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:MISTAKES_SHOWN]
        )
        raise PermanentError(f"The source_config of {source_type!r} does not fit: {wrong}.") from None


def require_known_options(source_config: Mapping[str, Any]) -> None:
    """Refuse an option that its kind of source does not have: without effect it would list other files than were meant.

    File events keep theirs for years, so that only what asks for a listing is held to it. A source of another package
    checks its own.

    Raises:
        PermanentError: an option is unknown, or one of those that are true or false is neither.
    """
    source_type = source_config["source_type"]
    known = ("source_type", "path", "credentials", *OPTIONS.get(source_type, source_config))
    for name, value in source_config.items():
        if name not in known:
            hint = nearest_or_known(name, known)
            raise PermanentError(f"source_config of {source_type!r} has an unknown {sanitized(name)!r}{hint}")
        if name in _SWITCHES and value not in (True, False, "true", "false"):
            raise PermanentError(f"{name} of source_config must be true or false.")


class _Match(NamedTuple):
    """A configured source that may read a file; `covers` is the length of its folder, or 0 for a file outside it."""

    covers: int
    name: str
    source: ConfiguredSource


def with_source(event: FileEvent, context: SourceContext) -> FileEvent:
    """Return a notification's event with the `source_config` that reads its file.

    A notification contains neither credentials nor an endpoint, and anyone may have sent it. The settings determine
    how its bucket or container is read: by a configured source, with stored credentials that list it, or with the
    settings' own identity. Each source refuses an object that no setting allows. A file in the folder of a
    configured source also gets that source's name as its job, and its metadata.
    """
    found = max(_configured(event, context), key=lambda match: match.covers, default=None)
    if found is None:
        root = "/".join(event.file_path.split("/")[: ROOT_PARTS[event.source_type]])
        name = next(_credentials(event, root, context), None)
        return replace(event, source_config={"path": root} if name is None else {"path": root, "credentials": name})
    event = replace(event, source_config={**found.source.source_config})
    if not found.covers:
        return event
    return replace(event, job_id=found.name, metadata={**found.source.metadata, **event.metadata})


def _configured(event: FileEvent, context: SourceContext) -> Iterator[_Match]:
    """Yield the configured sources of the file's bucket or container."""
    for name, configured in context.settings.sources.items():
        if configured.source_config["source_type"] != event.source_type:
            continue
        try:
            source = open_source(configured.source_config, context)
        except PermanentError as error:
            # An invalid source fails when it is listed, and must not affect the others; here it has no files.
            logger.warning("source_not_usable", source=name, reason=str(error))
            continue
        with suppress(PermanentError):
            source.require_allowed(event.file_path)
            folder = f"{source.location.rstrip('/')}/"
            is_inside = source.canonical_location(event.file_path).startswith(folder)
            yield _Match(len(folder) if is_inside else 0, name, configured)


def _credentials(event: FileEvent, root: str, context: SourceContext) -> Iterator[str]:
    """Yield the names of stored credentials that list the file's bucket or account."""
    for name, credential in context.credentials.items():
        if not (credential.buckets if event.source_type == "s3" else credential.hosts):
            continue
        with suppress(PermanentError):
            config = {"source_type": event.source_type, "path": root, "credentials": name}
            open_source(config, context).require_allowed(event.file_path)
            yield name
