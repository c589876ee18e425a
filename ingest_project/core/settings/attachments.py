"""Settings of the attachments capability: where events come from, what may be downloaded, where files go."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from ingest_project.core.settings.fields import AsJson, CommaList, Env, EnvFamily, PathList, SecondsList, Section


class OneLakeSettings(Section):
    """How to reach OneLake and other ADLS Gen2 accounts. Without SAS and key, azure-identity's default is used."""

    endpoint: Annotated[str, Env("INGEST_ONELAKE_ENDPOINT")] = Field(
        "https://onelake.dfs.fabric.microsoft.com", description="account that short addresses mean"
    )
    sas_token: Annotated[SecretStr | None, Env("INGEST_ONELAKE_SAS_TOKEN")] = Field(
        None, description="shared access signature"
    )
    account_name: Annotated[str | None, Env("INGEST_ONELAKE_ACCOUNT_NAME")] = Field(
        None, description="storage account of the key"
    )
    account_key: Annotated[SecretStr | None, Env("INGEST_ONELAKE_ACCOUNT_KEY")] = Field(
        None, description="key of that account"
    )
    allowed_accounts: Annotated[CommaList, Env("INGEST_ONELAKE_ALLOWED_ACCOUNTS")] = Field(
        default_factory=list,
        description="accounts or workspaces that jobs may name, as host or host/workspace, beside configured ones",
    )
    concurrency: Annotated[int, Env("INGEST_ONELAKE_CONCURRENCY")] = Field(
        8, gt=0, description="connections kept open, and chunks of one large file sent at a time"
    )


class EventhouseSettings(Section):
    """The Eventhouse that is polled when EVENT_SOURCE=eventhouse."""

    address: Annotated[str, Env("INGEST_EVENTHOUSE_ADDRESS")] = Field(
        "", description="query address, e.g. https://....kusto.fabric.microsoft.com"
    )
    queries: Annotated[PathList, Env("INGEST_EVENTHOUSE_QUERIES")] = Field(
        default_factory=list, description="YAML files or folders with one query for each domain"
    )
    authentication: Annotated[Literal["default", "application", "none"], Env("INGEST_EVENTHOUSE_AUTHENTICATION")] = (
        Field("default", description="azure-identity's default credential, an application's id and secret, or nothing")
    )
    tenant_id: Annotated[str | None, Env("INGEST_EVENTHOUSE_TENANT_ID")] = Field(None, description="of the application")
    client_id: Annotated[str | None, Env("INGEST_EVENTHOUSE_CLIENT_ID")] = Field(None, description="of the application")
    client_secret: Annotated[SecretStr | None, Env("INGEST_EVENTHOUSE_CLIENT_SECRET")] = Field(
        None, description="of the application"
    )
    trusted_hosts: Annotated[CommaList, Env("INGEST_EVENTHOUSE_TRUSTED_HOSTS")] = Field(
        default_factory=list, description="hosts beside Microsoft's own that a token may be sent to"
    )
    timeout_seconds: Annotated[int, Env("INGEST_EVENTHOUSE_TIMEOUT_SECONDS")] = Field(
        20, gt=0, le=40, description="how long the server may work on one query"
    )
    max_page_bytes: Annotated[int, Env("INGEST_EVENTHOUSE_MAX_PAGE_BYTES")] = Field(
        16 * 1024**2, gt=0, description="of one answer; a larger page is asked for in smaller parts"
    )
    poll_seconds: Annotated[int, Env("INGEST_EVENTHOUSE_POLL_SECONDS")] = Field(
        30, gt=0, description="pause between two looks that found nothing"
    )


class EventHubsSettings(Section):
    """The Event Hubs namespace that is read when EVENT_SOURCE=eventhub."""

    connection_string: Annotated[SecretStr | None, Env("INGEST_EVENT_HUBS_CONNECTION_STRING")] = Field(
        None, description="Endpoint=sb://...;SharedAccessKeyName=...;SharedAccessKey=..."
    )
    namespace: Annotated[str, Env("INGEST_EVENT_HUBS_NAMESPACE")] = Field(
        "", description="without a connection string: the namespace, entered with azure-identity"
    )
    topic: Annotated[str, Env("INGEST_EVENT_HUBS_TOPIC")] = Field("", description="the event hub to read")


class DownloadSettings(Section):
    """What may be downloaded, and how much at a time."""

    allowed_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_HOSTS")] = Field(
        default_factory=list, description="hosts that may be contacted, *.example.com works; empty: every public one"
    )
    denied_hosts: Annotated[CommaList, Env("INGEST_DENIED_HOSTS")] = Field(
        default_factory=list, description="hosts that jobs and events may not name, whatever else is said"
    )
    allowed_internal_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_INTERNAL_HOSTS")] = Field(
        default_factory=list, description="hosts, addresses or CIDRs inside this network that jobs and events may name"
    )
    max_bytes: Annotated[int, Env("INGEST_MAX_ATTACHMENT_BYTES")] = Field(
        1024**3, gt=0, description="larger attachments are refused"
    )
    max_expansion: Annotated[float, Env("INGEST_MAX_ATTACHMENT_EXPANSION")] = Field(
        100.0, ge=1, description="bytes of content for one byte sent, where a server compresses"
    )
    max_seconds: Annotated[float, Env("INGEST_MAX_DOWNLOAD_SECONDS")] = Field(
        600.0, gt=0, description="one download, continuations included"
    )
    min_bytes_per_second: Annotated[int, Env("INGEST_MIN_DOWNLOAD_BYTES_PER_SECOND")] = Field(
        1024, gt=0, description="a slower server is given up"
    )
    connect_timeout_seconds: Annotated[float, Env("INGEST_DOWNLOAD_CONNECT_TIMEOUT_SECONDS")] = Field(
        10.0, gt=0, description="how long a connection may take"
    )
    read_timeout_seconds: Annotated[float, Env("INGEST_DOWNLOAD_READ_TIMEOUT_SECONDS")] = Field(
        30.0, gt=0, description="how long a server may be silent"
    )
    max_redirects: Annotated[int, Env("INGEST_MAX_REDIRECTS")] = Field(5, ge=0, description="hops that are followed")
    concurrency: Annotated[int, Env("INGEST_DOWNLOAD_CONCURRENCY")] = Field(
        16, gt=0, description="downloads at a time in one run"
    )
    concurrency_per_host: Annotated[int, Env("INGEST_DOWNLOAD_CONCURRENCY_PER_HOST")] = Field(
        8, gt=0, description="of those, from one host"
    )
    failures_to_pause: Annotated[int, Env("INGEST_HOST_FAILURES_TO_PAUSE")] = Field(
        5, gt=0, description="failures in a row after which a host is left alone for a while"
    )
    pause_seconds: Annotated[float, Env("INGEST_HOST_PAUSE_SECONDS")] = Field(
        60.0, gt=0, description="how long it is left alone"
    )
    ca_file: Annotated[Path | None, Env("INGEST_CA_FILE")] = Field(
        None, description="certificate authorities to trust beside the public ones"
    )


class AttachmentSettings(Section):
    """From events to stored files."""

    event_source: Annotated[Literal["", "eventhouse", "eventhub"], Env("EVENT_SOURCE")] = Field(
        "", description="eventhouse: polled into events.raw; eventhub: read instead of events.raw; empty: neither"
    )
    url_paths: Annotated[dict[str, list[str]], AsJson, Env("INGEST_ATTACHMENT_URL_PATHS")] = Field(
        default_factory=dict,
        description="JSONPaths by domain that find addresses in the payload; * is for every domain",
    )
    store_url: Annotated[str, Env("INGEST_ATTACHMENTS_URL")] = Field(
        "", description="folder or OneLake address of the attachment store; empty: attachments/ in the state folder"
    )
    destinations: Annotated[dict[str, str], EnvFamily("ONELAKE_", "_PATH")] = Field(
        default_factory=dict, description="folder or OneLake address by domain: ONELAKE_CLAIMS_PATH is for claims"
    )
    destination_template: Annotated[str, Env("INGEST_DESTINATION_TEMPLATE")] = Field(
        "{domain}/{yyyy}/{MM}/{dd}/{trace_id}/{attachment}/{file_name}",
        description="path of an attachment in its store; a folder {attachment} is added where it has none",
    )
    results_url: Annotated[str, Env("INGEST_ATTACHMENT_RESULTS_URL")] = Field(
        "", description="folder, s3:// or OneLake address of the Delta table; empty: delta/ in the state folder"
    )
    retry_delays_seconds: Annotated[SecondsList, Env("INGEST_DOWNLOAD_RETRY_DELAYS_SECONDS")] = Field(
        default_factory=lambda: [300.0, 600.0, 1200.0, 2400.0],
        min_length=4,
        max_length=4,
        description="pauses of the four retry topics; after the last one a task is dead",
    )
    max_replays: Annotated[int, Env("INGEST_MAX_REPLAYS")] = Field(
        5, gt=0, description="how often a dead task may be replayed"
    )
    replays_per_second: Annotated[float, Env("INGEST_REPLAYS_PER_SECOND")] = Field(
        50.0, gt=0, description="how fast dead tasks are let go when many are replayed"
    )
    batch_events: Annotated[int, Env("INGEST_BATCH_EVENTS")] = Field(2_500, gt=0, description="events in one run")
    batch_downloads: Annotated[int, Env("INGEST_BATCH_DOWNLOADS")] = Field(
        2_500, gt=0, description="downloads in one run"
    )
    max_parallel_batches: Annotated[int, Env("INGEST_MAX_PARALLEL_ATTACHMENT_BATCHES")] = Field(
        2, gt=0, description="attachment runs asked for at a time"
    )
    tick_max_messages: Annotated[int, Env("INGEST_ATTACHMENTS_TICK_MAX_MESSAGES")] = Field(
        10_000, gt=0, description="messages taken from a topic in one sensor tick"
    )
    max_overdue_seconds: Annotated[int, Env("INGEST_MAX_OVERDUE_SECONDS")] = Field(
        300, gt=0, description="a retry unserved for longer after its time fails the check nothing_overdue"
    )
    max_dead_share: Annotated[float, Env("INGEST_MAX_DEAD_SHARE")] = Field(
        0.1, ge=0, le=1, description="share of recently finished attachments that are dead which fails the check"
    )

    @property
    def retry_delays(self) -> tuple[timedelta, ...]:
        """Pauses of the retry topics, in order."""
        return tuple(timedelta(seconds=seconds) for seconds in self.retry_delays_seconds)
