"""The clients that sources share, made from the settings. Nothing is connected to here."""

from __future__ import annotations

from contextlib import suppress
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from ingest_project.core.errors import PermanentError
from ingest_project.core.settings import (
    Settings,
)
from ingest_project.platform.azure.accounts import AllowedAccount, accounts_of
from ingest_project.platform.http.client import WebClient, web_client
from ingest_project.platform.http.host_policy import HostLists, host_lists
from ingest_project.platform.http.pinned_transport import Connector
from ingest_project.platform.object_store.store import S3Options
from ingest_project.sources.context import Clients, NamedBucket, S3Account
from ingest_project.sources.s3.location import named_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


# Of each kind: which region or file system is requested is up to a message, and a client takes megabytes.
KEPT_CLIENTS = 32


def source_clients(settings: Settings) -> Clients:
    """What sources talk through, for one process."""
    lists = host_lists(settings)

    @lru_cache(maxsize=KEPT_CLIENTS)
    def s3(account: S3Account) -> S3Client:
        return s3_client(account, settings.polling.source_timeout_seconds, lists)

    @cache
    def web() -> WebClient:
        polling = settings.polling
        return web_client(settings, polling.source_connections, polling.source_connections_per_host)

    @cache
    def buckets() -> frozenset[NamedBucket]:
        return named_buckets(settings, account)

    @cache
    def accounts() -> tuple[AllowedAccount, ...]:
        return named_accounts(settings)

    storage = settings.storage
    account = S3Account(
        storage.s3_endpoint_url, storage.s3_region, storage.s3_access_key_id, storage.s3_secret_access_key
    )
    return Clients(
        s3_account=account, s3=s3, web=web, onelake=settings.onelake, lists=lists, buckets=buckets, accounts=accounts
    )


def named_buckets(settings: Settings, account: S3Account) -> frozenset[NamedBucket]:
    """The buckets of configured sources.

    Args:
        settings: whose sources count.
        account: of sources that name no endpoint.
    """
    named = set()
    for source in settings.sources.values():
        # A source that names no bucket says so when it is looked at; it does not stop all others.
        with suppress(PermanentError):
            if source.source_config["source_type"] == "s3":
                named.add(named_bucket(source.source_config, account))
    return frozenset(named)


def named_accounts(settings: Settings) -> tuple[AllowedAccount, ...]:
    """The accounts of OneLake and ADLS Gen2 that the settings list, or name as a store, a table or a source.

    Raises:
        SettingsError: an entry of INGEST_ONELAKE_ALLOWED_ACCOUNTS is none, or INGEST_ONELAKE_ENDPOINT.
    """
    attachments, onelake = settings.attachments, settings.onelake
    configured = [source.source_config for source in settings.sources.values()]
    addresses = [
        settings.storage.landing_url,
        settings.storage.quarantine_url,
        attachments.store_url,
        attachments.results_url,
        settings.user_activity.table_url,
        *attachments.destinations.values(),
        *(str(config.get("path") or "") for config in configured if config["source_type"] == "onelake"),
    ]
    listed = map(AllowedAccount.parse, onelake.allowed_accounts)
    return (*listed, *accounts_of(addresses, onelake.endpoint))


def s3_client(account: S3Account, timeout_seconds: float, lists: HostLists) -> S3Client:
    """Return a client of S3 for sources.

    Args:
        account: who we are, and where.
        timeout_seconds: how long a server may be silent.
        lists: hosts that are not contacted, and internal ones that may be.
    """
    from ingest_project.platform.object_store import s3  # noqa: PLC0415 - takes 0.5 s; other sources do without

    secret = account.secret_access_key
    client = s3.s3_client(
        S3Options(
            account.endpoint_url, account.region, account.access_key_id, secret.get_secret_value() if secret else None
        ),
        timeout_seconds,
        unsigned=account.unsigned,
        # A proxy would resolve the name itself. A server that the settings name is reached as they say.
        proxied=account.contact is None,
    )
    if account.contact is not None:
        from ingest_project.platform.http.pinned_s3 import pin  # noqa: PLC0415 - imports botocore

        pin(client, Connector(account.contact.rules(lists)))
    return client
