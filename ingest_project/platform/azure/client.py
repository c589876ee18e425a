"""Clients of the Azure SDK with bounded retries and one connection pool; list folders, read files, map errors.

Importing this loads the SDK, which takes 0.3 s: import it where OneLake is used.

Only this module decides which failures are retried. The SDK's exceptions quote the requested address, which may contain
a SAS signature: they are neither repeated in a message nor chained, so that no log can show one.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import stamina
from azure.core.credentials import AzureNamedKeyCredential, TokenCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import ContainerClient
from azure.storage.filedatalake import ExponentialRetry, FileSystemClient

from ingest_project.core.errors import IngestError, SettingsError, SourceNotFoundError, StoreUnavailableError
from ingest_project.core.local_files import BlockReader
from ingest_project.core.secrets import renewed, text_of
from ingest_project.platform.azure import (
    OneLakeAddress,
    OneLakeCredential,
    OneLakeOptions,
    StoreRejectedError,
    StoreThrottledError,
)
from ingest_project.platform.http import parse_url
from ingest_project.platform.http.pinned_transport import BoundSession
from ingest_project.platform.http.response import parse_retry_after

# Size of one read request. The SDK's default for the first request is 32 MiB, which it keeps in memory.
READ_BYTES = 4 * 1024**2
BUFFER_BYTES = 1024**2
# Callers split what they write themselves: the SDK must not split it again.
MAX_PUT_BYTES = 256 * 1024**2
# The service's maximum for one page.
PAGE = 5_000
CALLERS_PER_APPEND = 4
REFUSALS = frozenset({401, 403})
# Messages name file systems, and each client takes megabytes: their number is bounded.
KEPT_CLIENTS = 32
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
FIRST_WAIT_SECONDS = 0.25
WAIT_FACTOR = 4
TRANSIENT_STATUSES = frozenset({408, 412, 425, 429})
SERVER_ERRORS = 500
# Endings of codes that come with 400 or 409, and nevertheless pass.
PASSING = ("BeingDeleted", "Md5Mismatch")
NOT_FOUND = 404
NO_FILE_SYSTEM = frozenset({"FilesystemNotFound", "ContainerNotFound", "WorkspaceNotFound"})
MAX_CAUSE_LENGTH = 200
_PAUSE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
# A longer pause that the service requests is cut to this, as for any host.
LONGEST_PAUSE_SECONDS = 3_600.0
REMEDIES = {
    400: "Check the address.",
    401: "The credential was not accepted: check it.",
    403: "Check the credential and its rights on this location.",
    409: "Another file or folder has this name.",
}


class Listed(NamedTuple):
    """One file or folder.

    Args:
        path: path in its file system, without a slash at either end; starts with the item's name or GUID, whichever the
            service returns.
        modified_at: UTC.
        etag: without quotes.
    """

    path: str
    is_folder: bool
    size_bytes: int
    modified_at: datetime
    etag: str


class Download(Protocol):
    """A file being downloaded, as the SDK returns it."""

    read: Callable[[int], bytes]


class BoundedRetry(ExponentialRetry):
    """Retry a few times, after a short pause or the one that the service requests; never wait for minutes.

    The SDK's own policy waits at least 15 s before its second attempt, ignores `Retry-After`, and gives up on a 429.
    """

    def __init__(self, options: OneLakeOptions) -> None:
        super().__init__(retry_total=options.retries)
        self._attempts = options.retries + 1
        self._longest = options.longest_wait_seconds
        self._secret = options.credential.sas or options.credential.account_key
        self._used = text_of(self._secret or "")

    def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Send one request until it is answered, or until the attempts are used up."""
        # This also removes the storage client's own options, which must not reach the transport.
        settings = self.configure_retries(request)
        attempts = stamina.retry_context(
            on=self._pause,
            attempts=self._attempts,
            timeout=None,
            wait_initial=FIRST_WAIT_SECONDS,
            wait_max=self._longest,
            wait_jitter=0,
            wait_exp_base=WAIT_FACTOR,
        )
        try:
            for attempt in attempts:
                with attempt:
                    response = self._send_once(request)
        except _FailedAttemptError as failed:
            if isinstance(failed.outcome, AzureError):
                raise failed.outcome from None
            response = failed.outcome
        response.http_response.location_mode = settings["mode"]
        return response

    def _send_once(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        try:
            response: PipelineResponse[Any, Any] = self.next.send(request)
        except (ServiceRequestError, ServiceResponseError) as error:
            raise _FailedAttemptError(error) from None
        if response.http_response.status_code in RETRIED_STATUSES:
            raise _FailedAttemptError(response)
        if response.http_response.status_code in REFUSALS and renewed(self._secret, self._used):
            # This client still uses the old credential.
            raise ServiceRequestError("The credential has changed.")
        return response

    def _pause(self, failed: Exception) -> bool | float:
        """Decide on another attempt: the seconds to wait, True for the default pause, or False for no retry."""
        if not isinstance(failed, _FailedAttemptError):
            return False
        if isinstance(failed.outcome, AzureError):
            return True
        seconds = retry_after_seconds(failed.outcome.http_response.headers)
        if seconds is None:
            return True
        return seconds <= self._longest and max(seconds, FIRST_WAIT_SECONDS)


class _FailedAttemptError(Exception):
    """A retryable failure. Its text is empty, because the SDK's texts quote addresses with their signatures."""

    def __init__(self, outcome: AzureError | PipelineResponse[Any, Any]) -> None:
        self.outcome = outcome
        super().__init__()


def open_file_system(address: OneLakeAddress, options: OneLakeOptions | None = None) -> FileSystemClient:
    """Return a client of the address's file system, without connecting; the address's path is ignored.

    Threads may share the client, and the clients from its `get_file_client` share one connection pool. `onelake_errors`
    maps its exceptions.

    Reads and file properties use the account's blob endpoint, which the SDK derives from the host name.

    Raises:
        SettingsError: the credential does not suit the address.
    """
    with _credential_errors(address):
        return FileSystemClient(address.account_url, address.file_system, **_client_arguments(address, options))


@lru_cache(maxsize=KEPT_CLIENTS)
def shared_file_system(account_url: str, file_system: str, options: OneLakeOptions) -> FileSystemClient:
    """Return this process's client for a file system and a credential; a rotated credential gets a new client."""
    return open_file_system(OneLakeAddress(account_url, file_system), options)


@lru_cache(maxsize=KEPT_CLIENTS)
def shared_container(account_url: str, file_system: str, options: OneLakeOptions) -> ContainerClient:
    """Return this process's client for the account's blob endpoint, otherwise as `shared_file_system`.

    It writes a small file in one request; the DFS endpoint needs four.
    """
    address = OneLakeAddress(account_url, file_system)
    with _credential_errors(address):
        return ContainerClient(blob_account_url(account_url), file_system, **_client_arguments(address, options))


def blob_account_url(account_url: str) -> str:
    """Return the blob endpoint of an account, as the SDK derives it; a test server has both under one name."""
    return account_url.replace(".dfs.", ".blob.", 1)


def pooled_transport(servers: Sequence[str], options: OneLakeOptions) -> RequestsTransport:
    """Return a transport that sends requests to these servers only, whatever redirects the service returns.

    Its pool keeps enough connections: with requests' default of 10, further ones would be reopened each time.

    Args:
        servers: addresses of the account's endpoints; the first one determines the proxy and the certificates.
        options: timeouts and concurrency of the transport.
    """
    # Leave connections for callers other than appends. A blocking pool would bound them, but the SDK does not read a
    # refused download to its end, so that its connection would occupy a slot of the pool.
    session = BoundSession([parse_url(server) for server in servers], CALLERS_PER_APPEND * options.concurrency)
    return RequestsTransport(
        session=session,
        use_env_settings=False,
        connection_verify=session.verify,
        connection_timeout=options.connect_timeout_seconds,
        read_timeout=options.read_timeout_seconds,
    )


def list_folder(
    files: FileSystemClient, folder: OneLakeAddress, *, recursive: bool = True, page: int = PAGE
) -> Iterator[Listed]:
    """List the files and folders below a folder lazily, with one page in memory at a time.

    Raises:
        SourceNotFoundError, StoreRejectedError, StoreUnavailableError: at the first page or at any later one.
    """
    with onelake_errors(folder.url):
        for found in files.get_paths(folder.path or None, recursive=recursive, max_results=page):
            # The SDK returns naive times in UTC.
            modified_at = found.last_modified.replace(tzinfo=UTC)
            size_bytes = found.content_length or 0
            yield Listed(found.name, bool(found.is_directory), size_bytes, modified_at, (found.etag or "").strip('"'))


def open_file(files: FileSystemClient, address: OneLakeAddress) -> io.BufferedReader:
    """Open a file for reading in order; the caller closes it. At most READ_BYTES and a buffer are in memory.

    All bytes are of one version: if the file is replaced while it is read, reading fails.

    Raises:
        SourceNotFoundError, StoreRejectedError, StoreUnavailableError: when it is opened, and while it is read.
    """
    with onelake_errors(address.url):
        download = files.get_file_client(address.path).download_file()
    return io.BufferedReader(_DownloadedBytes(cast("Download", download), address.url), BUFFER_BYTES)


@contextmanager
def onelake_errors(address: str) -> Iterator[None]:
    """Map a failure of the Azure SDK to an error of this project.

    Args:
        address: of the file or folder, for the message; without secrets.

    Raises:
        SourceNotFoundError: the file or folder (its `location` is the address) or the workspace does not exist.
        StoreRejectedError: 400, 401, 403, 409 or no credential; not retryable.
        StoreThrottledError: 429 or 503; carries its `Retry-After`.
        StoreUnavailableError: no connection, a broken one, a timeout, a file that changed while it was read, or another
        server error.
    """
    try:
        yield
    except AzureError as error:
        raise map_error(error, address) from None


def map_error(error: AzureError, address: str) -> IngestError:
    """Return our error for an exception of the SDK; see `onelake_errors`."""
    if isinstance(error, HttpResponseError) and error.status_code:
        return _map_answer(error, error.status_code, address)
    if isinstance(error, ClientAuthenticationError):
        return StoreRejectedError(
            address, None, "no token is available", "Sign in, or set a SAS or an account key for this store."
        )
    return StoreUnavailableError(address, f"{type(error).__name__}: {_without_secrets(str(error))}")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the pause that an answer requests, as a date or in either unit Azure uses; None without a usable one."""
    for name, unit in (("retry-after-ms", 1000), ("x-ms-retry-after-ms", 1000), ("retry-after", 1)):
        if (text := headers.get(name, "")) and _PAUSE.fullmatch(text):
            return float(text) / unit
    pause = parse_retry_after(headers.get("retry-after"))
    return None if pause is None else pause.total_seconds()


def code_of(error: HttpResponseError) -> str:
    """Return the service's own code, else its reason."""
    # A member of the SDK's enumeration prints as its name.
    named = getattr(error, "error_code", None)
    return str(getattr(named, "value", named) or error.reason or "")


def _map_answer(error: HttpResponseError, status: int, address: str) -> IngestError:
    code = code_of(error)
    if status == NOT_FOUND:
        return SourceNotFoundError(f"The workspace or file system of {address}" if code in NO_FILE_SYSTEM else address)
    if status not in TRANSIENT_STATUSES and status < SERVER_ERRORS and not code.endswith(PASSING):
        return StoreRejectedError(address, status, code, REMEDIES.get(status, ""))
    cause = f"{status} {code}".strip()
    if status not in {429, 503}:
        return StoreUnavailableError(address, cause)
    seconds = retry_after_seconds(getattr(error.response, "headers", {}))
    retry_after = None if seconds is None else timedelta(seconds=min(seconds, LONGEST_PAUSE_SECONDS))
    return StoreThrottledError(address, cause, retry_after)


def _without_secrets(text: str) -> str:
    """Return the first line, with the queries of all addresses removed."""
    line = next(iter(text.splitlines()), "")
    return re.sub(r"\?[^\s'\"<>)]*|\bsig=[^&\s]*", "", line)[:MAX_CAUSE_LENGTH]


def _client_arguments(address: OneLakeAddress, options: OneLakeOptions | None) -> dict[str, Any]:
    options = options or OneLakeOptions()
    # At INFO, the SDK logs the headers of every request and each sign-in method that it tries.
    for name in ("azure.core.pipeline.policies.http_logging_policy", "azure.identity"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return {
        "credential": _credential(options.credential),
        # The SDK uses either endpoint, depending on the operation.
        "transport": pooled_transport([address.account_url, blob_account_url(address.account_url)], options),
        "retry_policy": BoundedRetry(options),
        "max_single_get_size": READ_BYTES,
        "max_chunk_get_size": READ_BYTES,
        "max_single_put_size": MAX_PUT_BYTES,
    }


@contextmanager
def _credential_errors(address: OneLakeAddress) -> Iterator[None]:
    """Map the SDK's errors for a token over plain http and for a malformed key; neither quotes the credential."""
    try:
        yield
    except ValueError as error:
        raise SettingsError(f"The credential for {address.account_url} cannot be used: {error}") from None


def _credential(credential: OneLakeCredential) -> str | AzureNamedKeyCredential | TokenCredential:
    if credential.sas:
        # A SAS as text: then the SDK also adds it to the source of a rename, unlike an AzureSasCredential.
        return credential.sas.get_secret_value().lstrip("?")
    if credential.account_name and credential.account_key:
        return AzureNamedKeyCredential(credential.account_name, credential.account_key.get_secret_value())
    from ingest_project.platform.azure.identity import default_credential  # takes 0.3 s; a SAS or key needs none

    return default_credential()


class _DownloadedBytes(BlockReader):
    """A download of the SDK as a binary file."""

    def __init__(self, download: Download, address: str) -> None:
        self._download = download
        self._address = address

    def next_block(self, size: int) -> bytes:
        with onelake_errors(self._address):
            return self._download.read(size)
