"""Settings of each capability, of its configured sources, and of stored credentials.

Jobs and hosts name a credential; messages never carry a secret.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, SecretStr, ValidationInfo, field_validator

from ingest_project.core.settings.platform import StoreAddress, store_address
from ingest_project.core.yaml_models import AsJson, CommaList, Env, EnvFamily, PathList, SecondsList, Section


class PollingSettings(Section):
    """Limits of polling jobs: the folders, hosts and buckets they may list, and how long that may take.

    Args:
        local_roots: folders that local file events and polling jobs may read, symlinks resolved.
        allow_hard_links: allow reading local files that have a further hard link, which may be outside the folders.
        dummy_root: the folder that source_type dummy reads.
        max_jobs_per_tick: polling jobs taken from Kafka in one sensor tick.
        min_age_seconds: a file that changed more recently may still be written to: it is left for a later listing.
        page_files: files of a listing that are published at a time.
        allowed_source_hosts: FTP, SFTP and S3 hosts that jobs may name, in addition to the hosts of stored
            credentials.
        allowed_buckets: buckets that jobs may name, in-* works, in addition to those of configured sources.
        known_hosts_file: SFTP host keys that are accepted, as ssh-keyscan writes them.
        source_ca_file: certificate authorities of FTP servers to trust in addition to the system's.
        source_timeout_seconds: how long a source may be silent.
        max_listing_entries: files, folders and other entries that one listing of a source may have.
        max_listing_seconds: how long one listing of a source may take.
        source_connections: connections of one run to FTP and SFTP servers, and to web hosts that are listed.
        source_connections_per_host: of those, to one host.
        source_idle_seconds: how long an unused connection to a file server is kept.
    """

    local_roots: Annotated[PathList, Env("INGEST_LOCAL_ROOTS")] = Field(default_factory=lambda: [Path("dummy_data")])
    allow_hard_links: Annotated[bool, Env("INGEST_ALLOW_HARD_LINKS")] = False
    dummy_root: Annotated[Path, Env("INGEST_DUMMY_ROOT")] = Path("dummy_data")
    max_jobs_per_tick: Annotated[int, Env("INGEST_POLLING_MAX_JOBS_PER_TICK")] = Field(100, gt=0)
    min_age_seconds: Annotated[float, Env("INGEST_MIN_FILE_AGE_SECONDS")] = Field(2.0, ge=0)
    page_files: Annotated[int, Env("INGEST_POLLING_PAGE_FILES")] = Field(2_000, gt=0, le=20_000)
    allowed_source_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_SOURCE_HOSTS")] = Field(default_factory=list)
    allowed_buckets: Annotated[CommaList, Env("INGEST_ALLOWED_BUCKETS")] = Field(default_factory=list)
    known_hosts_file: Annotated[Path | None, Env("INGEST_SFTP_KNOWN_HOSTS")] = None
    source_ca_file: Annotated[Path | None, Env("INGEST_SOURCE_CA_FILE")] = None
    source_timeout_seconds: Annotated[float, Env("INGEST_SOURCE_TIMEOUT_SECONDS")] = Field(30.0, gt=0)
    max_listing_entries: Annotated[int, Env("INGEST_MAX_LISTING_ENTRIES")] = Field(1_000_000, gt=0)
    max_listing_seconds: Annotated[float, Env("INGEST_MAX_LISTING_SECONDS")] = Field(3_600.0, gt=0)
    source_connections: Annotated[int, Env("INGEST_SOURCE_CONNECTIONS")] = Field(16, gt=0)
    source_connections_per_host: Annotated[int, Env("INGEST_SOURCE_CONNECTIONS_PER_HOST")] = Field(4, gt=0)
    source_idle_seconds: Annotated[float, Env("INGEST_SOURCE_IDLE_SECONDS")] = Field(60.0, ge=0)

    @property
    def min_age(self) -> timedelta:
        """Return the minimum time since a file's last change before it is published."""
        return timedelta(seconds=self.min_age_seconds)


class FileIngestSettings(Section):
    """Limits and sizes of file ingest. Bytes are bytes on disk unless the description says otherwise.

    Args:
        profiles: YAML files or folders with reader profiles in addition to the shipped ones.
        default_profile: profile of files whose event names none.
        sensor_types: YAML file of known sensor types, units and limits; empty: the shipped one.
        unknown_sensor_types: what happens to readings of a type that is not listed.
        future_tolerance_seconds: how far ahead of now a timestamp may be.
        earliest_time: rows with an earlier timestamp are quarantined; give its offset.
        max_rejected_share: a file with a greater share of bad rows is quarantined whole.
        max_file_bytes: larger files are quarantined.
        max_row_bytes: longer rows are quarantined.
        max_columns: files with more columns are quarantined.
        max_excel_bytes: larger workbooks are quarantined: a workbook is read whole.
        max_excel_cells: workbooks with more cells are quarantined.
        max_excel_memory_bytes: address space of the process that opens a workbook.
        max_excel_seconds: CPU time of the process that opens a workbook.
        max_parquet_memory_bytes: address space of the process that opens a Parquet file.
        max_parquet_seconds: CPU time of the process that opens a Parquet file.
        max_json_depth: rows of JSON with more nested objects and lists are quarantined.
        max_expanded_bytes: compressed files and archives that expand to more are quarantined.
        max_expansion_ratio: files that expand to more than 16 MiB and this many times their size are quarantined.
        max_archive_members: archives with more files are quarantined.
        max_archive_depth: containers within containers, such as a gzip file in a zip archive.
        batch_files: files in one batch run.
        max_parallel_batches: batch runs in flight at a time.
        tick_max_messages: file events taken from Kafka in one sensor tick.
        tick_wait_seconds: how long a tick waits for a first message on a quiet topic.
        max_waiting_seconds: a file unfinished for longer fails the check nothing_waits_too_long.
        max_quarantine_share: a larger share of quarantined files among recently finished ones fails the check.
        baseline_weeks: weeks of a source's files with which each new file is compared.
        baseline_min_files: earlier files that a source must have before a file is compared with them.
        baseline_width: number of standard deviations from the median that count as usual.
    """

    profiles: Annotated[PathList, Env("INGEST_READER_PROFILES")] = Field(default_factory=list)
    default_profile: Annotated[str, Env("INGEST_DEFAULT_PROFILE")] = "canonical"
    sensor_types: Annotated[Path | None, Env("INGEST_SENSOR_TYPES")] = None
    unknown_sensor_types: Annotated[Literal["accept", "quarantine"], Env("INGEST_UNKNOWN_SENSOR_TYPES")] = "accept"
    future_tolerance_seconds: Annotated[int, Env("INGEST_FUTURE_TOLERANCE_SECONDS")] = Field(300, ge=0)
    earliest_time: Annotated[AwareDatetime, Env("INGEST_EARLIEST_TIME")] = datetime(1970, 1, 1, tzinfo=UTC)
    max_rejected_share: Annotated[float, Env("INGEST_MAX_REJECTED_SHARE")] = Field(0.5, ge=0, le=1)
    max_file_bytes: Annotated[int, Env("INGEST_MAX_FILE_BYTES")] = Field(4 * 1024**3, gt=0)
    max_row_bytes: Annotated[int, Env("INGEST_MAX_ROW_BYTES")] = Field(1024**2, gt=0, le=256 * 1024**2)
    max_columns: Annotated[int, Env("INGEST_MAX_COLUMNS")] = Field(2_000, gt=0)
    max_excel_bytes: Annotated[int, Env("INGEST_MAX_EXCEL_BYTES")] = Field(100 * 1024**2, gt=0)
    max_excel_cells: Annotated[int, Env("INGEST_MAX_EXCEL_CELLS")] = Field(20_000_000, gt=0)
    max_excel_memory_bytes: Annotated[int, Env("INGEST_MAX_EXCEL_MEMORY_BYTES")] = Field(1536 * 1024**2, gt=0)
    max_excel_seconds: Annotated[float, Env("INGEST_MAX_EXCEL_SECONDS")] = Field(60.0, gt=0)
    max_parquet_memory_bytes: Annotated[int, Env("INGEST_MAX_PARQUET_MEMORY_BYTES")] = Field(2 * 1024**3, gt=0)
    max_parquet_seconds: Annotated[float, Env("INGEST_MAX_PARQUET_SECONDS")] = Field(600.0, gt=0)
    max_json_depth: Annotated[int, Env("INGEST_MAX_JSON_DEPTH")] = Field(32, gt=0, le=200)
    max_expanded_bytes: Annotated[int, Env("INGEST_MAX_EXPANDED_BYTES")] = Field(4 * 1024**3, gt=0)
    max_expansion_ratio: Annotated[int, Env("INGEST_MAX_EXPANSION_RATIO")] = Field(300, gt=0)
    max_archive_members: Annotated[int, Env("INGEST_MAX_ARCHIVE_MEMBERS")] = Field(1_000, gt=0)
    max_archive_depth: Annotated[int, Env("INGEST_MAX_ARCHIVE_DEPTH")] = Field(2, gt=0, le=8)
    batch_files: Annotated[int, Env("INGEST_BATCH_FILES")] = Field(1_000, gt=0)
    max_parallel_batches: Annotated[int, Env("INGEST_MAX_PARALLEL_BATCHES")] = Field(2, gt=0)
    tick_max_messages: Annotated[int, Env("INGEST_TICK_MAX_MESSAGES")] = Field(4_000, gt=0)
    tick_wait_seconds: Annotated[float, Env("INGEST_TICK_WAIT_SECONDS")] = Field(0.0, ge=0, le=30)
    max_waiting_seconds: Annotated[int, Env("INGEST_MAX_WAITING_SECONDS")] = Field(900, gt=0)
    max_quarantine_share: Annotated[float, Env("INGEST_MAX_QUARANTINE_SHARE")] = Field(0.2, ge=0, le=1)
    baseline_weeks: Annotated[int, Env("INGEST_BASELINE_WEEKS")] = Field(4, gt=0, le=52)
    baseline_min_files: Annotated[int, Env("INGEST_BASELINE_MIN_FILES")] = Field(10, ge=3, le=200)
    baseline_width: Annotated[float, Env("INGEST_BASELINE_WIDTH")] = Field(5.0, gt=0)

    @property
    def future_tolerance(self) -> timedelta:
        """Return the longest time by which a timestamp may be ahead of now."""
        return timedelta(seconds=self.future_tolerance_seconds)


class UserActivitySettings(Section):
    """Batch sizes of user activity events, and the thresholds of their checks.

    Args:
        table_url: folder, s3:// or OneLake address of the Delta table of events; empty: delta/ in the state folder.
        range_messages: events of one commit.
        batch_messages: offsets in one run.
        max_parallel_batches: runs over events side by side, each with partitions of its own and its share of the
            processors.
        hourly_refresh_seconds: pause between two computations of the same hour's statistics while its events keep
            arriving.
        max_unfinished_seconds: events that wait to be stored for longer fail the check no_gap_in_offsets.
        max_implausible_share: share of recent events with an impossible time that fails event_time_plausible.
        retention_hours: how long files stay that only old versions of the table have.
    """

    table_url: Annotated[StoreAddress, Env("INGEST_USER_ACTIVITY_TABLE_URL")] = ""
    range_messages: Annotated[int, Env("INGEST_USER_ACTIVITY_RANGE_MESSAGES")] = Field(50_000, gt=0)
    batch_messages: Annotated[int, Env("INGEST_USER_ACTIVITY_BATCH_MESSAGES")] = Field(4_000_000, gt=0)
    max_parallel_batches: Annotated[int, Env("INGEST_USER_ACTIVITY_MAX_PARALLEL_BATCHES")] = Field(1, gt=0)
    hourly_refresh_seconds: Annotated[int, Env("INGEST_USER_ACTIVITY_HOURLY_REFRESH_SECONDS")] = Field(60, ge=0)
    max_unfinished_seconds: Annotated[int, Env("INGEST_USER_ACTIVITY_MAX_UNFINISHED_SECONDS")] = Field(900, gt=0)
    max_implausible_share: Annotated[float, Env("INGEST_USER_ACTIVITY_MAX_IMPLAUSIBLE_SHARE")] = Field(0.01, ge=0, le=1)
    retention_hours: Annotated[int, Env("INGEST_USER_ACTIVITY_RETENTION_HOURS")] = Field(168, ge=168)


class CrmSettings(Section):
    """Batch sizes of CRM messages, and the thresholds of their checks.

    Args:
        batch_messages: CRM messages in one run.
        max_parallel_batches: runs over CRM messages side by side, each with partitions of its own.
        max_unfinished_seconds: CRM messages that wait to be stored for longer fail the check no_gap_in_offsets.
        unidentified_log: file with a line of JSON for each message that is neither opportunity nor project; empty: next
            to LOG_FILE, else logs/unidentified_messages.log in the state folder.
    """

    batch_messages: Annotated[int, Env("INGEST_CRM_BATCH_MESSAGES")] = Field(50_000, gt=0)
    max_parallel_batches: Annotated[int, Env("INGEST_CRM_MAX_PARALLEL_BATCHES")] = Field(2, gt=0)
    max_unfinished_seconds: Annotated[int, Env("INGEST_CRM_MAX_UNFINISHED_SECONDS")] = Field(900, gt=0)
    unidentified_log: Annotated[Path | None, Env("INGEST_CRM_UNIDENTIFIED_LOG")] = None


class Credential(Section):
    """Identity towards one source or web host. Which fields are used depends on the protocol.

    Args:
        username: user of FTP, SFTP and HTTP basic authentication.
        password: that user's password.
        private_key_file: SFTP: file with the private key.
        private_key_passphrase: SFTP: passphrase of that key.
        host_key_fingerprints: SFTP: fingerprints (SHA256:...) of the servers' keys that are accepted.
        access_key_id: S3: key id.
        secret_access_key: S3: secret of that key.
        buckets: S3: buckets that jobs may read with that key, and no other; in-* works.
        sas_token: OneLake and ADLS Gen2: shared access signature.
        account_name: ADLS Gen2: storage account of the key.
        account_key: ADLS Gen2: key of that account.
        hosts: hosts that this is sent to, and no other; *.example.com works.
        kind: Web: user and password, a bearer token, a header, or a signature added to the address.
        header: Web: name of the header.
        secret: Web: the token, the header's value, or the signature.
        plain_http: Web: allow sending it without TLS.
    """

    username: str | None = None
    password: SecretStr | None = None
    private_key_file: Path | None = None
    private_key_passphrase: SecretStr | None = None
    host_key_fingerprints: CommaList = Field(default_factory=list)
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    buckets: CommaList = Field(default_factory=list)
    sas_token: SecretStr | None = None
    account_name: str | None = None
    account_key: SecretStr | None = None
    hosts: CommaList = Field(default_factory=list)
    kind: Literal["basic", "bearer", "header", "query"] | None = None
    header: str | None = None
    secret: SecretStr | None = None
    plain_http: bool = False


MIN_SECONDS = 5


class ConfiguredSource(Section):
    """One source, and how often it is polled.

    Args:
        source_config: Source_type, path, credentials and the like, as a polling job has.
        file_pattern: glob that file names must match.
        priority: high goes before normal before low.
        metadata: copied to each file's event; its format names a reader profile.
        every_seconds: how often it is polled automatically; empty: only by polling jobs.
    """

    source_config: dict[str, Any]
    file_pattern: str = "*"
    priority: Literal["low", "normal", "high"] = "normal"
    metadata: dict[str, Any] = Field(default_factory=dict)
    every_seconds: float | None = Field(None, ge=MIN_SECONDS)

    @field_validator("source_config")
    @classmethod
    def _has_a_type(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(config.get("source_type"), str):
            raise ValueError("a source_config needs a source_type")  # noqa: TRY004 - pydantic takes ValueErrors
        return config


class OneLakeSettings(Section):
    """Connection to OneLake and other ADLS Gen2 accounts. Without SAS and key, azure-identity's default is used.

    Args:
        endpoint: account that short addresses mean.
        sas_token: shared access signature.
        account_name: storage account of the key.
        account_key: key of that account.
        allowed_accounts: accounts or workspaces that jobs may name, as host or host/workspace, in addition to
            configured ones.
        concurrency: connections kept open, and chunks of one large file sent at a time.
    """

    endpoint: Annotated[str, Env("INGEST_ONELAKE_ENDPOINT")] = "https://onelake.dfs.fabric.microsoft.com"
    sas_token: Annotated[SecretStr | None, Env("INGEST_ONELAKE_SAS_TOKEN")] = None
    account_name: Annotated[str | None, Env("INGEST_ONELAKE_ACCOUNT_NAME")] = None
    account_key: Annotated[SecretStr | None, Env("INGEST_ONELAKE_ACCOUNT_KEY")] = None
    allowed_accounts: Annotated[CommaList, Env("INGEST_ONELAKE_ALLOWED_ACCOUNTS")] = Field(default_factory=list)
    concurrency: Annotated[int, Env("INGEST_ONELAKE_CONCURRENCY")] = Field(8, gt=0)


class EventhouseSettings(Section):
    """The Eventhouse that is polled when EVENT_SOURCE=eventhouse.

    Args:
        address: query address, e.g. https://....kusto.fabric.microsoft.com.
        queries: YAML files or folders with one query for each domain.
        authentication: azure-identity's default credential, an application's id and secret, or nothing.
        tenant_id: tenant id of the application.
        client_id: id of the application.
        client_secret: secret of the application.
        trusted_hosts: hosts that a token may be sent to in addition to Microsoft's own.
        timeout_seconds: how long the server may work on one query.
        max_page_bytes: bytes of one response; a larger page is requested in smaller parts.
        poll_seconds: pause between two polls that found nothing.
    """

    address: Annotated[str, Env("INGEST_EVENTHOUSE_ADDRESS")] = ""
    queries: Annotated[PathList, Env("INGEST_EVENTHOUSE_QUERIES")] = Field(default_factory=list)
    authentication: Annotated[Literal["default", "application", "none"], Env("INGEST_EVENTHOUSE_AUTHENTICATION")] = (
        "default"
    )
    tenant_id: Annotated[str | None, Env("INGEST_EVENTHOUSE_TENANT_ID")] = None
    client_id: Annotated[str | None, Env("INGEST_EVENTHOUSE_CLIENT_ID")] = None
    client_secret: Annotated[SecretStr | None, Env("INGEST_EVENTHOUSE_CLIENT_SECRET")] = None
    trusted_hosts: Annotated[CommaList, Env("INGEST_EVENTHOUSE_TRUSTED_HOSTS")] = Field(default_factory=list)
    timeout_seconds: Annotated[int, Env("INGEST_EVENTHOUSE_TIMEOUT_SECONDS")] = Field(20, gt=0, le=40)
    max_page_bytes: Annotated[int, Env("INGEST_EVENTHOUSE_MAX_PAGE_BYTES")] = Field(16 * 1024**2, gt=0)
    poll_seconds: Annotated[int, Env("INGEST_EVENTHOUSE_POLL_SECONDS")] = Field(30, gt=0)


class EventHubsSettings(Section):
    """The Event Hubs namespace that is read when EVENT_SOURCE=eventhub.

    Args:
        connection_string: Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…
        namespace: namespace to log in to with azure-identity, if there is no connection string.
        topic: the event hub to read.
    """

    connection_string: Annotated[SecretStr | None, Env("INGEST_EVENT_HUBS_CONNECTION_STRING")] = None
    namespace: Annotated[str, Env("INGEST_EVENT_HUBS_NAMESPACE")] = ""
    topic: Annotated[str, Env("INGEST_EVENT_HUBS_TOPIC")] = ""


class DownloadSettings(Section):
    """Limits of downloads: hosts, sizes, times and connections.

    Args:
        allowed_hosts: hosts that may be contacted, *.example.com works; empty: every public one.
        denied_hosts: hosts that jobs and events may never name, even if another setting allows them.
        allowed_internal_hosts: hosts, addresses or CIDRs inside this network that jobs and events may name.
        max_bytes: larger attachments are refused.
        max_expansion: most bytes that one byte of a compressed answer may expand to.
        max_seconds: longest time of one download, continuations included.
        min_bytes_per_second: a slower download is aborted.
        connect_timeout_seconds: how long a connection may take.
        read_timeout_seconds: how long a server may be silent.
        max_redirects: redirects that one download may follow.
        concurrency: downloads at a time in one run.
        concurrency_per_host: of those, from one host.
        failures_to_pause: consecutive failures after which a host is not contacted for a while.
        pause_seconds: how long that host is not contacted.
        ca_file: certificate authorities to trust in addition to the public ones.
    """

    allowed_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_HOSTS")] = Field(default_factory=list)
    denied_hosts: Annotated[CommaList, Env("INGEST_DENIED_HOSTS")] = Field(default_factory=list)
    allowed_internal_hosts: Annotated[CommaList, Env("INGEST_ALLOWED_INTERNAL_HOSTS")] = Field(default_factory=list)
    max_bytes: Annotated[int, Env("INGEST_MAX_ATTACHMENT_BYTES")] = Field(1024**3, gt=0)
    max_expansion: Annotated[float, Env("INGEST_MAX_ATTACHMENT_EXPANSION")] = Field(100.0, ge=1)
    max_seconds: Annotated[float, Env("INGEST_MAX_DOWNLOAD_SECONDS")] = Field(600.0, gt=0)
    min_bytes_per_second: Annotated[int, Env("INGEST_MIN_DOWNLOAD_BYTES_PER_SECOND")] = Field(1024, gt=0)
    connect_timeout_seconds: Annotated[float, Env("INGEST_DOWNLOAD_CONNECT_TIMEOUT_SECONDS")] = Field(10.0, gt=0)
    read_timeout_seconds: Annotated[float, Env("INGEST_DOWNLOAD_READ_TIMEOUT_SECONDS")] = Field(30.0, gt=0)
    max_redirects: Annotated[int, Env("INGEST_MAX_REDIRECTS")] = Field(5, ge=0)
    concurrency: Annotated[int, Env("INGEST_DOWNLOAD_CONCURRENCY")] = Field(16, gt=0)
    concurrency_per_host: Annotated[int, Env("INGEST_DOWNLOAD_CONCURRENCY_PER_HOST")] = Field(8, gt=0)
    failures_to_pause: Annotated[int, Env("INGEST_HOST_FAILURES_TO_PAUSE")] = Field(5, gt=0)
    pause_seconds: Annotated[float, Env("INGEST_HOST_PAUSE_SECONDS")] = Field(60.0, gt=0)
    ca_file: Annotated[Path | None, Env("INGEST_CA_FILE")] = None


class AttachmentSettings(Section):
    """From events to stored files.

    Args:
        event_source: eventhouse: polled into events.raw; eventhub: read instead of events.raw; empty: neither.
        url_paths: JSONPaths by domain that find addresses in the payload; * is for every domain.
        store_url: folder, s3:// or OneLake address of the attachment store; empty: attachments/ in the state folder.
        destinations: folder, s3:// or OneLake address by domain: ONELAKE_CLAIMS_PATH is for claims.
        destination_template: path of an attachment in its store; a folder {attachment} is added where it has none.
        results_url: folder, s3:// or OneLake address of the Delta table; empty: delta/ in the state folder.
        retry_delays_seconds: pauses of the four retry topics; after the last one a task is dead.
        max_replays: how often a dead task may be replayed.
        replays_per_second: how many dead tasks are replayed per second.
        batch_events: events in one run.
        batch_downloads: downloads in one run.
        max_parallel_batches: attachment runs in flight at a time.
        tick_max_messages: messages taken from a topic in one sensor tick.
        max_overdue_seconds: a retry that has not begun so long after its due time fails the check nothing_overdue.
        max_dead_share: a larger share of dead attachments among recently finished ones fails the check.
    """

    event_source: Annotated[Literal["", "eventhouse", "eventhub"], Env("EVENT_SOURCE")] = ""
    url_paths: Annotated[dict[str, list[str]], AsJson, Env("INGEST_ATTACHMENT_URL_PATHS")] = Field(default_factory=dict)
    store_url: Annotated[StoreAddress, Env("INGEST_ATTACHMENTS_URL")] = ""
    destinations: Annotated[dict[str, str], EnvFamily("ONELAKE_", "_PATH")] = Field(default_factory=dict)
    destination_template: Annotated[str, Env("INGEST_DESTINATION_TEMPLATE")] = (
        "{domain}/{yyyy}/{MM}/{dd}/{trace_id}/{attachment}/{file_name}"
    )
    results_url: Annotated[StoreAddress, Env("INGEST_ATTACHMENT_RESULTS_URL")] = ""
    retry_delays_seconds: Annotated[SecondsList, Env("INGEST_DOWNLOAD_RETRY_DELAYS_SECONDS")] = Field(
        default_factory=lambda: [300.0, 600.0, 1200.0, 2400.0], min_length=4, max_length=4
    )
    max_replays: Annotated[int, Env("INGEST_MAX_REPLAYS")] = Field(5, gt=0)
    replays_per_second: Annotated[float, Env("INGEST_REPLAYS_PER_SECOND")] = Field(50.0, gt=0)
    batch_events: Annotated[int, Env("INGEST_BATCH_EVENTS")] = Field(2_500, gt=0)
    batch_downloads: Annotated[int, Env("INGEST_BATCH_DOWNLOADS")] = Field(2_500, gt=0)
    max_parallel_batches: Annotated[int, Env("INGEST_MAX_PARALLEL_ATTACHMENT_BATCHES")] = Field(2, gt=0)
    tick_max_messages: Annotated[int, Env("INGEST_ATTACHMENTS_TICK_MAX_MESSAGES")] = Field(10_000, gt=0)
    max_overdue_seconds: Annotated[int, Env("INGEST_MAX_OVERDUE_SECONDS")] = Field(300, gt=0)
    max_dead_share: Annotated[float, Env("INGEST_MAX_DEAD_SHARE")] = Field(0.1, ge=0, le=1)

    @field_validator("destinations")
    @classmethod
    def _are_stores(cls, destinations: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        scheme, is_address, _ = str(info.data.get("store_url", "")).partition("://")
        for domain, address in destinations.items():
            try:
                store_address(address)
            except ValueError as error:
                raise ValueError(f"of {domain}: {error}") from None
            if address.startswith("/") and is_address and scheme != "file":
                raise ValueError(
                    f"of {domain}: {address[:100]} is a folder of this machine, and the others are elsewhere; write"
                    " the whole address, https://onelake.dfs.fabric.microsoft.com/<workspace>/<item>.Lakehouse/Files/…,"
                    " a folder of INGEST_ATTACHMENTS_URL without the first slash, or file:///… for one of this machine"
                )
        return destinations

    @property
    def retry_delays(self) -> tuple[timedelta, ...]:
        """Return the delays of the retry topics, in order."""
        return tuple(timedelta(seconds=seconds) for seconds in self.retry_delays_seconds)
