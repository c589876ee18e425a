"""Settings, as each part that reaches outside wants to be told them. Nothing is connected to here."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from ingest_project.errors import PermanentError, SettingsError
from ingest_project.eventhouse.clusters import ClusterAccess
from ingest_project.onelake.accounts import AllowedAccount, accounts_of
from ingest_project.onelake.identity import default_credential
from ingest_project.sources.access import Clients, NamedBucket, S3Account
from ingest_project.sources.s3_place import named_bucket
from ingest_project.stores.delta_places import AzureCredential, BearerToken, DeltaCredentials
from ingest_project.stores.delta_upkeep import UpkeepLimits
from ingest_project.stores.places import S3Options
from ingest_project.web.client import ContactLimits, WebClient
from ingest_project.web.credentials import HostCredential
from ingest_project.web.download import DownloadLimits
from ingest_project.web.hosts import HostLists, HostRules
from ingest_project.web.limits import HostLimits, LoadLimits
from ingest_project.web.pinned import Connector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mypy_boto3_s3 import S3Client

    from ingest_project.settings import (
        Credential,
        DeltaSettings,
        DownloadSettings,
        EventhouseSettings,
        OneLakeSettings,
        Settings,
        StorageSettings,
    )

# Of each kind: which region or file system is asked for is a message's word, and a client takes megabytes.
KEPT_CLIENTS = 32
STORAGE_SCOPE = "https://storage.azure.com/.default"


def s3_options(storage: StorageSettings) -> S3Options:
    """How buckets are reached."""
    secret = storage.s3_secret_access_key
    return S3Options(
        endpoint_url=storage.s3_endpoint_url,
        region=storage.s3_region,
        access_key_id=storage.s3_access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
    )


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


def host_lists(settings: Settings) -> HostLists:
    """The lists of hosts that hold for every client."""
    downloads = settings.downloads
    return HostLists(tuple(downloads.denied_hosts), tuple(downloads.allowed_internal_hosts))


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
        attachments.store_url,
        attachments.results_url,
        settings.user_activity.table_url,
        *attachments.destinations.values(),
        *(str(config.get("path") or "") for config in configured if config["source_type"] == "onelake"),
    ]
    listed = map(AllowedAccount.parse, onelake.allowed_accounts)
    return (*listed, *accounts_of(addresses, onelake.endpoint))


def s3_client(account: S3Account, timeout_seconds: float, lists: HostLists) -> S3Client:
    """A client of S3 for sources, made by dagster-aws's resource.

    Args:
        account: who we are, and where.
        timeout_seconds: how long a server may be silent.
        lists: hosts that are not contacted, and internal ones that may be.
    """
    from ingest_project.s3_resource import BoundedS3Resource  # noqa: PLC0415 - takes 0.5 s; other sources do without

    secret = account.secret_access_key
    resource = BoundedS3Resource(
        use_unsigned_session=account.unsigned,
        region_name=account.region,
        endpoint_url=account.endpoint_url,
        aws_access_key_id=account.access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        timeout_seconds=timeout_seconds,
        # A proxy would resolve the name by itself. What the settings name is reached as they say.
        proxied=account.contact is None,
    )
    client = resource.get_client()
    if account.contact is not None:
        from ingest_project.web.pinned_s3 import pin  # noqa: PLC0415 - imports botocore

        pin(client, Connector(account.contact.rules(lists)))
    return client


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


def upkeep_limits(delta: DeltaSettings) -> UpkeepLimits:
    """How much one upkeep of a Delta table may do."""
    return UpkeepLimits(
        min_small_files=delta.min_small_files,
        target_bytes=delta.target_file_bytes,
        time_limit=timedelta(seconds=delta.time_limit_seconds),
        retention=timedelta(hours=delta.retention_hours),
    )


def cluster_access(eventhouse: EventhouseSettings) -> ClusterAccess:
    """How Eventhouse is reached.

    Raises:
        SettingsError: no address is set.
    """
    if not eventhouse.address:
        raise SettingsError("EVENT_SOURCE=eventhouse needs INGEST_EVENTHOUSE_ADDRESS and INGEST_EVENTHOUSE_QUERIES.")
    return ClusterAccess(
        address=eventhouse.address,
        authentication=eventhouse.authentication,
        tenant_id=eventhouse.tenant_id or "",
        client_id=eventhouse.client_id or "",
        client_secret=eventhouse.client_secret,
        trusted_hosts=tuple(eventhouse.trusted_hosts),
        timeout_seconds=eventhouse.timeout_seconds,
        max_page_bytes=eventhouse.max_page_bytes,
    )


def web_client(settings: Settings, total: int | None = None, per_host: int | None = None) -> WebClient:
    """Contacts web hosts within the rules.

    Args:
        settings: the rules.
        total: conversations at a time; those of downloads by default.
        per_host: of those, with one host.

    Raises:
        SettingsError: a host pattern or credential is malformed.
    """
    downloads = settings.downloads
    load = LoadLimits(
        total=total or downloads.concurrency,
        per_host=per_host or downloads.concurrency_per_host,
        failures_to_pause=downloads.failures_to_pause,
        pause=timedelta(seconds=downloads.pause_seconds),
    )
    return WebClient(
        HostRules(downloads.allowed_hosts, downloads.denied_hosts, downloads.allowed_internal_hosts),
        credentials=host_credentials(settings.credentials),
        host_limits=HostLimits(load),
        contact=ContactLimits(
            connect_timeout=timedelta(seconds=downloads.connect_timeout_seconds),
            read_timeout=timedelta(seconds=downloads.read_timeout_seconds),
            max_redirects=downloads.max_redirects,
        ),
        ca_file=downloads.ca_file,
        connections_per_host=load.per_host,
    )


def download_limits(downloads: DownloadSettings) -> DownloadLimits:
    """What one download may take."""
    return DownloadLimits(
        max_bytes=downloads.max_bytes,
        max_expansion=downloads.max_expansion,
        total_time=timedelta(seconds=downloads.max_seconds),
        min_bytes_per_second=downloads.min_bytes_per_second,
    )


def host_credentials(credentials: Mapping[str, Credential]) -> Iterator[HostCredential]:
    """Of the stored credentials, those that are for web hosts.

    Raises:
        SettingsError: one of them is not complete.
    """
    for name, stored in credentials.items():
        if stored.kind is None:
            continue
        secret = stored.password if stored.kind == "basic" else stored.secret
        if secret is None or not stored.hosts:
            raise SettingsError(f"The credential {name!r} needs hosts and a {stored.kind} secret.")
        try:
            yield HostCredential(
                name=name,
                hosts=tuple(stored.hosts),
                kind=stored.kind,
                username=stored.username or "",
                header=stored.header or "",
                secret=secret,
                plain_http=stored.plain_http,
            )
        except ValueError as error:
            problems = "; ".join(problem["msg"] for problem in getattr(error, "errors", list)())
            raise SettingsError(f"The credential {name!r} cannot be used: {problems}.") from None


def _storage_token() -> BearerToken:
    token = default_credential().get_token(STORAGE_SCOPE)
    return BearerToken(token.token, datetime.fromtimestamp(token.expires_on, UTC))
