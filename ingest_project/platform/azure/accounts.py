"""Which accounts a message may name: an identity, a key or a SAS is used for listed accounts only.

An account of ADLS Gen2 is a host of its own. OneLake has one host for all tenants, so that there the workspace is what
is listed. What the settings name as a store, a table or a source is listed by that.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape

from ingest_project.core.errors import PermanentError, SettingsError
from ingest_project.platform.azure.address import (
    DEFAULT_ENDPOINT,
    FABRIC_HOSTS,
    OneLakeAddress,
    account_url,
    is_address,
    parse_address,
)

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
