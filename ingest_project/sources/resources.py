"""Resources of capabilities that read sources: shared clients, and the datasets of files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ingest_project.platform.runtime import Runtime
from ingest_project.readers.datasets import Declarations, load_declarations
from ingest_project.sources import Source
from ingest_project.sources.registry import SourceContext, open_source, require_known_options


class SourceResources(Runtime):
    """Opens sources that share their clients."""

    @cached_property
    def source_context(self) -> SourceContext:
        """Return the settings and shared clients of sources."""
        return SourceContext(self.settings)

    @cached_property
    def datasets(self) -> Declarations:
        """Return the declared datasets, and the shipped one."""
        return load_declarations(self.settings)

    def open_source(self, source_config: Mapping[str, Any]) -> Source:
        """Create the source for a job's or file event's `source_config`, see `registry.open_source`."""
        return open_source(source_config, self.source_context)

    def open_listed(self, source_config: Mapping[str, Any]) -> Source:
        """Make the source that a job or a setting wants listed, which may have known options only.

        Raises:
            PermanentError: see `registry.open_source` and `registry.require_known_options`.
        """
        source = self.open_source(source_config)
        require_known_options(source_config)
        return source
