"""Settings of what this system talks to: Kafka, the databases, the stores of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr

from ingest_project.core.settings.fields import CommaList, Env, Section, as_list


class KafkaSettings(Section):
    """How to reach Kafka, and how much to read from it at a time."""

    bootstrap_servers: Annotated[str, Env("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_BROKERS")] = Field(
        "", description="host:port of one or more brokers, comma-separated"
    )
    group_id: Annotated[str, Env("KAFKA_GROUP_ID")] = Field(
        "ingest-project", description="consumer group whose offsets follow the saved cursors, for lag displays"
    )
    auto_offset_reset: Annotated[Literal["earliest", "latest"], Env("AUTO_OFFSET_RESET")] = Field(
        "earliest", description="where a topic is first read from"
    )
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Env("KAFKA_SECURITY_PROTOCOL")
    ] = Field("PLAINTEXT", description="how the connection is secured")
    sasl_mechanism: Annotated[str | None, Env("KAFKA_SASL_MECHANISM")] = Field(
        None, description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
    )
    sasl_username: Annotated[str | None, Env("KAFKA_SASL_USERNAME")] = Field(None, description="SASL user")
    sasl_password: Annotated[SecretStr | None, Env("KAFKA_SASL_PASSWORD")] = Field(None, description="SASL password")
    ssl_ca_location: Annotated[Path | None, Env("KAFKA_SSL_CA_LOCATION")] = Field(
        None, description="file with the certificate authorities to trust"
    )
    request_timeout_seconds: Annotated[float, Env("KAFKA_REQUEST_TIMEOUT_SECONDS")] = Field(
        10.0, gt=0, description="how long one request may take before the broker counts as away"
    )
    generation: Annotated[str, Env("KAFKA_GENERATION")] = Field(
        "", description="set by `ingest dev`: tells one life of the embedded broker from the next"
    )


class TopicSettings(Section):
    """The name of every topic."""

    polling_queue: Annotated[str, Env("KAFKA_TOPIC_POLLING_QUEUE")] = Field(
        "polling-queue", description="jobs that ask us to look in a source"
    )
    polling_queue_dlq: Annotated[str, Env("KAFKA_TOPIC_POLLING_QUEUE_DLQ")] = Field(
        "polling-queue.dlq", description="unreadable polling jobs"
    )
    file_event_queue: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENT_QUEUE")] = Field(
        "file-event-queue", description="files to ingest"
    )
    file_event_queue_dlq: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENT_QUEUE_DLQ")] = Field(
        "file-event-queue.dlq", description="unreadable file events, of both file topics"
    )
    file_events: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENTS")] = Field(
        "file_events", description="short file events of older producers"
    )
    events_raw: Annotated[str, Env("KAFKA_TOPIC_EVENTS_RAW")] = Field(
        "events.raw", description="events with attachments"
    )
    events_raw_dlq: Annotated[str, Env("KAFKA_TOPIC_EVENTS_RAW_DLQ")] = Field(
        "events.raw.dlq", description="unreadable events"
    )
    downloads_pending: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_PENDING")] = Field(
        "downloads.pending", description="files to download"
    )
    downloads_cached: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_CACHED")] = Field(
        "downloads.cached", description="files downloaded and verified, on their way to the store"
    )
    downloads_results: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RESULTS")] = Field(
        "downloads.results", description="how each attempt ended"
    )
    downloads_retry_5m: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RETRY_5M")] = Field(
        "downloads.retry.5m", description="downloads that failed once and wait"
    )
    downloads_retry_10m: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RETRY_10M")] = Field(
        "downloads.retry.10m", description="downloads that failed twice and wait"
    )
    downloads_retry_20m: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RETRY_20M")] = Field(
        "downloads.retry.20m", description="downloads that failed three times and wait"
    )
    downloads_retry_40m: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_RETRY_40M")] = Field(
        "downloads.retry.40m", description="downloads that failed four times and wait"
    )
    downloads_dlq: Annotated[str, Env("KAFKA_TOPIC_DOWNLOADS_DLQ")] = Field(
        "downloads.dlq", description="downloads that failed for good, and unreadable tasks"
    )
    user_activity_events: Annotated[str, Env("KAFKA_TOPIC_USER_ACTIVITY_EVENTS")] = Field(
        "user-activity-events", description="what users did"
    )
    user_activity_events_dlq: Annotated[str, Env("KAFKA_TOPIC_USER_ACTIVITY_EVENTS_DLQ")] = Field(
        "user-activity-events.dlq", description="unreadable user activity events"
    )
    sales_events: Annotated[str, Env("KAFKA_TOPIC_SALES_EVENTS")] = Field(
        "sales_events", description="opportunities and projects that changed in a CRM"
    )

    @property
    def downloads_retry(self) -> tuple[str, ...]:
        """The retry topics, the shortest pause first."""
        return (
            self.downloads_retry_5m,
            self.downloads_retry_10m,
            self.downloads_retry_20m,
            self.downloads_retry_40m,
        )

    @property
    def dead_letters(self) -> tuple[str, ...]:
        """Every topic that keeps what could not be used, in the order the data goes."""
        return (
            self.polling_queue_dlq,
            self.file_event_queue_dlq,
            self.events_raw_dlq,
            self.downloads_dlq,
            self.user_activity_events_dlq,
        )


class WarehouseSettings(Section):
    """The relational database that holds rows, metrics and the ledger."""

    database_url: Annotated[SecretStr, Env("DATABASE_URL")] = Field(
        SecretStr(""), description="SQLAlchemy URL, e.g. postgresql://user:password@host/database or sqlite:////path"
    )
    connect_timeout_seconds: Annotated[int, Env("INGEST_DATABASE_CONNECT_TIMEOUT_SECONDS")] = Field(
        10, gt=0, description="how long a connection may take"
    )


class DagsterSettings(Section):
    """Where Dagster keeps its own records."""

    home: Annotated[Path | None, Env("DAGSTER_HOME")] = Field(
        None, description="folder of Dagster's own configuration and, without PostgreSQL, its records"
    )
    postgres_url: Annotated[SecretStr, Env("DAGSTER_POSTGRES_URL")] = Field(
        SecretStr(""), description="PostgreSQL URL of Dagster's storage; empty: SQLite in DAGSTER_HOME"
    )
    webserver_url: Annotated[str, Env("INGEST_WEBSERVER_URL")] = Field(
        "http://127.0.0.1:3000", description="where people reach the Dagster UI, for links"
    )
    webserver_port: Annotated[int, Env("INGEST_WEBSERVER_PORT")] = Field(
        3000, ge=0, le=65535, description="port of the UI that `ingest dev` starts; 0 picks a free one"
    )
    disabled_capabilities: Annotated[
        list[Literal["polling", "file_ingest", "attachments", "user_activity", "crm", "alerts", "retention"]],
        BeforeValidator(as_list),
        Env("INGEST_DISABLED_CAPABILITIES"),
    ] = Field(
        default_factory=list,
        description="capabilities that this host does not load, sensors and schedules included: polling, file_ingest, "
        "attachments, user_activity, crm, alerts, retention",
    )
    asset_owners: Annotated[CommaList, Env("INGEST_ASSET_OWNERS")] = Field(
        default_factory=list, description="owners of all assets in the Dagster UI: mail addresses, or team:name"
    )


class StorageSettings(Section):
    """Where bytes are kept."""

    landing_url: Annotated[str, Env("INGEST_LANDING_URL")] = Field(
        "", description="folder or s3://bucket/prefix of the landing store; empty: landing/ in the state folder"
    )
    quarantine_url: Annotated[str, Env("INGEST_QUARANTINE_URL")] = Field(
        "", description="folder or s3://bucket/prefix of the quarantine; empty: quarantine/ in the state folder"
    )
    s3_endpoint_url: Annotated[str | None, Env("INGEST_S3_ENDPOINT_URL")] = Field(
        None, description="address of an S3 server other than Amazon's"
    )
    s3_region: Annotated[str | None, Env("INGEST_S3_REGION")] = Field(None, description="region of the buckets")
    s3_access_key_id: Annotated[str | None, Env("INGEST_S3_ACCESS_KEY_ID")] = Field(
        None, description="key id; without it boto3's own credential chain is used"
    )
    s3_secret_access_key: Annotated[SecretStr | None, Env("INGEST_S3_SECRET_ACCESS_KEY")] = Field(
        None, description="secret of that key"
    )


class DeltaSettings(Section):
    """How Delta tables are kept healthy. Bytes are bytes on disk."""

    min_small_files: Annotated[int, Env("INGEST_DELTA_MIN_SMALL_FILES")] = Field(
        10, gt=1, description="a partition with fewer small files is left alone"
    )
    target_file_bytes: Annotated[int, Env("INGEST_DELTA_TARGET_FILE_BYTES")] = Field(
        128 * 1024**2, gt=0, description="size up to which files are merged"
    )
    time_limit_seconds: Annotated[int, Env("INGEST_DELTA_TIME_LIMIT_SECONDS")] = Field(
        600, gt=0, description="no further partition is merged after this"
    )
    retention_hours: Annotated[int, Env("INGEST_DELTA_RETENTION_HOURS")] = Field(
        168, ge=168, description="how long files stay that are part of old versions only"
    )
