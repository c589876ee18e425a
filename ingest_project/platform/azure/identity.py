"""This host's identity in Azure: environment variables, a workload or managed identity, or the Azure CLI."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from pydantic import SecretStr

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Credential, OneLakeSettings
from ingest_project.platform.azure.address import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential


@cache
def default_credential() -> TokenCredential:
    """One for the process: it keeps the tokens it got."""
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - takes 0.3 s, and a SAS or key does without

    return DefaultAzureCredential()


@dataclass(frozen=True)
class OneLakeCredential:
    """Who we are to the service: a SAS, an account key, or with neither whatever azure-identity finds.

    azure-identity's default looks at environment variables, workload and managed identities and the Azure CLI, in this
    order. OneLake itself takes tokens and user-delegated SAS; account keys are for other ADLS Gen2 accounts.

    Args:
        sas: a shared access signature, with or without its leading `?`.
        account_name: the account that the key is of.
        account_key: its key.

    Raises:
        SettingsError: both, or a key without its account.
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
    """How to reach OneLake.

    Args:
        endpoint: account that short addresses mean.
        concurrency: connections kept open, and chunks of one large file sent at a time.
        chunk_bytes: size of one append; a file of at most this size is sent in one.
        connect_timeout_seconds: how long a connection may take.
        read_timeout_seconds: how long the service may be silent.
        retries: further attempts of one request that failed for a reason which may pass.
        longest_wait_seconds: longest pause between two attempts; when the service asks for a longer one, there is no
            further attempt here, and the failure says how long it asked for.
    """

    credential: OneLakeCredential = field(default_factory=OneLakeCredential)
    endpoint: str = DEFAULT_ENDPOINT
    concurrency: int = 8
    chunk_bytes: int = 8 * 1024**2
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 60.0
    retries: int = 3
    longest_wait_seconds: float = 8.0


def options_of(settings: OneLakeSettings, stored: Credential | None = None) -> OneLakeOptions:
    """How the settings say that OneLake is reached.

    Args:
        settings: the section `onelake`.
        stored: a credential that a job named, in place of the section's own.

    Raises:
        SettingsError: the credential is not one of a kind, see `OneLakeCredential`.
    """
    secrets = stored or settings
    return OneLakeOptions(
        OneLakeCredential(secrets.sas_token, secrets.account_name, secrets.account_key),
        endpoint=settings.endpoint,
        concurrency=settings.concurrency,
    )
