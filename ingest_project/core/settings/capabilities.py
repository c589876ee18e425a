"""Settings of each capability, of its configured sources, and of stored credentials.

Jobs and hosts name a credential; messages never carry a secret.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, SecretStr, field_validator

from ingest_project.core.settings.fields import AsJson, CommaList, Env, EnvFamily, PathList, SecondsList, Section


class PollingSettings(Section):
    """What polling jobs may look at."""

    local_roots: Annotated[PathList, Env("INGEST_LOCAL_ROOTS")] = Field(
        default_factory=lambda: [Path("dummy_data")],
        description="folders that local file events and polling jobs may read, symlinks resolved",
    )
    allow_hard_links: Annotated[bool, Env("INGEST_ALLOW_HARD_LINKS")] = Field(
        False, description="whether local files may be read that have a further name, which may be outside the folders"
    )
    dummy_root: Annotated[Path, Env("INGEST_DUMMY_ROOT")] = Field(
        Path("dummy_data"), description="the folder behind source_type dummy"
    )
    max_jobs_per_tick: Annotated[int, Env("INGEST_POLLING_MAX_JOBS_PER_TICK")] = Field(
        100, gt=0, description="polling jobs taken from Kafka in one sensor tick"
    )
    min_age_seconds: Annotated[float, Env("INGEST_MIN_FILE_AGE_SECONDS")] = Field(
        2.0, ge=0, description="a file that changed more recently may still be being written: it is looked at again"
    )
    page_files: Annotated[int, Env("INGEST_POLLING_PAGE_FILES")] = Field(
        2_000, gt=0, le=20_000, description="files of a listing that are announced at a time"
    )
    allowed_source_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_SOURCE_HOSTS")] = Field(
        default_factory=list,
        description="FTP, SFTP and S3 hosts that jobs may name, beside the hosts of stored credentials",
    )
    allowed_buckets: Annotated[CommaList, Env("INGEST_ALLOWED_BUCKETS")] = Field(
        default_factory=list, description="buckets that jobs may name, in-* works, beside those of configured sources"
    )
    known_hosts_file: Annotated[Path | None, Env("INGEST_SFTP_KNOWN_HOSTS")] = Field(
        None, description="SFTP host keys that are accepted, as ssh-keyscan writes them"
    )
    source_ca_file: Annotated[Path | None, Env("INGEST_SOURCE_CA_FILE")] = Field(
        None, description="certificate authorities of FTP servers to trust beside the system's"
    )
    source_timeout_seconds: Annotated[float, Env("INGEST_SOURCE_TIMEOUT_SECONDS")] = Field(
        30.0, gt=0, description="how long a source may be silent"
    )
    max_listing_entries: Annotated[int, Env("INGEST_MAX_LISTING_ENTRIES")] = Field(
        1_000_000, gt=0, description="files, folders and others that one look at a source may find"
    )
    max_listing_seconds: Annotated[float, Env("INGEST_MAX_LISTING_SECONDS")] = Field(
        3_600.0, gt=0, description="how long one look at a source may take"
    )
    source_connections: Annotated[int, Env("INGEST_SOURCE_CONNECTIONS")] = Field(
        16, gt=0, description="connections of one run to FTP and SFTP servers, and to web hosts that are listed"
    )
    source_connections_per_host: Annotated[int, Env("INGEST_SOURCE_CONNECTIONS_PER_HOST")] = Field(
        4, gt=0, description="of those, to one host"
    )
    source_idle_seconds: Annotated[float, Env("INGEST_SOURCE_IDLE_SECONDS")] = Field(
        60.0, ge=0, description="how long an unused connection to a file server is kept"
    )

    @property
    def min_age(self) -> timedelta:
        """How long ago a file must have changed to be taken."""
        return timedelta(seconds=self.min_age_seconds)


class FileIngestSettings(Section):
    """Limits and sizes of file ingest. Bytes are bytes on disk unless said otherwise."""

    profiles: Annotated[PathList, Env("INGEST_READER_PROFILES")] = Field(
        default_factory=list, description="YAML files or folders with reader profiles beside the shipped ones"
    )
    default_profile: Annotated[str, Env("INGEST_DEFAULT_PROFILE")] = Field(
        "canonical", description="profile of files whose event names none"
    )
    sensor_types: Annotated[Path | None, Env("INGEST_SENSOR_TYPES")] = Field(
        None, description="YAML file of known sensor types, units and limits; empty: the shipped one"
    )
    unknown_sensor_types: Annotated[Literal["accept", "quarantine"], Env("INGEST_UNKNOWN_SENSOR_TYPES")] = Field(
        "accept", description="what happens to readings of a type that is not listed"
    )
    future_tolerance_seconds: Annotated[int, Env("INGEST_FUTURE_TOLERANCE_SECONDS")] = Field(
        300, ge=0, description="how far ahead of now a timestamp may be"
    )
    earliest_time: Annotated[AwareDatetime, Env("INGEST_EARLIEST_TIME")] = Field(
        datetime(1970, 1, 1, tzinfo=UTC), description="rows with an earlier timestamp are quarantined; give its offset"
    )
    max_rejected_share: Annotated[float, Env("INGEST_MAX_REJECTED_SHARE")] = Field(
        0.5, ge=0, le=1, description="a file with a greater share of bad rows is quarantined whole"
    )
    max_file_bytes: Annotated[int, Env("INGEST_MAX_FILE_BYTES")] = Field(
        4 * 1024**3, gt=0, description="larger files are quarantined"
    )
    max_row_bytes: Annotated[int, Env("INGEST_MAX_ROW_BYTES")] = Field(
        1024**2, gt=0, le=256 * 1024**2, description="longer rows are quarantined"
    )
    max_columns: Annotated[int, Env("INGEST_MAX_COLUMNS")] = Field(
        2_000, gt=0, description="files with more columns are quarantined"
    )
    max_excel_bytes: Annotated[int, Env("INGEST_MAX_EXCEL_BYTES")] = Field(
        100 * 1024**2, gt=0, description="larger workbooks are quarantined: a workbook is read whole"
    )
    max_excel_cells: Annotated[int, Env("INGEST_MAX_EXCEL_CELLS")] = Field(
        20_000_000, gt=0, description="workbooks with more cells are quarantined"
    )
    max_excel_memory_bytes: Annotated[int, Env("INGEST_MAX_EXCEL_MEMORY_BYTES")] = Field(
        1536 * 1024**2, gt=0, description="address space of the process that opens a workbook"
    )
    max_excel_seconds: Annotated[float, Env("INGEST_MAX_EXCEL_SECONDS")] = Field(
        60.0, gt=0, description="CPU time of the process that opens a workbook"
    )
    batch_files: Annotated[int, Env("INGEST_BATCH_FILES")] = Field(1_000, gt=0, description="files in one batch run")
    max_parallel_batches: Annotated[int, Env("INGEST_MAX_PARALLEL_BATCHES")] = Field(
        2, gt=0, description="batch runs asked for at a time"
    )
    tick_max_messages: Annotated[int, Env("INGEST_TICK_MAX_MESSAGES")] = Field(
        4_000, gt=0, description="file events taken from Kafka in one sensor tick"
    )
    tick_wait_seconds: Annotated[float, Env("INGEST_TICK_WAIT_SECONDS")] = Field(
        3.0, ge=0, le=30, description="how long a tick waits for a first message on a quiet topic"
    )
    max_waiting_seconds: Annotated[int, Env("INGEST_MAX_WAITING_SECONDS")] = Field(
        900, gt=0, description="a file unfinished for longer fails the check nothing_waits_too_long"
    )
    max_quarantine_share: Annotated[float, Env("INGEST_MAX_QUARANTINE_SHARE")] = Field(
        0.2, ge=0, le=1, description="share of recently finished files in quarantine that fails the check"
    )

    @property
    def future_tolerance(self) -> timedelta:
        """How far ahead of now a timestamp may be."""
        return timedelta(seconds=self.future_tolerance_seconds)


class UserActivitySettings(Section):
    """How many user activity events are stored at a time, and when what is stored counts as wrong or late."""

    table_url: Annotated[str, Env("INGEST_USER_ACTIVITY_TABLE_URL")] = Field(
        "",
        description="folder, s3:// or OneLake address of the Delta table of events; empty: delta/ in the state folder",
    )
    range_messages: Annotated[int, Env("INGEST_USER_ACTIVITY_RANGE_MESSAGES")] = Field(
        50_000, gt=0, description="events of one commit"
    )
    batch_messages: Annotated[int, Env("INGEST_USER_ACTIVITY_BATCH_MESSAGES")] = Field(
        4_000_000, gt=0, description="offsets in one run"
    )
    max_parallel_batches: Annotated[int, Env("INGEST_USER_ACTIVITY_MAX_PARALLEL_BATCHES")] = Field(
        2, gt=0, description="runs over events side by side, each with partitions of its own"
    )
    hourly_refresh_seconds: Annotated[int, Env("INGEST_USER_ACTIVITY_HOURLY_REFRESH_SECONDS")] = Field(
        60, ge=0, description="pause between two makings of the same hour's statistics while its events keep coming"
    )
    max_unfinished_seconds: Annotated[int, Env("INGEST_USER_ACTIVITY_MAX_UNFINISHED_SECONDS")] = Field(
        900, gt=0, description="events that wait to be stored for longer fail the check no_gap_in_offsets"
    )
    max_implausible_share: Annotated[float, Env("INGEST_USER_ACTIVITY_MAX_IMPLAUSIBLE_SHARE")] = Field(
        0.01, ge=0, le=1, description="share of recent events with an impossible time that fails event_time_plausible"
    )
    retention_hours: Annotated[int, Env("INGEST_USER_ACTIVITY_RETENTION_HOURS")] = Field(
        168, ge=168, description="how long files stay that only old versions of the table have"
    )


class CrmSettings(Section):
    """How many CRM messages are stored at a time."""

    batch_messages: Annotated[int, Env("INGEST_CRM_BATCH_MESSAGES")] = Field(
        50_000, gt=0, description="CRM messages in one run"
    )
    max_parallel_batches: Annotated[int, Env("INGEST_CRM_MAX_PARALLEL_BATCHES")] = Field(
        2, gt=0, description="runs over CRM messages side by side, each with partitions of its own"
    )
    max_unfinished_seconds: Annotated[int, Env("INGEST_CRM_MAX_UNFINISHED_SECONDS")] = Field(
        900, gt=0, description="CRM messages that wait to be stored for longer fail the check no_gap_in_offsets"
    )


class Credential(Section):
    """Who we are to one source or web host. Which fields are used depends on what it is for."""

    username: str | None = Field(None, description="user of FTP, SFTP and HTTP basic authentication")
    password: SecretStr | None = Field(None, description="that user's password")
    private_key_file: Path | None = Field(None, description="SFTP: file with the private key")
    private_key_passphrase: SecretStr | None = Field(None, description="SFTP: passphrase of that key")
    host_key_fingerprints: CommaList = Field(
        default_factory=list, description="SFTP: fingerprints (SHA256:...) of the servers' keys that are accepted"
    )
    access_key_id: str | None = Field(None, description="S3: key id")
    secret_access_key: SecretStr | None = Field(None, description="S3: secret of that key")
    buckets: CommaList = Field(
        default_factory=list, description="S3: buckets that jobs may read with that key, and no other; in-* works"
    )
    sas_token: SecretStr | None = Field(None, description="OneLake and ADLS Gen2: shared access signature")
    account_name: str | None = Field(None, description="ADLS Gen2: storage account of the key")
    account_key: SecretStr | None = Field(None, description="ADLS Gen2: key of that account")
    hosts: CommaList = Field(
        default_factory=list, description="hosts that this is sent to, and no other; *.example.com works"
    )
    kind: Literal["basic", "bearer", "header", "query"] | None = Field(
        None, description="web: user and password, a bearer token, a header, or a signature added to the address"
    )
    header: str | None = Field(None, description="web: name of the header")
    secret: SecretStr | None = Field(None, description="web: the token, the header's value, or the signature")
    plain_http: bool = Field(False, description="web: whether it may be sent without TLS")


MIN_SECONDS = 5


class ConfiguredSource(Section):
    """One source, and how often it is looked at."""

    source_config: dict[str, Any] = Field(
        description="source_type, path, credentials and the like, as a polling job has"
    )
    file_pattern: str = Field("*", description="glob that file names must match")
    priority: Literal["low", "normal", "high"] = Field("normal", description="high goes before normal before low")
    metadata: dict[str, Any] = Field(default_factory=dict, description="carried along to every file; format: a profile")
    every_seconds: float | None = Field(
        None, ge=MIN_SECONDS, description="how often it is looked at by itself; empty: only when a job asks"
    )

    @field_validator("source_config")
    @classmethod
    def _has_a_type(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(config.get("source_type"), str):
            raise ValueError("a source_config needs a source_type")  # noqa: TRY004 - pydantic takes ValueErrors
        return config


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
