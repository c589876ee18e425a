"""Clients of Microsoft's SDK with bounded patience, one connection pool, and silence."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ingest_project.errors import SettingsError
from ingest_project.onelake.identity import default_credential
from ingest_project.onelake.options import OneLakeCredential, OneLakeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure.core.credentials import AzureNamedKeyCredential, TokenCredential
    from azure.storage.blob import ContainerClient
    from azure.storage.filedatalake import FileSystemClient

    from ingest_project.onelake.address import OneLakeAddress

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
    from ingest_project.onelake.pipeline import PatientRetry, pooled_transport  # noqa: PLC0415 - imports azure

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
