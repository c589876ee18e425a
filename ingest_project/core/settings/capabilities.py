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
    """Limits of polling jobs: the folders, hosts and buckets they may list, and how long that may take."""

    local_roots: Annotated[PathList, Env("INGEST_LOCAL_ROOTS")] = Field(default_factory=lambda: [Path("dummy_data")])
    """Folders that local file events and polling jobs may read, symlinks resolved."""
    allow_hard_links: Annotated[bool, Env("INGEST_ALLOW_HARD_LINKS")] = False
    """Allow reading local files that have a further hard link, which may be outside the folders."""
    dummy_root: Annotated[Path, Env("INGEST_DUMMY_ROOT")] = Path("dummy_data")
    """The folder that source_type dummy reads."""
    max_jobs_per_tick: Annotated[int, Env("INGEST_POLLING_MAX_JOBS_PER_TICK")] = Field(100, gt=0)
    """Polling jobs taken from Kafka in one sensor tick."""
    min_age_seconds: Annotated[float, Env("INGEST_MIN_FILE_AGE_SECONDS")] = Field(2.0, ge=0)
    """A file that changed more recently may still be written to: it is left for a later listing."""
    page_files: Annotated[int, Env("INGEST_POLLING_PAGE_FILES")] = Field(2_000, gt=0, le=20_000)
    """Files of a listing that are published at a time."""
    allowed_source_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_SOURCE_HOSTS")] = Field(default_factory=list)
    """FTP, SFTP and S3 hosts that jobs may name, in addition to the hosts of stored credentials."""
    allowed_buckets: Annotated[CommaList, Env("INGEST_ALLOWED_BUCKETS")] = Field(default_factory=list)
    """Buckets that jobs may name, in-* works, in addition to those of configured sources."""
    known_hosts_file: Annotated[Path | None, Env("INGEST_SFTP_KNOWN_HOSTS")] = None
    """SFTP host keys that are accepted, as ssh-keyscan writes them."""
    source_ca_file: Annotated[Path | None, Env("INGEST_SOURCE_CA_FILE")] = None
    """Certificate authorities of FTP servers to trust in addition to the system's."""
    source_timeout_seconds: Annotated[float, Env("INGEST_SOURCE_TIMEOUT_SECONDS")] = Field(30.0, gt=0)
    """How long a source may be silent."""
    max_listing_entries: Annotated[int, Env("INGEST_MAX_LISTING_ENTRIES")] = Field(1_000_000, gt=0)
    """Files, folders and other entries that one listing of a source may have."""
    max_listing_seconds: Annotated[float, Env("INGEST_MAX_LISTING_SECONDS")] = Field(3_600.0, gt=0)
    """How long one listing of a source may take."""
    source_connections: Annotated[int, Env("INGEST_SOURCE_CONNECTIONS")] = Field(16, gt=0)
    """Connections of one run to FTP and SFTP servers, and to web hosts that are listed."""
    source_connections_per_host: Annotated[int, Env("INGEST_SOURCE_CONNECTIONS_PER_HOST")] = Field(4, gt=0)
    """Of those, to one host."""
    source_idle_seconds: Annotated[float, Env("INGEST_SOURCE_IDLE_SECONDS")] = Field(60.0, ge=0)
    """How long an unused connection to a file server is kept."""

    @property
    def min_age(self) -> timedelta:
        """How long ago a file must have changed to be published."""
        return timedelta(seconds=self.min_age_seconds)


class FileIngestSettings(Section):
    """Limits and sizes of file ingest. Bytes are bytes on disk unless the description says otherwise."""

    profiles: Annotated[PathList, Env("INGEST_READER_PROFILES")] = Field(default_factory=list)
    """YAML files or folders with reader profiles in addition to the shipped ones."""
    default_profile: Annotated[str, Env("INGEST_DEFAULT_PROFILE")] = "canonical"
    """Profile of files whose event names none."""
    sensor_types: Annotated[Path | None, Env("INGEST_SENSOR_TYPES")] = None
    """YAML file of known sensor types, units and limits; empty: the shipped one."""
    unknown_sensor_types: Annotated[Literal["accept", "quarantine"], Env("INGEST_UNKNOWN_SENSOR_TYPES")] = "accept"
    """What happens to readings of a type that is not listed."""
    future_tolerance_seconds: Annotated[int, Env("INGEST_FUTURE_TOLERANCE_SECONDS")] = Field(300, ge=0)
    """How far ahead of now a timestamp may be."""
    earliest_time: Annotated[AwareDatetime, Env("INGEST_EARLIEST_TIME")] = datetime(1970, 1, 1, tzinfo=UTC)
    """Rows with an earlier timestamp are quarantined; give its offset."""
    max_rejected_share: Annotated[float, Env("INGEST_MAX_REJECTED_SHARE")] = Field(0.5, ge=0, le=1)
    """A file with a greater share of bad rows is quarantined whole."""
    max_file_bytes: Annotated[int, Env("INGEST_MAX_FILE_BYTES")] = Field(4 * 1024**3, gt=0)
    """Larger files are quarantined."""
    max_row_bytes: Annotated[int, Env("INGEST_MAX_ROW_BYTES")] = Field(1024**2, gt=0, le=256 * 1024**2)
    """Longer rows are quarantined."""
    max_columns: Annotated[int, Env("INGEST_MAX_COLUMNS")] = Field(2_000, gt=0)
    """Files with more columns are quarantined."""
    max_excel_bytes: Annotated[int, Env("INGEST_MAX_EXCEL_BYTES")] = Field(100 * 1024**2, gt=0)
    """Larger workbooks are quarantined: a workbook is read whole."""
    max_excel_cells: Annotated[int, Env("INGEST_MAX_EXCEL_CELLS")] = Field(20_000_000, gt=0)
    """Workbooks with more cells are quarantined."""
    max_excel_memory_bytes: Annotated[int, Env("INGEST_MAX_EXCEL_MEMORY_BYTES")] = Field(1536 * 1024**2, gt=0)
    """Address space of the process that opens a workbook."""
    max_excel_seconds: Annotated[float, Env("INGEST_MAX_EXCEL_SECONDS")] = Field(60.0, gt=0)
    """CPU time of the process that opens a workbook."""
    batch_files: Annotated[int, Env("INGEST_BATCH_FILES")] = Field(1_000, gt=0)
    """Files in one batch run."""
    max_parallel_batches: Annotated[int, Env("INGEST_MAX_PARALLEL_BATCHES")] = Field(2, gt=0)
    """Batch runs in flight at a time."""
    tick_max_messages: Annotated[int, Env("INGEST_TICK_MAX_MESSAGES")] = Field(4_000, gt=0)
    """File events taken from Kafka in one sensor tick."""
    tick_wait_seconds: Annotated[float, Env("INGEST_TICK_WAIT_SECONDS")] = Field(3.0, ge=0, le=30)
    """How long a tick waits for a first message on a quiet topic."""
    max_waiting_seconds: Annotated[int, Env("INGEST_MAX_WAITING_SECONDS")] = Field(900, gt=0)
    """A file unfinished for longer fails the check nothing_waits_too_long."""
    max_quarantine_share: Annotated[float, Env("INGEST_MAX_QUARANTINE_SHARE")] = Field(0.2, ge=0, le=1)
    """Share of recently finished files in quarantine that fails the check."""

    @property
    def future_tolerance(self) -> timedelta:
        """How far ahead of now a timestamp may be."""
        return timedelta(seconds=self.future_tolerance_seconds)


class UserActivitySettings(Section):
    """Batch sizes of user activity events, and the thresholds of their checks."""

    table_url: Annotated[str, Env("INGEST_USER_ACTIVITY_TABLE_URL")] = ""
    """Folder, s3:// or OneLake address of the Delta table of events; empty: delta/ in the state folder."""
    range_messages: Annotated[int, Env("INGEST_USER_ACTIVITY_RANGE_MESSAGES")] = Field(50_000, gt=0)
    """Most offsets planned as one range, which is one commit as a rule."""
    batch_messages: Annotated[int, Env("INGEST_USER_ACTIVITY_BATCH_MESSAGES")] = Field(4_000_000, gt=0)
    """Offsets in one run."""
    max_parallel_batches: Annotated[int, Env("INGEST_USER_ACTIVITY_MAX_PARALLEL_BATCHES")] = Field(2, gt=0)
    """Runs over events side by side, each with partitions of its own."""
    hourly_refresh_seconds: Annotated[int, Env("INGEST_USER_ACTIVITY_HOURLY_REFRESH_SECONDS")] = Field(60, ge=0)
    """Pause between two computations of the same hour's statistics while its events keep arriving."""
    max_unfinished_seconds: Annotated[int, Env("INGEST_USER_ACTIVITY_MAX_UNFINISHED_SECONDS")] = Field(900, gt=0)
    """Events planned and not stored for longer fail the check no_gap_in_offsets."""
    max_implausible_share: Annotated[float, Env("INGEST_USER_ACTIVITY_MAX_IMPLAUSIBLE_SHARE")] = Field(0.01, ge=0, le=1)
    """Share of recent events with an impossible time that fails event_time_plausible."""
    retention_hours: Annotated[int, Env("INGEST_USER_ACTIVITY_RETENTION_HOURS")] = Field(168, ge=168)
    """How long files stay that only old versions of the table have."""


class CrmSettings(Section):
    """Batch sizes of CRM messages, and the thresholds of their checks."""

    batch_messages: Annotated[int, Env("INGEST_CRM_BATCH_MESSAGES")] = Field(50_000, gt=0)
    """CRM messages in one run."""
    max_parallel_batches: Annotated[int, Env("INGEST_CRM_MAX_PARALLEL_BATCHES")] = Field(2, gt=0)
    """Runs over CRM messages side by side."""
    max_unfinished_seconds: Annotated[int, Env("INGEST_CRM_MAX_UNFINISHED_SECONDS")] = Field(900, gt=0)
    """CRM messages planned and not stored for longer fail the check no_gap_in_offsets."""


class Credential(Section):
    """Identity towards one source or web host. Which fields are used depends on the protocol."""

    username: str | None = None
    """User of FTP, SFTP and HTTP basic authentication."""
    password: SecretStr | None = None
    """That user's password."""
    private_key_file: Path | None = None
    """SFTP: file with the private key."""
    private_key_passphrase: SecretStr | None = None
    """SFTP: passphrase of that key."""
    host_key_fingerprints: CommaList = Field(default_factory=list)
    """SFTP: fingerprints (SHA256:...) of the servers' keys that are accepted."""
    access_key_id: str | None = None
    """S3: key id."""
    secret_access_key: SecretStr | None = None
    """S3: secret of that key."""
    buckets: CommaList = Field(default_factory=list)
    """S3: buckets that jobs may read with that key, and no other; in-* works."""
    sas_token: SecretStr | None = None
    """OneLake and ADLS Gen2: shared access signature."""
    account_name: str | None = None
    """ADLS Gen2: storage account of the key."""
    account_key: SecretStr | None = None
    """ADLS Gen2: key of that account."""
    hosts: CommaList = Field(default_factory=list)
    """Hosts that this is sent to, and no other; *.example.com works."""
    kind: Literal["basic", "bearer", "header", "query"] | None = None
    """Web: user and password, a bearer token, a header, or a signature added to the address."""
    header: str | None = None
    """Web: name of the header."""
    secret: SecretStr | None = None
    """Web: the token, the header's value, or the signature."""
    plain_http: bool = False
    """Web: allow sending it without TLS."""


MIN_SECONDS = 5


class ConfiguredSource(Section):
    """One source, and how often it is polled."""

    source_config: dict[str, Any]
    """Source_type, path, credentials and the like, as a polling job has."""
    file_pattern: str = "*"
    """Glob that file names must match."""
    priority: Literal["low", "normal", "high"] = "normal"
    """High goes before normal before low."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Carried along to every file; format: a profile."""
    every_seconds: float | None = Field(None, ge=MIN_SECONDS)
    """How often it is polled automatically; empty: only by polling jobs."""

    @field_validator("source_config")
    @classmethod
    def _has_a_type(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(config.get("source_type"), str):
            raise ValueError("a source_config needs a source_type")  # noqa: TRY004 - pydantic takes ValueErrors
        return config


class OneLakeSettings(Section):
    """How to reach OneLake and other ADLS Gen2 accounts. Without SAS and key, azure-identity's default is used."""

    endpoint: Annotated[str, Env("INGEST_ONELAKE_ENDPOINT")] = "https://onelake.dfs.fabric.microsoft.com"
    """Account that short addresses mean."""
    sas_token: Annotated[SecretStr | None, Env("INGEST_ONELAKE_SAS_TOKEN")] = None
    """Shared access signature."""
    account_name: Annotated[str | None, Env("INGEST_ONELAKE_ACCOUNT_NAME")] = None
    """Storage account of the key."""
    account_key: Annotated[SecretStr | None, Env("INGEST_ONELAKE_ACCOUNT_KEY")] = None
    """Key of that account."""
    allowed_accounts: Annotated[CommaList, Env("INGEST_ONELAKE_ALLOWED_ACCOUNTS")] = Field(default_factory=list)
    """Accounts or workspaces that jobs may name, as host or host/workspace, in addition to configured ones."""
    concurrency: Annotated[int, Env("INGEST_ONELAKE_CONCURRENCY")] = Field(8, gt=0)
    """Connections kept open, and chunks of one large file sent at a time."""


class EventhouseSettings(Section):
    """The Eventhouse that is polled when EVENT_SOURCE=eventhouse."""

    address: Annotated[str, Env("INGEST_EVENTHOUSE_ADDRESS")] = ""
    """Query address, e.g. https://....kusto.fabric.microsoft.com."""
    queries: Annotated[PathList, Env("INGEST_EVENTHOUSE_QUERIES")] = Field(default_factory=list)
    """YAML files or folders with one query for each domain."""
    authentication: Annotated[Literal["default", "application", "none"], Env("INGEST_EVENTHOUSE_AUTHENTICATION")] = (
        "default"
    )
    """Azure-identity's default credential, an application's id and secret, or nothing."""
    tenant_id: Annotated[str | None, Env("INGEST_EVENTHOUSE_TENANT_ID")] = None
    """Of the application."""
    client_id: Annotated[str | None, Env("INGEST_EVENTHOUSE_CLIENT_ID")] = None
    """Of the application."""
    client_secret: Annotated[SecretStr | None, Env("INGEST_EVENTHOUSE_CLIENT_SECRET")] = None
    """Of the application."""
    trusted_hosts: Annotated[CommaList, Env("INGEST_EVENTHOUSE_TRUSTED_HOSTS")] = Field(default_factory=list)
    """Hosts that a token may be sent to in addition to Microsoft's own."""
    timeout_seconds: Annotated[int, Env("INGEST_EVENTHOUSE_TIMEOUT_SECONDS")] = Field(20, gt=0, le=40)
    """How long the server may work on one query."""
    max_page_bytes: Annotated[int, Env("INGEST_EVENTHOUSE_MAX_PAGE_BYTES")] = Field(16 * 1024**2, gt=0)
    """Bytes of one response; a larger page is requested in smaller parts."""
    poll_seconds: Annotated[int, Env("INGEST_EVENTHOUSE_POLL_SECONDS")] = Field(30, gt=0)
    """Pause between two polls that found nothing."""


class EventHubsSettings(Section):
    """The Event Hubs namespace that is read when EVENT_SOURCE=eventhub."""

    connection_string: Annotated[SecretStr | None, Env("INGEST_EVENT_HUBS_CONNECTION_STRING")] = None
    """Endpoint=sb://...;SharedAccessKeyName=...;SharedAccessKey=..."""
    namespace: Annotated[str, Env("INGEST_EVENT_HUBS_NAMESPACE")] = ""
    """Without a connection string: the namespace, entered with azure-identity."""
    topic: Annotated[str, Env("INGEST_EVENT_HUBS_TOPIC")] = ""
    """The event hub to read."""


class DownloadSettings(Section):
    """What may be downloaded, and how much at a time."""

    allowed_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_HOSTS")] = Field(default_factory=list)
    """Hosts that may be contacted, *.example.com works; empty: every public one."""
    denied_hosts: Annotated[CommaList, Env("INGEST_DENIED_HOSTS")] = Field(default_factory=list)
    """Hosts that jobs and events may never name, even if another setting allows them."""
    allowed_internal_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_INTERNAL_HOSTS")] = Field(default_factory=list)
    """Hosts, addresses or CIDRs inside this network that jobs and events may name."""
    max_bytes: Annotated[int, Env("INGEST_MAX_ATTACHMENT_BYTES")] = Field(1024**3, gt=0)
    """Larger attachments are refused."""
    max_expansion: Annotated[float, Env("INGEST_MAX_ATTACHMENT_EXPANSION")] = Field(100.0, ge=1)
    """Bytes of content for one byte sent, where a server compresses."""
    max_seconds: Annotated[float, Env("INGEST_MAX_DOWNLOAD_SECONDS")] = Field(600.0, gt=0)
    """One download, continuations included."""
    min_bytes_per_second: Annotated[int, Env("INGEST_MIN_DOWNLOAD_BYTES_PER_SECOND")] = Field(1024, gt=0)
    """A slower download is aborted."""
    connect_timeout_seconds: Annotated[float, Env("INGEST_DOWNLOAD_CONNECT_TIMEOUT_SECONDS")] = Field(10.0, gt=0)
    """How long a connection may take."""
    read_timeout_seconds: Annotated[float, Env("INGEST_DOWNLOAD_READ_TIMEOUT_SECONDS")] = Field(30.0, gt=0)
    """How long a server may be silent."""
    max_redirects: Annotated[int, Env("INGEST_MAX_REDIRECTS")] = Field(5, ge=0)
    """Hops that are followed."""
    concurrency: Annotated[int, Env("INGEST_DOWNLOAD_CONCURRENCY")] = Field(16, gt=0)
    """Downloads at a time in one run."""
    concurrency_per_host: Annotated[int, Env("INGEST_DOWNLOAD_CONCURRENCY_PER_HOST")] = Field(8, gt=0)
    """Of those, from one host."""
    failures_to_pause: Annotated[int, Env("INGEST_HOST_FAILURES_TO_PAUSE")] = Field(5, gt=0)
    """Consecutive failures after which a host is not contacted for a while."""
    pause_seconds: Annotated[float, Env("INGEST_HOST_PAUSE_SECONDS")] = Field(60.0, gt=0)
    """How long that host is not contacted."""
    ca_file: Annotated[Path | None, Env("INGEST_CA_FILE")] = None
    """Certificate authorities to trust in addition to the public ones."""


class AttachmentSettings(Section):
    """From events to stored files."""

    event_source: Annotated[Literal["", "eventhouse", "eventhub"], Env("EVENT_SOURCE")] = ""
    """Eventhouse: polled into events.raw; eventhub: read instead of events.raw; empty: neither."""
    url_paths: Annotated[dict[str, list[str]], AsJson, Env("INGEST_ATTACHMENT_URL_PATHS")] = Field(default_factory=dict)
    """JSONPaths by domain that find addresses in the payload; * is for every domain."""
    store_url: Annotated[str, Env("INGEST_ATTACHMENTS_URL")] = ""
    """Folder or OneLake address of the attachment store; empty: attachments/ in the state folder."""
    destinations: Annotated[dict[str, str], EnvFamily("ONELAKE_", "_PATH")] = Field(default_factory=dict)
    """Folder or OneLake address by domain: ONELAKE_CLAIMS_PATH is for claims."""
    destination_template: Annotated[str, Env("INGEST_DESTINATION_TEMPLATE")] = (
        "{domain}/{yyyy}/{MM}/{dd}/{trace_id}/{attachment}/{file_name}"
    )
    """Path of an attachment in its store; a folder {attachment} is added where it has none."""
    results_url: Annotated[str, Env("INGEST_ATTACHMENT_RESULTS_URL")] = ""
    """Folder, s3:// or OneLake address of the Delta table; empty: delta/ in the state folder."""
    retry_delays_seconds: Annotated[SecondsList, Env("INGEST_DOWNLOAD_RETRY_DELAYS_SECONDS")] = Field(
        default_factory=lambda: [300.0, 600.0, 1200.0, 2400.0], min_length=4, max_length=4
    )
    """Pauses of the four retry topics; after the last one a task is dead."""
    max_replays: Annotated[int, Env("INGEST_MAX_REPLAYS")] = Field(5, gt=0)
    """How often a dead task may be replayed."""
    replays_per_second: Annotated[float, Env("INGEST_REPLAYS_PER_SECOND")] = Field(50.0, gt=0)
    """How many dead tasks are replayed per second."""
    batch_events: Annotated[int, Env("INGEST_BATCH_EVENTS")] = Field(2_500, gt=0)
    """Events in one run."""
    batch_downloads: Annotated[int, Env("INGEST_BATCH_DOWNLOADS")] = Field(2_500, gt=0)
    """Downloads in one run."""
    max_parallel_batches: Annotated[int, Env("INGEST_MAX_PARALLEL_ATTACHMENT_BATCHES")] = Field(2, gt=0)
    """Attachment runs in flight at a time."""
    tick_max_messages: Annotated[int, Env("INGEST_ATTACHMENTS_TICK_MAX_MESSAGES")] = Field(10_000, gt=0)
    """Messages taken from a topic in one sensor tick."""
    max_overdue_seconds: Annotated[int, Env("INGEST_MAX_OVERDUE_SECONDS")] = Field(300, gt=0)
    """A retry unserved for longer after its time fails the check nothing_overdue."""
    max_dead_share: Annotated[float, Env("INGEST_MAX_DEAD_SHARE")] = Field(0.1, ge=0, le=1)
    """Share of recently finished attachments that are dead which fails the check."""

    @property
    def retry_delays(self) -> tuple[timedelta, ...]:
        """Pauses of the retry topics, in order."""
        return tuple(timedelta(seconds=seconds) for seconds in self.retry_delays_seconds)
