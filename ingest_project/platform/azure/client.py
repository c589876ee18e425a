"""Clients of Microsoft's SDK with bounded patience and one connection pool; list folders and read files."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ingest_project.core.errors import SettingsError
from ingest_project.platform.azure.address import OneLakeAddress
from ingest_project.platform.azure.errors import onelake_errors
from ingest_project.platform.azure.identity import OneLakeCredential, OneLakeOptions, default_credential

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from azure.core.credentials import AzureNamedKeyCredential, TokenCredential
    from azure.storage.blob import ContainerClient
    from azure.storage.filedatalake import FileSystemClient


# What a read asks for at a time: the SDK's own first request is 32 MiB, kept in memory whole.
READ_BYTES = 4 * 1024**2


def open_file_system(address: OneLakeAddress, options: OneLakeOptions | None = None) -> FileSystemClient:
    """A client of the address's file system; its path is not looked at. Nothing is connected to yet.

    It may be used from many threads, and its `get_file_client` share one connection pool. Close it after use. What it
    raises is told in our terms by `failures.onelake_errors`.

    Reading and file properties go through the account's blob endpoint, which the SDK derives from the name of the host.

    Raises:
        SettingsError: the credential does not suit the address.
    """
    from azure.storage.filedatalake import FileSystemClient  # noqa: PLC0415 - takes 0.3 s, and local stores do without

    with _credential_errors(address):
        return FileSystemClient(address.account_url, address.file_system, **_client_arguments(address, options))


def open_container(address: OneLakeAddress, options: OneLakeOptions | None = None) -> ContainerClient:
    """The same file system through the account's blob endpoint; otherwise as `open_file_system`.

    It writes a small file whole in one request, which the DFS calls need four for.
    """
    from azure.storage.blob import ContainerClient  # noqa: PLC0415 - see above

    account_url = blob_account_url(address.account_url)
    with _credential_errors(address):
        return ContainerClient(account_url, address.file_system, **_client_arguments(address, options))


def blob_account_url(account_url: str) -> str:
    """The blob endpoint of an account, as the SDK derives it; a test server has both under one name."""
    return account_url.replace(".dfs.", ".blob.", 1)


def _client_arguments(address: OneLakeAddress, options: OneLakeOptions | None) -> dict[str, Any]:
    from ingest_project.platform.azure.pipeline import PatientRetry, pooled_transport  # noqa: PLC0415 - imports azure

    options = options or OneLakeOptions()
    _silence()
    return {
        "credential": _credential(options.credential),
        # What one of them cannot do, the SDK asks of the other.
        "transport": pooled_transport([address.account_url, blob_account_url(address.account_url)], options),
        "retry_policy": PatientRetry(options),
        "max_single_get_size": READ_BYTES,
        "max_chunk_get_size": READ_BYTES,
        "max_single_put_size": options.chunk_bytes,
    }


@contextmanager
def _credential_errors(address: OneLakeAddress) -> Iterator[None]:
    """The SDK refuses a token over plain http and a malformed key; neither refusal quotes the credential."""
    try:
        yield
    except ValueError as error:
        raise SettingsError(f"The credential for {address.account_url} cannot be used: {error}") from None


def _credential(credential: OneLakeCredential) -> str | AzureNamedKeyCredential | TokenCredential:
    if credential.sas:
        # As text: the SDK then adds it to the source of a rename too, which AzureSasCredential does not.
        return credential.sas.get_secret_value().lstrip("?")
    if credential.account_name and credential.account_key:
        from azure.core.credentials import AzureNamedKeyCredential  # noqa: PLC0415 - loaded with the client

        return AzureNamedKeyCredential(credential.account_name, credential.account_key.get_secret_value())
    return default_credential()


def _silence() -> None:
    """The SDK logs every request's headers at INFO, and each way to sign in that it tried."""
    for name in ("azure.core.pipeline.policies.http_logging_policy", "azure.identity"):
        logging.getLogger(name).setLevel(logging.WARNING)


# The most that the service gives in one answer.
PAGE = 5_000


class Listed(NamedTuple):
    """One file or folder.

    Args:
        path: in its file system, without a slash at either end; starts with the item's name, or with its GUID where the
            service answers so.
        modified_at: UTC.
        etag: without quotes.
    """

    path: str
    is_folder: bool
    size_bytes: int
    modified_at: datetime
    etag: str


def list_folder(
    files: FileSystemClient, folder: OneLakeAddress, *, recursive: bool = True, page: int = PAGE
) -> Iterator[Listed]:
    """What is below a folder, as it is read; one page is in memory at a time.

    Raises:
        SourceNotFoundError, StoreRejectedError, StoreUnavailableError: at the first page or at any later one.
    """
    with onelake_errors(folder.url):
        for found in files.get_paths(folder.path or None, recursive=recursive, max_results=page):
            # The SDK gives times in UTC that do not say so.
            modified_at = found.last_modified.replace(tzinfo=UTC)
            size_bytes = found.content_length or 0
            yield Listed(found.name, bool(found.is_directory), size_bytes, modified_at, (found.etag or "").strip('"'))


class Download(Protocol):
    """What the SDK gives for a file being downloaded."""

    read: Callable[[int], bytes]


BUFFER_BYTES = 1024**2


def open_file(files: FileSystemClient, address: OneLakeAddress) -> io.BufferedReader:
    """The file's bytes, to be read in order; the caller closes it. At most `client.READ_BYTES` and a buffer are kept.

    All of it is of one version of the file: replaced meanwhile, it fails rather than mixes two.

    Raises:
        SourceNotFoundError, StoreRejectedError, StoreUnavailableError: when it is opened, and while it is read.
    """
    with onelake_errors(address.url):
        download = files.get_file_client(address.path).download_file()
    return io.BufferedReader(_DownloadedBytes(cast("Download", download), address.url), BUFFER_BYTES)


class _DownloadedBytes(io.RawIOBase):
    """A download of the SDK as a binary file."""

    def __init__(self, download: Download, address: str) -> None:
        self._download = download
        self._address = address

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        with onelake_errors(self._address):
            data = self._download.read(len(view))
        view[: len(data)] = data
        return len(data)
