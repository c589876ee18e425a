"""Locate Delta tables, and build the credentials and options that their writer needs.

A table is addressed by a local folder, `s3://bucket/prefix`, `abfss://filesystem@account.dfs.core.windows.net/path`,
or OneLake's `https://onelake.dfs.fabric.microsoft.com/<workspace GUID>/<item GUID>/Tables/<name>`. On OneLake the GUIDs
are the safe form: listing from a start name failed there with friendly names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import (
    OneLakeSettings,
    Settings,
)
from ingest_project.platform.azure.accounts import default_credential
from ingest_project.platform.http.urls import MalformedAddressError, host_and_port, printable_url, split_address
from ingest_project.platform.object_store.store import Bucket, S3Options, location_of, s3_options

AZURE_SCHEMES = ("abfss", "abfs")
# A token that ends sooner than one slow commit may take counts as ended.
TOKEN_MARGIN = timedelta(minutes=5)
# One request, and all tries of one request: a run must learn within a minute or so that its store is away.
NETWORK_OPTIONS = {"timeout": "60s", "connect_timeout": "10s", "max_retries": "4", "retry_timeout": "60s"}


@dataclass(frozen=True)
class BearerToken:
    """A token for `https://storage.azure.com/.default`.

    Args:
        expires_at: UTC.
    """

    value: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True)
class AzureCredential:
    """How to be let in by ADLS Gen2 or OneLake: by exactly one of a token, a SAS or an account key.

    Args:
        tokens: gives a token that is valid now; asked again before the last one ends. azure-identity's credentials
            keep a token for its life, so that asking costs nothing.
        sas: shared access signature, as a query string.
        account_key: of the storage account; OneLake has none.
        endpoint_url: address of the blob service, where it is not the one that the table's address implies.
        emulator: the service is Azurite, at AZURITE_BLOB_STORAGE_URL: it cannot list from a start name.
    """

    tokens: Callable[[], BearerToken] | None = None
    sas: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)
    endpoint_url: str | None = None
    emulator: bool = False


@dataclass(frozen=True)
class DeltaCredentials:
    """Credentials for every kind of place; a local folder needs none."""

    s3: S3Options = field(default_factory=S3Options)
    azure: AzureCredential | None = None


@dataclass(frozen=True)
class DeltaLocation:
    """One table's address, and who is let in."""

    url: str
    credentials: DeltaCredentials = field(default_factory=DeltaCredentials)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return "://" not in self.url


@dataclass(frozen=True)
class StorageOptions:
    """What delta-rs is told, and until when that holds.

    Args:
        ends_at: UTC; None: it does not end.
    """

    values: dict[str, str] = field(repr=False)
    ends_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether a handle opened with these is to be opened again."""
        return self.ends_at is not None and datetime.now(UTC) >= self.ends_at


def delta_location(url: str, credentials: DeltaCredentials | None = None) -> DeltaLocation:
    """A table's place, its address written as delta-rs wants it.

    Raises:
        SettingsError: no such kind of address, or Azure without exactly one way to be let in.
    """
    credentials = credentials or DeltaCredentials()
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SettingsError(f"{printable_url(url)} is no address: {error}.") from None
    if parts.scheme in AZURE_SCHEMES or (parts.scheme == "https" and ".dfs." in parts.netloc):
        return _azure_place(url, credentials)
    if parts.scheme not in ("", "file", "s3"):
        raise SettingsError(f"{url} cannot hold a Delta table. Use a folder, s3://, abfss:// or OneLake's https://.")
    place = location_of(url)
    if isinstance(place, Bucket):
        return DeltaLocation(place.url.rstrip("/"), credentials)
    return DeltaLocation(str(place.absolute()), credentials)


def storage_options(place: DeltaLocation) -> StorageOptions:
    """What to tell delta-rs to get in, with a token of this moment where tokens are used."""
    if place.is_local:
        return StorageOptions({})
    if place.url.startswith("s3://"):
        return StorageOptions(NETWORK_OPTIONS | _s3_options(place.credentials.s3))
    credential = place.credentials.azure
    assert credential is not None  # noqa: S101 - delta_location saw to it
    return _azure_options(credential)


def _azure_place(url: str, credentials: DeltaCredentials) -> DeltaLocation:
    url = _abfss(url)
    azure = credentials.azure
    if azure is None or sum(way is not None for way in (azure.tokens, azure.sas, azure.account_key)) != 1:
        raise SettingsError(f"{url} needs exactly one of azure-identity, a SAS or an account key.")
    return DeltaLocation(url, credentials)


def _abfss(url: str) -> str:
    """The address as delta-rs takes it, put together again from its parts."""
    try:
        parts = split_address(url, ("https", *AZURE_SCHEMES), with_user=not url.lower().startswith("https"))
        reason = "" if parts.query is None and parts.fragment is None else "it carries a query, which may be a secret"
    except MalformedAddressError as error:
        reason = error.reason
    if reason:
        raise SettingsError(f"{printable_url(url)} names no table: {reason}.")
    scheme, filesystem, path = parts.scheme, parts.user, parts.path.strip("/")
    if scheme == "https":
        scheme, (filesystem, _, path) = "abfss", unquote(parts.path).strip("/").partition("/")
    if not filesystem or "/" in filesystem or not path:
        raise SettingsError(
            f"{printable_url(url)} names no table: abfss://<file system>@<account>.dfs.<domain>/<path> or "
            "https://<account>.dfs.<domain>/<file system>/<path> is expected."
        )
    return f"{scheme}://{filesystem}@{host_and_port(parts.host, parts.port)}/{path}"


def _s3_options(options: S3Options) -> dict[str, str]:
    # A commit is a PUT that S3 refuses when the name is taken: two writers never both get version N.
    told = {"aws_conditional_put": "etag"}
    if options.endpoint_url:
        told |= {"aws_endpoint_url": options.endpoint_url, "aws_virtual_hosted_style_request": "false"}
        told["aws_allow_http"] = str(options.endpoint_url.startswith("http://")).lower()
    named = {
        "aws_region": options.region,
        "aws_access_key_id": options.access_key_id,
        "aws_secret_access_key": options.secret_access_key,
    }
    return told | {name: value for name, value in named.items() if value}


def _azure_options(credential: AzureCredential) -> StorageOptions:
    told = dict(NETWORK_OPTIONS)
    if credential.emulator:
        told["azure_storage_use_emulator"] = "true"
    if credential.endpoint_url:
        told["azure_storage_endpoint"] = credential.endpoint_url
        told["azure_allow_http"] = str(credential.endpoint_url.startswith("http://")).lower()
    if credential.sas:
        return StorageOptions(told | {"azure_storage_sas_token": credential.sas.removeprefix("?")})
    if credential.account_key:
        return StorageOptions(told | {"azure_storage_account_key": credential.account_key})
    assert credential.tokens is not None  # noqa: S101 - delta_location saw to it
    token = credential.tokens()
    return StorageOptions(told | {"azure_storage_token": token.value}, token.expires_at - TOKEN_MARGIN)


STORAGE_SCOPE = "https://storage.azure.com/.default"


def delta_credentials(settings: Settings) -> DeltaCredentials:
    """How Delta tables are reached, wherever they are."""
    return DeltaCredentials(s3_options(settings.storage), azure_credential(settings.onelake))


def azure_credential(onelake: OneLakeSettings) -> AzureCredential:
    """A SAS, an account key, or with neither a token of azure-identity's default credential."""
    if onelake.sas_token:
        return AzureCredential(sas=onelake.sas_token.get_secret_value())
    if onelake.account_key:
        return AzureCredential(account_key=onelake.account_key.get_secret_value())
    return AzureCredential(tokens=_storage_token)


def _storage_token() -> BearerToken:
    token = default_credential().get_token(STORAGE_SCOPE)
    return BearerToken(token.token, datetime.fromtimestamp(token.expires_on, UTC))
