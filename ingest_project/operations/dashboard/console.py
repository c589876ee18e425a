"""The resources that the pages of the operations console share."""

from __future__ import annotations

from dataclasses import dataclass

from ingest_project.core.settings import Settings
from ingest_project.operations import SystemResources
from ingest_project.operations.monitor import Monitor


@dataclass(frozen=True)
class Console:
    """What the routes of a page module are made of.

    Args:
        monitor: the last sample of every part.
    """

    monitor: Monitor

    @property
    def services(self) -> SystemResources:
        """Database and Kafka clients with short timeouts, shared by all requests."""
        return self.monitor.services

    @property
    def settings(self) -> Settings:
        """Settings of the system."""
        return self.monitor.settings

    @property
    def dagster_url(self) -> str:
        """Address of the Dagster UI, without a slash at its end."""
        return self.settings.dagster.webserver_url.rstrip("/")
