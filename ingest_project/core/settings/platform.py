"""Settings that every capability uses: Kafka, databases, stores, retries, logging, and operations."""

from __future__ import annotations

import re
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator

from ingest_project.core.secrets import SecretReference, is_in_vault
from ingest_project.core.yaml_models import CommaList, Env, Section, as_list

SHORTEST_TOKEN = 16
FEWEST_CHARACTERS = 6
DEFAULT_PORT = 5432
# Python's aliases of log levels.
LEVELS = {"WARN": "WARNING", "CRITICAL": "ERROR", "FATAL": "ERROR", "NOTSET": "DEBUG", "TRACE": "DEBUG"}
THIS_MACHINE = {"", "localhost", "127.0.0.1", "::1"}


def _strong(token: SecretStr | None) -> SecretStr | None:
    if isinstance(token, SecretReference):
        token.require(_require_strong)
    elif token:
        _require_strong(token.get_secret_value())
    return token


def _require_strong(text: str) -> None:
    if text and (len(text) < SHORTEST_TOKEN or len(set(text)) < FEWEST_CHARACTERS):
        raise ValueError(
            f"it can be guessed; it needs at least {SHORTEST_TOKEN} characters, {FEWEST_CHARACTERS} of them different. "
            "`openssl rand -hex 32` prints a good one"
        )
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("it must be of printable ASCII characters without spaces, as a header has to carry it")


def _level(name: object) -> object:
    return LEVELS.get(name.upper(), name.upper()) if isinstance(name, str) else name


def _lower(text: object) -> object:
    return text.lower() if isinstance(text, str) else text


class KafkaSettings(Section):
    """Connection to Kafka.

    Args:
        bootstrap_servers: host:port of one or more brokers, comma-separated.
        group_id: consumer group whose offsets follow the saved cursors, for lag displays.
        auto_offset_reset: where a topic is first read from.
        security_protocol: how the connection is secured.
        sasl_mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER.
        sasl_username: SASL user.
        sasl_password: SASL password.
        ssl_ca_location: file with the certificate authorities to trust.
        request_timeout_seconds: how long one request may take before the broker counts as away.
        generation: set by `ingest dev`: id of this start of the embedded broker, which forgets everything when it
            ends.
    """

    bootstrap_servers: Annotated[str, Env("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_BROKERS")] = ""
    group_id: Annotated[str, Env("KAFKA_GROUP_ID")] = "ingest-project"
    auto_offset_reset: Annotated[
        Literal["earliest", "latest"], BeforeValidator(_lower), Env("AUTO_OFFSET_RESET", "KAFKA_AUTO_OFFSET_RESET")
    ] = "earliest"
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Env("KAFKA_SECURITY_PROTOCOL")
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[str | None, Env("KAFKA_SASL_MECHANISM")] = None
    sasl_username: Annotated[str | None, Env("KAFKA_SASL_USERNAME")] = None
    sasl_password: Annotated[SecretStr | None, Env("KAFKA_SASL_PASSWORD")] = None
    ssl_ca_location: Annotated[Path | None, Env("KAFKA_SSL_CA_LOCATION")] = None
    request_timeout_seconds: Annotated[float, Env("KAFKA_REQUEST_TIMEOUT_SECONDS")] = Field(10.0, gt=0)
    generation: Annotated[str, Env("KAFKA_GENERATION")] = ""


class SchemaRegistrySettings(Section):
    """The schema registry that describes the messages of declared streams in Avro, Protobuf or JSON Schema.

    Args:
        url: address of a server with Confluent's API.
        username: username of basic authentication.
        password: password of that user.
        token: bearer token, instead of user and password.
        logical_cluster: cluster that a token is for, on Confluent Cloud.
        plain_http: allow sending user, password or token without TLS.
        ca_file: certificate authorities to trust instead of the public ones.
        certificate_file: certificate that this client shows.
        key_file: private key of that certificate.
        key_password: password of the private key.
        timeout_seconds: how long one request may take.
    """

    url: Annotated[str, Env("INGEST_SCHEMA_REGISTRY_URL")] = ""
    username: Annotated[str | None, Env("INGEST_SCHEMA_REGISTRY_USERNAME")] = None
    password: Annotated[SecretStr | None, Env("INGEST_SCHEMA_REGISTRY_PASSWORD")] = None
    token: Annotated[SecretStr | None, Env("INGEST_SCHEMA_REGISTRY_TOKEN")] = None
    logical_cluster: Annotated[str, Env("INGEST_SCHEMA_REGISTRY_LOGICAL_CLUSTER")] = ""
    plain_http: Annotated[bool, Env("INGEST_SCHEMA_REGISTRY_PLAIN_HTTP")] = False
    ca_file: Annotated[Path | None, Env("INGEST_SCHEMA_REGISTRY_CA_FILE")] = None
    certificate_file: Annotated[Path | None, Env("INGEST_SCHEMA_REGISTRY_CERTIFICATE_FILE")] = None
    key_file: Annotated[Path | None, Env("INGEST_SCHEMA_REGISTRY_KEY_FILE")] = None
    key_password: Annotated[SecretStr | None, Env("INGEST_SCHEMA_REGISTRY_KEY_PASSWORD")] = None
    timeout_seconds: Annotated[float, Env("INGEST_SCHEMA_REGISTRY_TIMEOUT_SECONDS")] = Field(10.0, gt=0)


class TopicSettings(Section):
    """The name of every topic.

    Args:
        polling_queue: polling jobs: requests to list a source.
        polling_queue_dlq: unreadable polling jobs.
        file_event_queue: files to ingest.
        file_event_queue_dlq: unreadable file events, of both file topics.
        file_events: short file events of older producers.
        events_raw: events with attachments.
        events_raw_dlq: unreadable events.
        downloads_pending: files to download.
        downloads_cached: files downloaded and verified, on their way to the store.
        downloads_results: how each attempt ended.
        downloads_retry_5m: downloads that failed once and wait.
        downloads_retry_10m: downloads that failed twice and wait.
        downloads_retry_20m: downloads that failed three times and wait.
        downloads_retry_40m: downloads that failed four times and wait.
        downloads_dlq: downloads that failed for good, and unreadable tasks.
        user_activity_events: what users did.
        user_activity_events_dlq: unreadable user activity events.
        sales_events: opportunities and projects that changed in a CRM.
    """

    polling_queue: Annotated[str, Env("KAFKA_TOPIC_POLLING_QUEUE")] = "polling-queue"
    polling_queue_dlq: Annotated[str, Env("KAFKA_TOPIC_POLLING_QUEUE_DLQ")] = "polling-queue.dlq"
    file_event_queue: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENT_QUEUE")] = "file-event-queue"
    file_event_queue_dlq: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENT_QUEUE_DLQ")] = "file-event-queue.dlq"
    file_events: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENTS")] = "file_events"
    events_raw: Annotated[str, Env("KAFKA_TOPIC_EVENTS_RAW")] = "events.raw"
    events_raw_dlq: Annotated[str, Env("KAFKA_TOPIC_EVENTS_RAW_DLQ")] = "events.raw.dlq"
    downloads_pending: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_PENDING")] = "downloads.pending"
    downloads_cached: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_CACHED")] = "downloads.cached"
    downloads_results: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RESULTS")] = "downloads.results"
    downloads_retry_5m: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RETRY_5M")] = "downloads.retry.5m"
    downloads_retry_10m: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RETRY_10M")] = "downloads.retry.10m"
    downloads_retry_20m: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RETRY_20M")] = "downloads.retry.20m"
    downloads_retry_40m: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RETRY_40M")] = "downloads.retry.40m"
    downloads_dlq: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_DLQ")] = "downloads.dlq"
    user_activity_events: Annotated[str, Env("KAFKA_TOPIC_USER_ACTIVITY_EVENTS")] = "user-activity-events"
    user_activity_events_dlq: Annotated[str, Env("KAFKA_TOPIC_USER_ACTIVITY_EVENTS_DLQ")] = "user-activity-events.dlq"
    sales_events: Annotated[str, Env("KAFKA_TOPIC_SALES_EVENTS")] = "sales_events"

    @property
    def downloads_retry(self) -> tuple[str, ...]:
        """Return the retry topics, shortest delay first."""
        return (self.downloads_retry_5m, self.downloads_retry_10m, self.downloads_retry_20m, self.downloads_retry_40m)

    @property
    def dead_letters(self) -> tuple[str, ...]:
        """Return every dead-letter topic, in the order of the data flow."""
        return (
            self.polling_queue_dlq,
            self.file_event_queue_dlq,
            self.events_raw_dlq,
            self.downloads_dlq,
            self.user_activity_events_dlq,
        )


class WarehouseSettings(Section):
    """The relational database that holds rows, metrics and the work queues.

    Args:
        database_url: SQLAlchemy URL, e.g. postgresql://user:password@host/database or sqlite:////path.
        connect_timeout_seconds: how long a connection may take.
    """

    database_url: Annotated[SecretStr, Env("DATABASE_URL")] = SecretStr("")
    connect_timeout_seconds: Annotated[int, Env("INGEST_DATABASE_CONNECT_TIMEOUT_SECONDS")] = Field(10, gt=0)


class DagsterSettings(Section):
    """Dagster's own storage and its UI.

    Args:
        home: folder of Dagster's own configuration and, without PostgreSQL, its records.
        postgres_url: PostgreSQL URL of Dagster's storage; empty: SQLite in DAGSTER_HOME.
        webserver_url: where people reach the Dagster UI, for links.
        webserver_port: port of the UI that `ingest dev` starts; 0 picks a free one.
        disabled_capabilities: capabilities that this host does not load, sensors and schedules included: polling,
            file_ingest, attachments, user_activity, crm, alerts, retention.
        asset_owners: owners of all assets in the Dagster UI: mail addresses, or team:name.
    """

    home: Annotated[Path | None, Env("DAGSTER_HOME")] = None
    postgres_url: Annotated[SecretStr, Env("DAGSTER_POSTGRES_URL")] = SecretStr("")
    webserver_url: Annotated[str, Env("INGEST_WEBSERVER_URL", "INGEST_DAGSTER_URL")] = "http://127.0.0.1:3000"
    webserver_port: Annotated[int, Env("INGEST_WEBSERVER_PORT")] = Field(3000, ge=0, le=65535)
    disabled_capabilities: Annotated[
        list[Literal["polling", "file_ingest", "attachments", "user_activity", "crm", "alerts", "retention"]],
        BeforeValidator(as_list),
        Env("INGEST_DISABLED_CAPABILITIES"),
    ] = Field(default_factory=list)
    asset_owners: Annotated[CommaList, Env("INGEST_ASSET_OWNERS")] = Field(default_factory=list)

    def partition_url(self, asset: str, key: str) -> str:
        """Return the address of a partition in the Dagster UI.

        Args:
            asset: path of the asset.
            key: key of the partition.
        """
        site = self.webserver_url.rstrip("/")
        return f"{site}/assets/{quote(asset)}?view=partitions&partition={quote(key, safe='')}"


# Schemes of the shipped stores; other packages add further ones, see `core.plugins`.
STORE_SCHEMES = ("file", "s3", "abfss", "abfs", "https", "http")
# Texts that would be local folders but are probably meant as addresses.
_NEARLY_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*:/|[\w.-]+\.(?:dfs|blob)\.[\w.-]+(?:/|$)", re.IGNORECASE)


def store_address(text: str) -> str:
    """Refuse a text that cannot be the address of a store. Opening the store checks hosts, buckets and credentials."""
    scheme, separator, rest = text.partition("://")
    if not text.isprintable() or ".." in re.split(r"[/\\]", text):
        raise ValueError("an address has no unprintable character and no part ..")
    if separator and scheme.lower() not in STORE_SCHEMES:
        further = entry_points(group="ingest_project.stores").names
        if scheme.lower() not in further:
            known = ", ".join([*STORE_SCHEMES, *further])
            raise ValueError(f"no store has the scheme {scheme[:20]!r}; known are {known}, and folders")
    if separator and not rest.strip("/"):
        raise ValueError("the address ends behind its scheme")
    if scheme.lower() in {"abfss", "abfs"} and "@" not in rest.partition("/")[0]:
        raise ValueError(f"it names no file system; write {scheme}://container@account.dfs.core.windows.net/folder")
    if not separator and _NEARLY_ADDRESS.match(text):
        raise ValueError("it is no folder, and as an address it lacks its scheme; write https://, abfss:// or s3://")
    return text


StoreAddress = Annotated[str, AfterValidator(store_address)]


def _without_user(address: str | None) -> str | None:
    """Refuse an address of a server with a user or password, as errors show addresses."""
    if "@" in (address or "").partition("//")[2].partition("/")[0]:
        raise ValueError("an address must not contain a user or password; there are settings for credentials")
    return address


class StorageSettings(Section):
    """Object stores for landed and quarantined files.

    Args:
        landing_url: folder, s3:// or OneLake address of the landing store; empty: landing/ in the state folder.
        quarantine_url: folder, s3:// or OneLake address of the quarantine; empty: quarantine/ in the state folder.
        s3_endpoint_url: address of an S3 server other than Amazon's.
        s3_region: region of the buckets.
        s3_access_key_id: key id; without it boto3's own credential chain is used.
        s3_secret_access_key: secret of that key.
    """

    landing_url: Annotated[StoreAddress, Env("INGEST_LANDING_URL")] = ""
    quarantine_url: Annotated[StoreAddress, Env("INGEST_QUARANTINE_URL")] = ""
    s3_endpoint_url: Annotated[str | None, AfterValidator(_without_user), Env("INGEST_S3_ENDPOINT_URL")] = None
    s3_region: Annotated[str | None, Env("INGEST_S3_REGION")] = None
    s3_access_key_id: Annotated[str | None, Env("INGEST_S3_ACCESS_KEY_ID")] = None
    s3_secret_access_key: Annotated[SecretStr | None, Env("INGEST_S3_SECRET_ACCESS_KEY")] = None


class DeltaSettings(Section):
    """Maintenance of Delta tables. Bytes are bytes on disk.

    Args:
        min_small_files: a partition with fewer small files is not compacted.
        target_file_bytes: size up to which files are merged.
        time_limit_seconds: no further partition is merged after this.
        retention_hours: how long files stay that are part of old versions only.
    """

    min_small_files: Annotated[int, Env("INGEST_DELTA_MIN_SMALL_FILES")] = Field(10, gt=1)
    target_file_bytes: Annotated[int, Env("INGEST_DELTA_TARGET_FILE_BYTES")] = Field(128 * 1024**2, gt=0)
    time_limit_seconds: Annotated[int, Env("INGEST_DELTA_TIME_LIMIT_SECONDS")] = Field(600, gt=0)
    # Delta's own minimum: readers of an old version and slow writers are finished after a week.
    retention_hours: Annotated[int, Env("INGEST_DELTA_RETENTION_HOURS")] = Field(168, ge=168)


class RetrySettings(Section):
    """When and how often a job or file is retried after a transient failure.

    Args:
        max_attempts: attempts, the first one included, after which a job or file is failed with its reason, and a
            stream's transaction or connection is left to the next run.
        delay_seconds: pause before the second attempt; doubles with each further one.
        max_delay_seconds: longest pause between two attempts.
        launch_grace_seconds: how long a run may take to appear after it was requested.
        max_redrives: how often the message of a dead letter may be published to its topic again.
    """

    max_attempts: Annotated[int, AfterValidator(lambda attempts: max(1, attempts)), Env("MAX_RETRIES")] = Field(8, ge=0)
    delay_seconds: Annotated[float, Env("RETRY_DELAY")] = Field(5.0, ge=0)
    max_delay_seconds: Annotated[float, Env("INGEST_MAX_RETRY_DELAY_SECONDS")] = Field(600.0, ge=0)
    launch_grace_seconds: Annotated[float, Env("INGEST_LAUNCH_GRACE_SECONDS")] = Field(60.0, ge=0)
    max_redrives: Annotated[int, Env("INGEST_MAX_REDRIVES")] = Field(3, ge=0)

    def delay(self, attempts: int) -> timedelta:
        """Return the pause after this many attempts."""
        doubled = self.delay_seconds * 2.0 ** min(max(attempts - 1, 0), 30)
        return timedelta(seconds=min(doubled, self.max_delay_seconds))

    @property
    def launch_grace(self) -> timedelta:
        """Return the time within which a requested run must appear."""
        return timedelta(seconds=self.launch_grace_seconds)


class LoggingSettings(Section):
    """Level, format and file of the log.

    Args:
        level: least severe level that is written.
        format: one JSON object a line, or text for a person.
        file: also write the log to this file; its folder is created.
    """

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_level), Env("LOG_LEVEL")] = "INFO"
    format: Annotated[Literal["json", "console"], BeforeValidator(_lower), Env("LOG_FORMAT")] = "json"
    file: Annotated[Path | None, Env("LOG_FILE")] = None


class TraceSettings(Section):
    """Export of traces to an OpenTelemetry collector, over OTLP/HTTP. OpenTelemetry's own variables hold as well.

    Args:
        endpoint: address of a collector, e.g. http://localhost:4318; empty: OTEL_EXPORTER_OTLP_ENDPOINT, or no export.
        headers: sent with each export, name=value pairs separated by commas, e.g. an API key.
        sample_ratio: share of the traces started here that are recorded; the sender of a message decides about its own.
    """

    endpoint: Annotated[str, Env("INGEST_TRACES_ENDPOINT")] = ""
    headers: Annotated[SecretStr | None, Env("INGEST_TRACES_HEADERS")] = None
    sample_ratio: Annotated[float, Env("INGEST_TRACES_SAMPLE_RATIO")] = Field(1.0, ge=0, le=1)


class LineageSettings(Section):
    """Lineage of every run for an OpenLineage backend. OpenLineage's own variables hold as well.

    Args:
        url: address of the backend, e.g. http://localhost:5000; empty: OPENLINEAGE_URL, or no lineage.
        api_key: bearer token of the backend.
        namespace: namespace of the jobs; empty: OPENLINEAGE_NAMESPACE, or ingest_project.
    """

    url: Annotated[str, Env("INGEST_LINEAGE_URL")] = ""
    api_key: Annotated[SecretStr | None, Env("INGEST_LINEAGE_API_KEY")] = None
    namespace: Annotated[str, Env("INGEST_LINEAGE_NAMESPACE")] = ""


class MonitorSettings(Section):
    """The dashboard, the metrics and the health endpoint.

    Args:
        host: address that the monitor listens on; beyond this machine it wants a token or a sign-in provider.
        port: port of the monitor; 0 picks a free one.
        url: address at which people reach the monitor, for links; empty: links lead to the Dagster UI.
        token: secret of viewers, who see every page; at least 16 characters; empty: none required.
        operator_token: secret of operators, who act as well; without it and without OpenID Connect, nobody acts
            beyond this machine.
        actions_per_minute: most actions of one person in a minute.
        refresh_seconds: how often the monitor collects the system's state and the page refreshes.
    """

    host: Annotated[str, Env("INGEST_MONITOR_HOST")] = "127.0.0.1"
    port: Annotated[int, Env("INGEST_MONITOR_PORT")] = Field(8080, ge=0, le=65535)
    url: Annotated[str, Env("INGEST_MONITOR_URL")] = ""
    token: Annotated[SecretStr | None, AfterValidator(_strong), Env("INGEST_MONITOR_TOKEN")] = None
    operator_token: Annotated[SecretStr | None, AfterValidator(_strong), Env("INGEST_MONITOR_OPERATOR_TOKEN")] = None
    actions_per_minute: Annotated[int, Env("INGEST_MONITOR_ACTIONS_PER_MINUTE")] = Field(60, gt=0)
    refresh_seconds: Annotated[float, Env("INGEST_MONITOR_REFRESH_SECONDS")] = Field(2.0, ge=0.5, le=60)

    @field_validator("operator_token")
    @classmethod
    def _is_another(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        other = info.data.get("token")
        if token and not is_in_vault(token) and not is_in_vault(other) and token == other:
            raise ValueError("it must differ from INGEST_MONITOR_TOKEN, or every viewer could act")
        return token


class OidcSettings(Section):
    """Signing in to the monitor with OpenID Connect.

    Args:
        issuer: the provider's address, as its ID tokens name it; empty: tokens only.
        client_id: id of this application at the provider.
        client_secret: secret of that application; empty for a public one.
        redirect_url: address of /oidc/callback as browsers reach it; by default that of the request.
        scopes: requested from the provider, with spaces between.
        groups_claim: claim that lists a person's groups.
        operators: verified mail addresses and groups of those who act.
        viewers: verified mail addresses and groups of those who only look.
        recheck_seconds: after which the provider has to confirm a person who has signed in, without asking them.
    """

    issuer: Annotated[str, Env("INGEST_OIDC_ISSUER")] = ""
    client_id: Annotated[str, Env("INGEST_OIDC_CLIENT_ID")] = Field("", validate_default=True)
    client_secret: Annotated[SecretStr | None, Env("INGEST_OIDC_CLIENT_SECRET")] = None
    redirect_url: Annotated[str, Env("INGEST_OIDC_REDIRECT_URL")] = ""
    scopes: Annotated[str, Env("INGEST_OIDC_SCOPES")] = "openid email profile"
    groups_claim: Annotated[str, Env("INGEST_OIDC_GROUPS_CLAIM")] = "groups"
    viewers: Annotated[CommaList, Env("INGEST_OIDC_VIEWERS")] = Field(default_factory=list)
    operators: Annotated[CommaList, Env("INGEST_OIDC_OPERATORS")] = Field(default_factory=list, validate_default=True)
    recheck_seconds: Annotated[float, Env("INGEST_OIDC_RECHECK_SECONDS")] = Field(3_600.0, ge=1)

    @field_validator("issuer", "redirect_url")
    @classmethod
    def _is_web_address(cls, address: str) -> str:
        parts = urlsplit(address)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in THIS_MACHINE)
        if address and not (safe and parts.hostname):
            raise ValueError("it must be an https address; http only on this machine")
        return address

    @field_validator("scopes")
    @classmethod
    def _asks_for_an_id_token(cls, scopes: str) -> str:
        if "openid" not in scopes.split():
            raise ValueError("openid must be among them")
        return scopes

    @field_validator("client_id")
    @classmethod
    def _is_given(cls, client_id: str, info: ValidationInfo) -> str:
        if info.data.get("issuer") and not client_id:
            raise ValueError("INGEST_OIDC_ISSUER needs it")
        return client_id

    @field_validator("operators")
    @classmethod
    def _admits_somebody(cls, operators: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("issuer") and not operators and not info.data.get("viewers"):
            raise ValueError("with INGEST_OIDC_ISSUER, it or INGEST_OIDC_VIEWERS must name those who may sign in")
        return operators


class BackpressureSettings(Section):
    """Conditions under which sensors request fewer runs or none. The work waits on its topic or in its queue.

    Args:
        min_free_disk_bytes: with less free space on a disk that is written to, no run is requested.
        slow_warehouse_seconds: if an empty transaction takes longer, each sensor requests one batch at a time.
    """

    min_free_disk_bytes: Annotated[int, Env("INGEST_MIN_FREE_DISK_BYTES")] = Field(1024**3, ge=0)
    slow_warehouse_seconds: Annotated[float, Env("INGEST_SLOW_WAREHOUSE_SECONDS")] = Field(2.0, gt=0)


class RetentionSettings(Section):
    """Days for which finished records are kept. Failed, quarantined and leased records are never purged.

    Args:
        partition_days: partitions of files, jobs and attachments that are long done.
        run_days: Dagster's finished runs.
        landing_days: landed bytes of ingested files.
        event_days: bodies of attachment events, from which addresses can be taken again.
        outbox_days: ids of published messages; longer than a source lists the same file version.
    """

    partition_days: Annotated[int, Env("INGEST_KEEP_PARTITIONS_DAYS")] = Field(90, gt=0)
    run_days: Annotated[int, Env("INGEST_KEEP_RUNS_DAYS")] = Field(30, gt=0)
    landing_days: Annotated[int, Env("INGEST_KEEP_LANDED_DAYS")] = Field(365, gt=0)
    event_days: Annotated[int, Env("INGEST_KEEP_EVENTS_DAYS")] = Field(30, gt=0)
    outbox_days: Annotated[int, Env("INGEST_KEEP_OUTBOX_DAYS")] = Field(400, gt=0)

    @property
    def partitions(self) -> timedelta:
        """Return the retention of partitions."""
        return timedelta(days=self.partition_days)


def database_of(database_url: str) -> tuple[str, int, str, str] | None:
    """Return host, port, database and session options, which may name a schema; None if the URL is not PostgreSQL's."""
    try:
        url = urlsplit(database_url)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        port = int(query.get("port") or url.port or DEFAULT_PORT)
    except ValueError:
        return None
    if url.scheme.partition("+")[0] not in {"postgres", "postgresql"}:
        return None
    host = query.get("host") or url.hostname or ""
    database = query.get("dbname") or unquote(url.path.lstrip("/")) or unquote(url.username or "")
    return "localhost" if host in THIS_MACHINE else host.lower(), port, database, query.get("options", "")
