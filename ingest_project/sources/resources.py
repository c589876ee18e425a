"""What reads from sources."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ingest_project.platform.runtime import Runtime
from ingest_project.sources.clients import source_clients
from ingest_project.sources.context import Clients
from ingest_project.sources.protocol import Source
from ingest_project.sources.registry import open_source


class SourceResources(Runtime):
    """The sources and the clients they share."""

    @cached_property
    def source_clients(self) -> Clients:
        """What sources talk through."""
        return source_clients(self.settings)

    def open_source(self, source_config: Mapping[str, Any]) -> Source:
        """The source that a job's or file event's `source_config` names. Nothing is connected to yet.

        Raises:
            PermanentError: it cannot be understood, or names what is not configured or not allowed.
        """
        return open_source(source_config, self.settings.polling, self.settings.credentials, self.source_clients)
