"""Parse addresses in OneLake and other ADLS Gen2 accounts, and decide which accounts may receive our credential.

An address may come from a message. It is parsed by the one grammar of addresses (`http.urls`) and rebuilt from its
parts. It never carries a secret, and credentials are sent only to its host if that is one of Microsoft's storage hosts
or the configured endpoint.

A message may name only accounts that are listed: an identity, a key or a SAS is sent to no other. Each account of ADLS
Gen2 has its own host. OneLake has one host for all tenants, so there the list names workspaces. A store, table or
source that the settings name counts as listed.

Nothing here loads the Azure SDK; `client` and `identity` do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from glob import escape
from urllib.parse import quote, unquote

from pydantic import SecretStr

from ingest_project.core.errors import ForbiddenPathError, PermanentError, SettingsError, StoreUnavailableError
from ingest_project.core.settings import Credential, OneLakeSettings
from ingest_project.platform.http import (
    DEFAULT_PORTS,
    PRINTED_LENGTH,
    Address,
    MalformedAddressError,
    host_and_port,
    redacted_url,
    split_address,
    split_server,
)

DEFAULT_ENDPOINT = "https://onelake.dfs.fabric.microsoft.com"
FABRIC_HOSTS = ".dfs.fabric.microsoft.com"
TRUSTED_HOSTS = (
    FABRIC_HOSTS,
    ".dfs.core.windows.net",
    ".dfs.storage.azure.net",
    ".dfs.core.usgovcloudapi.net",
    ".dfs.core.chinacloudapi.cn",
)
SCHEMES = ("https", "http", "abfss", "abfs")
LONGEST_PATH = 1_024
LONGEST_SEGMENT = 255
# Fabric creates an item and its first level (`Files`, `Tables`); the storage API cannot.
MANAGED_LEVELS = 2
ALLOWED_ACCOUNTS = "INGEST_ONELAKE_ALLOWED_ACCOUNTS"
EXAMPLE = f"{DEFAULT_ENDPOINT}/<workspace>/<item>.Lakehouse/Files/<folder>"

_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_ITEM = re.compile(r".+\.[A-Za-z][A-Za-z0-9]*")
_ITEM_OF_KNOWN_TYPE = re.compile(
    r".+\.(?:Lakehouse|Warehouse|DataWarehouse|KQLDatabase|MirroredDatabase|SQLDatabase|Eventhouse)", re.IGNORECASE
)
_ANY_ITEM = "any.Lakehouse/Files"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


class StoreRejectedError(PermanentError):
    """OneLake refused a request; a retry would be refused as well.

    Args:
        address: address of the file or folder, without secrets.
        status: HTTP status; None when no credential was available.
        code: the service's own name for the reason, e.g. `AuthorizationFailure`.
    """

    def __init__(self, address: str, status: int | None, code: str, remedy: str = "") -> None:
        self.address = address
        self.status = status
        self.code = code
        answer = f"{status} {code}".strip() if status else code
        super().__init__(f"{address} was refused: {answer}. {remedy}".rstrip())


class StoreThrottledError(StoreUnavailableError):
    """OneLake throttles requests.

    Args:
        address: address of the file or folder, without secrets.
        cause: OneLake's answer.
        retry_after: the wait that OneLake requested; None if it requested none.
    """

    def __init__(self, address: str, cause: object, retry_after: timedelta | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(address, cause)


@dataclass(frozen=True, slots=True)
class OneLakeAddress:
    """One location: an account, a file system (in OneLake: the workspace), and a path in it.

    Args:
        account_url: scheme, host and any non-default port, as `parse_address` returns them.
        file_system: workspace or container, by name or GUID.
        path: without a slash at either end; empty for the file system itself.
    """

    account_url: str
    file_system: str
    path: str = ""

    @property
    def url(self) -> str:
        """Return the address as people and other programs write it, percent-encoded."""
        return f"{self.account_url}/{quote(self.file_system)}/{quote(self.path)}".rstrip("/")

    @property
    def is_fabric(self) -> bool:
        """Return True if Fabric's rules apply: the host is OneLake's, or the path starts with an item."""
        item = self.path.partition("/")[0]
        if self.account_url.endswith(FABRIC_HOSTS):
            return True
        return bool(_ITEM_OF_KNOWN_TYPE.fullmatch(item) or (_is_guid(self.file_system) and _is_guid(item)))

    def child(self, relative: str) -> OneLakeAddress:
        """Return a location below this one.

        Raises:
            ForbiddenPathError: `relative` is not a plain relative path, see `safe_path`.
        """
        inner = safe_path(relative)
        return replace(self, path=f"{self.path}/{inner}" if self.path else inner)


def parse_address(text: str, endpoint: str = DEFAULT_ENDPOINT) -> OneLakeAddress:
    """Parse an address.

    Args:
        text: `https://<host>/<workspace>/<item>.Lakehouse/Files/x`, the same with two GUIDs, `abfss://<file
            system>@<host>/x`, or `<workspace>/<item>.Lakehouse/Files/x` at the endpoint.
        endpoint: account of addresses without a host; it is trusted, and only it may use plain http.

    Raises:
        SettingsError: not an address of any of these forms.
        ForbiddenPathError: a host that our credential may not be sent to, or a path with `..`, empty or unprintable
            parts.
    """
    account = account_url(endpoint)
    if "://" not in text:
        return _address(account, text.strip("/"), text[:PRINTED_LENGTH])
    shown = redacted_url(text)
    try:
        parts = split_address(text, SCHEMES, with_user=text.lower().startswith("abfs"))
    except MalformedAddressError as error:
        raise SettingsError(f"{shown} is no address in OneLake: {error.reason}. Example: {EXAMPLE}") from None
    if parts.query is not None or parts.fragment is not None:
        raise SettingsError(f"{shown} carries a query, which may be a secret. Set the credential in its own setting.")
    rest = parts.path
    if parts.scheme.startswith("abfs"):
        if not parts.user:
            raise SettingsError(
                f"{shown} names no file system. Example: abfss://container@account.dfs.core.windows.net/x."
            )
        rest = f"{parts.user}{parts.path}"
    return _address(_account_of(parts, account, shown), unquote(rest).strip("/"), shown)


def account_url(endpoint: str) -> str:
    """Return the address of a configured account, rebuilt from its parts.

    Raises:
        SettingsError: it is not the address of a server.
    """
    try:
        parts = split_server(endpoint, tuple(DEFAULT_PORTS))
    except MalformedAddressError as error:
        shown = redacted_url(endpoint)
        raise SettingsError(f"INGEST_ONELAKE_ENDPOINT={shown} is no account: {error.reason}.") from None
    return _server(parts.scheme, parts)


def is_address(text: str) -> bool:
    """Return True for an address in OneLake, which may still be malformed; False for a local folder."""
    if "://" in text:
        return text.partition("://")[0].lower() in SCHEMES
    parts = text.split("/")
    if len(parts) < MANAGED_LEVELS or not all(parts[:MANAGED_LEVELS]):
        return False
    return bool(_ITEM_OF_KNOWN_TYPE.fullmatch(parts[1])) or all(map(_is_guid, parts[:MANAGED_LEVELS]))


def require_writable(address: OneLakeAddress) -> None:
    """Refuse a location that the storage API can neither create nor replace.

    Raises:
        ForbiddenPathError: the file system itself, or in OneLake an item, its first level, or anything next to them.
    """
    levels = len(address.path.split("/")) if address.path else 0
    if not address.is_fabric:
        if not levels:
            raise ForbiddenPathError(address.url, "a file system is not a file. Name a path in it.")
        return
    if levels <= MANAGED_LEVELS:
        raise ForbiddenPathError(
            address.url, "workspaces, items and their first level belong to Fabric. Name a folder below <item>/Files."
        )


def require_folder(address: OneLakeAddress) -> None:
    """Refuse a location that cannot be the parent of stored files.

    Raises:
        ForbiddenPathError: in OneLake, anything above an item's first level.
    """
    if address.is_fabric and len(address.path.split("/")) < MANAGED_LEVELS:
        raise ForbiddenPathError(address.url, f"files are kept below an item's first level. Example: {EXAMPLE}")


def safe_path(path: str) -> str:
    """Return the path without slashes at its ends, unchanged otherwise.

    Raises:
        ForbiddenPathError: `.` or `..`, an empty part, a backslash, an unprintable character, or longer than the
            service takes.
    """
    shown = path[:200]
    parts = path.strip("/").split("/")
    if len(path) > LONGEST_PATH or any(len(part.encode("utf-8", "replace")) > LONGEST_SEGMENT for part in parts):
        raise ForbiddenPathError(
            shown, f"at most {LONGEST_PATH} characters, and {LONGEST_SEGMENT} bytes a part, are taken."
        )
    if any(part in {"", ".", ".."} for part in parts):
        raise ForbiddenPathError(shown, "empty parts, `.` and `..` are not followed.")
    if "\\" in path or _UNPRINTABLE.search(path):
        raise ForbiddenPathError(shown, "it contains a backslash or an unprintable character.")
    if path.encode("utf-8", "replace").decode() != path:
        raise ForbiddenPathError(ascii(shown), "it cannot be written as UTF-8.")
    return "/".join(parts)


@dataclass(frozen=True)
class AllowedAccount:
    """One account, or one file system (in OneLake: workspace) of it.

    Args:
        account_url: as `OneLakeAddress` has it.
        file_system: pattern of its name or GUID, in lower case.
    """

    account_url: str
    file_system: str

    @classmethod
    def parse(cls, text: str) -> AllowedAccount:
        """Read one entry: `account.dfs.core.windows.net`, or with `/container`; in OneLake with `/workspace` or `/*`.

        Raises:
            SettingsError: the entry has none of these forms, or names OneLake's host without a workspace.
        """
        host, slash, file_system = text.strip().removeprefix("https://").partition("/")
        if not file_system.strip("/") and host.lower().endswith(FABRIC_HOSTS):
            raise SettingsError(
                f"{ALLOWED_ACCOUNTS}: {host} is the host of every tenant. Name a workspace ({host}/<workspace>, or its "
                f"GUID), or {host}/* for all that our identity may see."
            )
        try:
            # Parse it as an address, so that the same rules apply to the host.
            account = parse_address(f"https://{host}/any/{_ANY_ITEM}").account_url
        except PermanentError as error:
            raise SettingsError(f"{ALLOWED_ACCOUNTS}: {text!r} is no account: {error}") from None
        return cls(account, file_system.strip("/").lower() if slash and file_system.strip("/") else "*")

    def allows(self, address: OneLakeAddress) -> bool:
        """Return True if this location is in the account."""
        return self.account_url == address.account_url and fnmatchcase(address.file_system.lower(), self.file_system)


def accounts_of(addresses: Iterable[str], endpoint: str = DEFAULT_ENDPOINT) -> list[AllowedAccount]:
    """Return the accounts that configured addresses name, and the endpoint itself unless it is OneLake's.

    Args:
        addresses: addresses of stores, tables and sources; those outside OneLake are ignored.
        endpoint: account of addresses without a host.

    Raises:
        SettingsError: the endpoint is not the address of a server.
    """
    own = account_url(endpoint)
    accounts = [] if own.endswith(FABRIC_HOSTS) else [AllowedAccount(own, "*")]
    for text in filter(is_address, addresses):
        # A malformed setting is reported where the setting is used.
        with suppress(PermanentError):
            address = parse_address(text, endpoint)
            accounts.append(AllowedAccount(address.account_url, escape(address.file_system.lower())))
    return accounts


@dataclass(frozen=True)
class OneLakeCredential:
    """Our credential: a SAS, an account key, or with neither the identity that azure-identity finds.

    azure-identity's default tries environment variables, workload and managed identities and the Azure CLI, in this
    order. OneLake itself takes tokens and user-delegated SAS; account keys are for other ADLS Gen2 accounts.

    Args:
        sas: a shared access signature, with or without its leading `?`.
        account_name: account to which the key belongs.
        account_key: key of that account.

    Raises:
        SettingsError: a SAS and a key are both set, or a key without its account.
    """

    sas: SecretStr | None = None
    account_name: str | None = None
    account_key: SecretStr | None = None

    def __post_init__(self) -> None:
        if self.sas and self.account_key:
            raise SettingsError("A store takes a SAS or an account key, not both.")
        if bool(self.account_key) != bool(self.account_name):
            raise SettingsError("An account key and the name of its account belong together.")


@dataclass(frozen=True)
class OneLakeOptions:
    """Connection options of OneLake.

    Args:
        endpoint: account of addresses without a host.
        concurrency: connections kept open, and chunks of one large file sent at a time.
        chunk_bytes: size of one append; a file of at most this size is sent in one.
        connect_timeout_seconds: timeout for opening a connection.
        read_timeout_seconds: longest silence of the service.
        retries: further attempts of a request that failed for a transient reason.
        longest_wait_seconds: longest pause between two attempts; if the service requests a longer one, the request is
            not retried here, and the error carries the requested pause.
    """

    credential: OneLakeCredential = field(default_factory=OneLakeCredential)
    endpoint: str = DEFAULT_ENDPOINT
    concurrency: int = 8
    chunk_bytes: int = 8 * 1024**2
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 60.0
    retries: int = 3
    longest_wait_seconds: float = 8.0


def onelake_options(settings: OneLakeSettings, stored: Credential | None = None) -> OneLakeOptions:
    """Build the connection options of OneLake from its settings.

    Args:
        settings: the section `onelake`.
        stored: a credential that a job names, used instead of the section's own.

    Raises:
        SettingsError: the credential is incomplete or ambiguous, see `OneLakeCredential`.
    """
    secrets = stored or settings
    return OneLakeOptions(
        OneLakeCredential(secrets.sas_token, secrets.account_name, secrets.account_key),
        endpoint=settings.endpoint,
        concurrency=settings.concurrency,
    )


def _address(account: str, location: str, shown: str) -> OneLakeAddress:
    if not location:
        raise SettingsError(f"{shown or 'An empty text'} names no workspace or file system. Example: {EXAMPLE}")
    file_system, _, path = safe_path(location).partition("/")
    address = OneLakeAddress(account, file_system, path)
    item = path.partition("/")[0]
    if not item or not account.endswith(FABRIC_HOSTS):
        return address
    if _is_guid(file_system) != _is_guid(item):
        raise SettingsError(f"{shown}: OneLake takes the workspace and the item both by GUID or both by name.")
    if not _is_guid(item) and not _ITEM.fullmatch(item):
        raise SettingsError(f"{shown}: the item needs its type. Example: {EXAMPLE}")
    return address


def _account_of(parts: Address, endpoint: str, shown: str) -> str:
    """Return the account's address; refuse a host that may not be contacted."""
    # `abfss` stands for https and `abfs` for http, but the setting decides how the endpoint is reached.
    if endpoint in (_server("https", parts), _server("http", parts)):
        return endpoint
    if parts.scheme in {"http", "abfs"}:
        raise ForbiddenPathError(shown, "only https (abfss) addresses are used, except for the configured endpoint.")
    # Many tools show an account's blob address; the files are the same.
    host = parts.host.replace(".blob.", ".dfs.", 1)
    if not host.endswith(TRUSTED_HOSTS) or parts.port not in (None, DEFAULT_PORTS["https"]):
        raise ForbiddenPathError(
            shown, "credentials are sent to Microsoft's storage hosts and the configured endpoint only."
        )
    return f"https://{host}"


def _server(scheme: str, parts: Address) -> str:
    return f"{scheme}://{host_and_port(parts.host, None if parts.port == DEFAULT_PORTS[scheme] else parts.port)}"


def _is_guid(text: str) -> bool:
    return bool(_GUID.fullmatch(text))
