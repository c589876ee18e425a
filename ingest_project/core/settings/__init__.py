"""One typed tree of settings, and the only place that reads the environment.

A value comes from the first of these that has it: an environment variable, the `.env` file, `config.yaml`, the services
that `ingest dev` started on this machine, the default. Everything is checked at once, and an unknown name is an error
that proposes the nearest right one: a misspelt setting must not silently leave the default in force.
"""

from __future__ import annotations

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
from ingest_project.core.settings.loading import (
    LoadedSettings,
    Origin,
    Setting,
    current_settings,
    embedded_services,
    load_settings,
)
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
from ingest_project.core.settings.tree import LoggingSettings, RetrySettings, Settings

__all__ = [
    "AlertSettings",
    "AttachmentSettings",
    "BackpressureSettings",
    "ConfiguredSource",
    "Credential",
    "CrmSettings",
    "DagsterSettings",
    "DeltaSettings",
    "DownloadSettings",
    "EventHubsSettings",
    "EventhouseSettings",
    "FileIngestSettings",
    "KafkaSettings",
    "LoadedSettings",
    "LoggingSettings",
    "MonitorSettings",
    "OneLakeSettings",
    "Origin",
    "PollingSettings",
    "RetentionSettings",
    "RetrySettings",
    "Setting",
    "Settings",
    "StorageSettings",
    "TopicSettings",
    "UserActivitySettings",
    "WarehouseSettings",
    "current_settings",
    "embedded_services",
    "load_settings",
]
