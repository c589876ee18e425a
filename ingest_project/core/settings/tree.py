"""The tree of all settings."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ingest_project.core.settings.capabilities import (
    AttachmentSettings,
    ConfiguredSource,
    Credential,
    CrmSettings,
    DownloadSettings,
    EventhouseSettings,
    EventHubsSettings,
    FileIngestSettings,
    OneLakeSettings,
    PollingSettings,
    UserActivitySettings,
)
from ingest_project.core.settings.fields import AsJson, Env, Section
from ingest_project.core.settings.operations import (
    AlertSettings,
    BackpressureSettings,
    MonitorSettings,
    RetentionSettings,
)
from ingest_project.core.settings.services import (
    DagsterSettings,
    DeltaSettings,
    KafkaSettings,
    StorageSettings,
    TopicSettings,
    WarehouseSettings,
)


class RetrySettings(Section):
    """How often and when a job or file is tried again that failed for a reason which may pass."""

    max_attempts: Annotated[int, Env("MAX_RETRIES")] = Field(
        8, gt=0, description="attempts after which a job or file is failed with its reason"
    )
    delay_seconds: Annotated[float, Env("RETRY_DELAY")] = Field(
        5.0, ge=0, description="pause before the second attempt; doubles with each further one"
    )
    max_delay_seconds: Annotated[float, Env("INGEST_MAX_RETRY_DELAY_SECONDS")] = Field(
        600.0, ge=0, description="longest pause between two attempts"
    )
    launch_grace_seconds: Annotated[float, Env("INGEST_LAUNCH_GRACE_SECONDS")] = Field(
        60.0, ge=0, description="how long a run may take to appear after it was asked for"
    )

    def delay(self, attempts: int) -> timedelta:
        """The pause after so many attempts."""
        doubled = self.delay_seconds * 2.0 ** min(max(attempts - 1, 0), 30)
        return timedelta(seconds=min(doubled, self.max_delay_seconds))

    @property
    def launch_grace(self) -> timedelta:
        """How long a run may take to appear after it was asked for."""
        return timedelta(seconds=self.launch_grace_seconds)


class LoggingSettings(Section):
    """How the project logs."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Env("LOG_LEVEL")] = Field(
        "INFO", description="least severe level that is written"
    )
    format: Annotated[Literal["json", "console"], Env("LOG_FORMAT")] = Field(
        "json", description="one JSON object a line, or text for a person"
    )
    file: Annotated[Path | None, Env("LOG_FILE")] = Field(
        None, description="also write the log to this file; its folder is made"
    )


class Settings(Section):
    """Everything that can be set, with its default."""

    environment: Annotated[str, Env("ENVIRONMENT", "APP_ENV")] = Field(
        "development", description="name of this deployment"
    )
    state_dir: Annotated[Path, Env("INGEST_STATE_DIR")] = Field(
        Path(".ingest"), description="folder of the embedded services and local stores"
    )
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    warehouse: WarehouseSettings = WarehouseSettings()
    dagster: DagsterSettings = DagsterSettings()
    storage: StorageSettings = StorageSettings()
    delta: DeltaSettings = DeltaSettings()
    polling: PollingSettings = PollingSettings()
    file_ingest: FileIngestSettings = FileIngestSettings()
    attachments: AttachmentSettings = AttachmentSettings()
    downloads: DownloadSettings = DownloadSettings()
    onelake: OneLakeSettings = OneLakeSettings()
    eventhouse: EventhouseSettings = EventhouseSettings()
    eventhubs: EventHubsSettings = EventHubsSettings()
    user_activity: UserActivitySettings = UserActivitySettings()
    crm: CrmSettings = CrmSettings()
    monitor: MonitorSettings = MonitorSettings()
    retries: RetrySettings = RetrySettings()
    backpressure: BackpressureSettings = BackpressureSettings()
    alerts: AlertSettings = AlertSettings()
    retention: RetentionSettings = RetentionSettings()
    logging: LoggingSettings = LoggingSettings()
    credentials: Annotated[dict[str, Credential], AsJson, Env("INGEST_CREDENTIALS")] = Field(
        default_factory=dict,
        description="stored credentials by the name that jobs and hosts use; in a variable as one JSON object",
    )

    sources: Annotated[dict[str, ConfiguredSource], AsJson, Env("INGEST_SOURCES")] = Field(
        default_factory=dict,
        description="sources by name, those with every_seconds looked at by themselves; in a variable as JSON",
    )

    @property
    def landing_url(self) -> str:
        """Folder or s3:// address of the landing store."""
        return self.storage.landing_url or str(self.state_dir.absolute() / "landing")

    @property
    def quarantine_url(self) -> str:
        """Folder or s3:// address of the quarantine store."""
        return self.storage.quarantine_url or str(self.state_dir.absolute() / "quarantine")

    @property
    def attachments_url(self) -> str:
        """Folder or OneLake address of the attachment store."""
        return self.attachments.store_url or str(self.state_dir.absolute() / "attachments")

    @property
    def attachment_results_url(self) -> str:
        """Folder, s3:// or OneLake address of the Delta table of download results."""
        return self.attachments.results_url or str(self.state_dir.absolute() / "delta" / "attachment_results")

    @property
    def user_activity_url(self) -> str:
        """Folder, s3:// or OneLake address of the Delta table of user activity."""
        return self.user_activity.table_url or str(self.state_dir.absolute() / "delta" / "user_activity_events")

    @property
    def cache_dir(self) -> Path:
        """Folder of files that are being downloaded."""
        return self.state_dir.absolute() / "cache"
