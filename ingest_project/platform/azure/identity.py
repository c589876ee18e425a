"""The Azure identity of this host, and how OneLake is reached with it.

The identity comes from environment variables, a workload or managed identity, or the Azure CLI. A message may name an
account only when it is listed: an identity, a key or a SAS is sent to listed accounts only.

An account of ADLS Gen2 is a host of its own. OneLake has one host for all tenants, so that there the workspace is what
is listed. What the settings name as a store, a table or a source is listed by that.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from glob import escape
from typing import TYPE_CHECKING

from pydantic import SecretStr

from ingest_project.core.errors import PermanentError, SettingsError
from ingest_project.core.settings import Credential, OneLakeSettings
from ingest_project.platform.azure.address import (
    DEFAULT_ENDPOINT,
    FABRIC_HOSTS,
    OneLakeAddress,
    account_url,
    is_address,
    parse_address,
)

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

ALLOWED_ACCOUNTS = "INGEST_ONELAKE_ALLOWED_ACCOUNTS"


_ANY_ITEM = "any.Lakehouse/Files"


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
            SettingsError: none of these, or OneLake's host without a workspace.
        """
        host, slash, file_system = text.strip().removeprefix("https://").partition("/")
        if not file_system.strip("/") and host.lower().endswith(FABRIC_HOSTS):
            raise SettingsError(
                f"{ALLOWED_ACCOUNTS}: {host} is the host of every tenant. Name a workspace ({host}/<workspace>, or its "
                f"GUID), or {host}/* for all that our identity may see."
            )
        try:
            # As an address, so that the host is held to the same rules.
            account = parse_address(f"https://{host}/any/{_ANY_ITEM}").account_url
        except PermanentError as error:
            raise SettingsError(f"{ALLOWED_ACCOUNTS}: {text!r} is no account: {error}") from None
        return cls(account, file_system.strip("/").lower() if slash and file_system.strip("/") else "*")

    def allows(self, address: OneLakeAddress) -> bool:
        """Whether this place is in it."""
        return self.account_url == address.account_url and fnmatchcase(address.file_system.lower(), self.file_system)


def accounts_of(addresses: Iterable[str], endpoint: str = DEFAULT_ENDPOINT) -> list[AllowedAccount]:
    """The accounts that configured addresses name, and the endpoint itself unless it is OneLake's.

    Args:
        addresses: of stores, tables and sources; those that are no places in OneLake are left out.
        endpoint: the account that short addresses mean.

    Raises:
        SettingsError: the endpoint is not the address of a server.
    """
    own = account_url(endpoint)
    accounts = [] if own.endswith(FABRIC_HOSTS) else [AllowedAccount(own, "*")]
    for text in filter(is_address, addresses):
        # A setting that is malformed says so when it is used.
        with suppress(PermanentError):
            place = parse_address(text, endpoint)
            accounts.append(AllowedAccount(place.account_url, escape(place.file_system.lower())))
    return accounts


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
