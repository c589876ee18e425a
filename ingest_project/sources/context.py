"""What a source is opened with, beside a job's own config: settings, stored credentials, and clients made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pydantic import SecretStr

from ingest_project.core.errors import ForbiddenPathError, SettingsError, UnknownCredentialsError
from ingest_project.core.settings import Credential, OneLakeSettings, PollingSettings
from ingest_project.platform.azure.accounts import AllowedAccount, OneLakeOptions, onelake_options
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.host_policy import NO_LISTS, HostLists, HostPattern, HostRules

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NO_CREDENTIALS: Mapping[str, Credential] = MappingProxyType({})


@dataclass(frozen=True)
class S3Contact:
    """The one server that a job's endpoint may be.

    Args:
        host: canonical.
        port: given or default.
        internal_allowed: whether a setting names this very host, so that it may have an internal address.
    """

    host: str
    port: int
    internal_allowed: bool

    def rules(self, lists: HostLists) -> HostRules:
        """Under which its client connects."""
        return lists.rules_for((self.host, self.port), internal_allowed=self.internal_allowed)


@dataclass(frozen=True)
class S3Account:
    """Who we are to which S3. What is None comes from boto3's own configuration.

    Args:
        endpoint_url: address of a server other than Amazon's.
        unsigned: ask as nobody; what is public answers.
        contact: which hosts its client may connect to; None where the settings alone name the endpoint.
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    unsigned: bool = False
    contact: S3Contact | None = None


class NamedBucket(NamedTuple):
    """A bucket at an endpoint.

    Args:
        endpoint: origin of the server.
        bucket: its name.
    """

    endpoint: str
    bucket: str


def _no_s3(_account: S3Account) -> NoReturn:
    raise SettingsError("No S3 client was handed to this source.")


def _no_web() -> NoReturn:
    raise SettingsError("No web client was handed to this source.")


@dataclass(frozen=True)
class Clients:
    """Makes what sources talk through; each is asked for only when a source of its kind is used.

    Args:
        s3_account: of jobs that name neither credentials nor an endpoint.
        s3: a client of an account; the same one for equal accounts, so that connections are kept.
        web: the client of web hosts; the same one each time.
        onelake: how OneLake is reached by jobs that name no credentials.
        lists: hosts that no client contacts, and internal ones that each may.
        buckets: those of configured sources, which jobs may name as well.
        accounts: in OneLake and ADLS Gen2: those that are listed, and those of configured sources, stores and tables.
    """

    s3_account: S3Account = field(default_factory=S3Account)
    s3: Callable[[S3Account], S3Client] = _no_s3
    web: Callable[[], WebClient] = _no_web
    onelake: OneLakeSettings = field(default_factory=OneLakeSettings)
    lists: HostLists = NO_LISTS
    buckets: Callable[[], frozenset[NamedBucket]] = frozenset
    accounts: Callable[[], tuple[AllowedAccount, ...]] = tuple

    def onelake_options(self, credential: Credential | None) -> OneLakeOptions:
        """How OneLake is reached, with a stored credential or the settings' own."""
        return onelake_options(self.onelake, credential)


@dataclass(frozen=True)
class SourceContext:
    """What sources are opened with.

    Args:
        settings: what may be looked at.
        credentials: the stored ones by name.
        clients: for kinds of source whose client is made elsewhere.
    """

    settings: PollingSettings = field(default_factory=PollingSettings)
    credentials: Mapping[str, Credential] = field(default_factory=lambda: NO_CREDENTIALS)
    clients: Clients = field(default_factory=Clients)


def named_credential(source_config: Mapping[str, Any], credentials: Mapping[str, Credential]) -> Credential | None:
    """The stored credential that a job names; None when it names none.

    Raises:
        UnknownCredentialsError: there is none of that name.
    """
    name = source_config.get("credentials")
    if name is None:
        return None
    if not isinstance(name, str) or name not in credentials:
        raise UnknownCredentialsError(str(name)[:100])
    return credentials[name]


def require_for_host(credential: Credential, host: str, port: int, location: str) -> None:
    """Refuse to show a credential to a host that it does not list.

    Raises:
        ForbiddenPathError: the host is not one of its `hosts`.
        SettingsError: an entry of its `hosts` is not a host pattern.
    """
    if not any(HostPattern.parse(listed).matches_name(host, port) for listed in credential.hosts):
        raise ForbiddenPathError(
            location, "the credentials that the job names are not for this host; list it in their 'hosts'."
        )
