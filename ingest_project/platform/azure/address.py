"""Parse addresses in OneLake and other ADLS Gen2 accounts, and decide which of their paths may be written.

An address may come from a message. It is parsed by the one grammar of addresses (`http.urls`) and put together again,
it never carries a secret, and the host it names must be one that our credentials may be sent to: Microsoft's, or the
endpoint that the settings name. `identity` decides which accounts of these hosts a message may name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from ingest_project.core.errors import ForbiddenPathError, SettingsError
from ingest_project.platform.http.urls import (
    DEFAULT_PORTS,
    PRINTED_LENGTH,
    Address,
    MalformedAddressError,
    host_and_port,
    printable_url,
    split_address,
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
# An item and its first level (`Files`, `Tables`) are made by Fabric, never through the storage API.
MANAGED_LEVELS = 2
EXAMPLE = f"{DEFAULT_ENDPOINT}/<workspace>/<item>.Lakehouse/Files/<folder>"

_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_ITEM = re.compile(r".+\.[A-Za-z][A-Za-z0-9]*")
_ITEM_OF_KNOWN_TYPE = re.compile(
    r".+\.(?:Lakehouse|Warehouse|DataWarehouse|KQLDatabase|MirroredDatabase|SQLDatabase|Eventhouse)", re.IGNORECASE
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class OneLakeAddress:
    """One place: an account, a file system (in OneLake: the workspace), and a path in it.

    Args:
        account_url: scheme, host and where it is not the usual one the port, as `parse_address` put them together.
        file_system: workspace or container, by name or GUID.
        path: without a slash at either end; empty for the file system itself.
    """

    account_url: str
    file_system: str
    path: str = ""

    @property
    def url(self) -> str:
        """As people and other programs write it, percent-encoded."""
        return f"{self.account_url}/{quote(self.file_system)}/{quote(self.path)}".rstrip("/")

    @property
    def is_fabric(self) -> bool:
        """Whether Fabric's rules hold: a OneLake host, or a path that starts with an item."""
        item = self.path.partition("/")[0]
        if self.account_url.endswith(FABRIC_HOSTS):
            return True
        return bool(_ITEM_OF_KNOWN_TYPE.fullmatch(item) or (_is_guid(self.file_system) and _is_guid(item)))

    def child(self, relative: str) -> OneLakeAddress:
        """A place below this one.

        Raises:
            ForbiddenPathError: not a plain relative path, see `safe_path`.
        """
        inner = safe_path(relative)
        return replace(self, path=f"{self.path}/{inner}" if self.path else inner)


def parse_address(text: str, endpoint: str = DEFAULT_ENDPOINT) -> OneLakeAddress:
    """The place that an address names.

    Args:
        text: `https://<host>/<workspace>/<item>.Lakehouse/Files/x`, the same with two GUIDs, `abfss://<file
            system>@<host>/x`, or `<workspace>/<item>.Lakehouse/Files/x` at the endpoint.
        endpoint: account that short addresses mean; its host is trusted, and it alone may be plain http.

    Raises:
        SettingsError: not an address of any of these forms.
        ForbiddenPathError: a host that gets no credential of ours, or a path with `..`, empty or unprintable parts.
    """
    account = account_url(endpoint)
    if "://" not in text:
        return _address(account, text.strip("/"), text[:PRINTED_LENGTH])
    shown = printable_url(text)
    try:
        parts = split_address(text, SCHEMES, with_user=text.lower().startswith("abfs"))
    except MalformedAddressError as error:
        raise SettingsError(f"{shown} is no address in OneLake: {error.reason}. Example: {EXAMPLE}") from None
    if parts.query is not None or parts.fragment is not None:
        raise SettingsError(f"{shown} carries a query, which may be a secret. Set the credential by itself.")
    rest = parts.path
    if parts.scheme.startswith("abfs"):
        if not parts.user:
            raise SettingsError(
                f"{shown} names no file system. Example: abfss://container@account.dfs.core.windows.net/x."
            )
        rest = f"{parts.user}{parts.path}"
    return _address(_account_of(parts, account, shown), unquote(rest).strip("/"), shown)


def account_url(endpoint: str) -> str:
    """The address of a configured account, put together again.

    Raises:
        SettingsError: it is not the address of a server.
    """
    try:
        parts = split_address(endpoint, tuple(DEFAULT_PORTS))
        reason = "" if parts.is_server else "it names more than a server"
    except MalformedAddressError as error:
        reason = error.reason
    if reason:
        raise SettingsError(f"INGEST_ONELAKE_ENDPOINT={printable_url(endpoint)} is no account: {reason}.")
    return _server(parts.scheme, parts)


def is_address(text: str) -> bool:
    """Whether the text means a place in OneLake rather than a local folder; it may still be malformed."""
    if "://" in text:
        return text.partition("://")[0].lower() in {"https", "http", "abfss", "abfs"}
    parts = text.split("/")
    if len(parts) < MANAGED_LEVELS or not all(parts[:MANAGED_LEVELS]):
        return False
    return bool(_ITEM_OF_KNOWN_TYPE.fullmatch(parts[1])) or all(map(_is_guid, parts[:MANAGED_LEVELS]))


def require_writable(address: OneLakeAddress) -> None:
    """Refuse a place that the storage API can neither create nor replace.

    Raises:
        ForbiddenPathError: the file system itself, or in OneLake an item, its first level, or what is beside them.
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
    """Refuse a place that files cannot be kept below.

    Raises:
        ForbiddenPathError: in OneLake, anything above an item's first level.
    """
    if address.is_fabric and len(address.path.split("/")) < MANAGED_LEVELS:
        raise ForbiddenPathError(address.url, f"files are kept below an item's first level. Example: {EXAMPLE}")


def safe_path(path: str) -> str:
    """The path without slashes at its ends, unchanged otherwise.

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
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ForbiddenPathError(ascii(shown), "it cannot be written as UTF-8.") from None
    return "/".join(parts)


def _address(account: str, place: str, shown: str) -> OneLakeAddress:
    if not place:
        raise SettingsError(f"{shown or 'An empty text'} names no workspace or file system. Example: {EXAMPLE}")
    file_system, _, path = safe_path(place).partition("/")
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
    """The account's address, if it may be asked at all."""
    # `abfss` says as much as https, and abfs as http; which of them the endpoint speaks is for its setting to say.
    if endpoint in (_server("https", parts), _server("http", parts)):
        return endpoint
    if parts.scheme in {"http", "abfs"}:
        raise ForbiddenPathError(shown, "only https (abfss) addresses are used, except for the configured endpoint.")
    # Tools show the blob form of the same account as often; the files are the same.
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
