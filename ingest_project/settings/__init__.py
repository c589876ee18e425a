"""One typed tree of settings, and the only place that reads the environment.

A value comes from the first of these that has it: an environment variable, the `.env` file, `config.yaml`, the services
that `ingest dev` started on this machine, the default. Everything is checked at once, and an unknown name is an error
that proposes the nearest right one: a misspelt setting must not silently leave the default in force.
"""

from __future__ import annotations

from ingest_project.settings.capabilities import FileIngestSettings, PollingSettings
from ingest_project.settings.connections import (
    DagsterSettings,
    KafkaSettings,
    StorageSettings,
    TopicSettings,
    WarehouseSettings,
)
from ingest_project.settings.inventory import LoadedSettings, Origin, Setting
from ingest_project.settings.loading import current_settings, embedded_services, load_settings
from ingest_project.settings.tree import LoggingSettings, RetrySettings, Settings

__all__ = [
    "DagsterSettings",
    "FileIngestSettings",
    "KafkaSettings",
    "LoadedSettings",
    "LoggingSettings",
    "Origin",
    "PollingSettings",
    "RetrySettings",
    "Setting",
    "Settings",
    "StorageSettings",
    "TopicSettings",
    "WarehouseSettings",
    "current_settings",
    "embedded_services",
    "load_settings",
]
