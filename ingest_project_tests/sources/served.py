"""Files on FTP and SFTP servers: their listings, and the connections that a test leaves open."""

from __future__ import annotations

from collections.abc import Mapping

from ingest_project.core.settings import Credential, PollingSettings, Settings
from ingest_project.sources import Skipped, SourceFile
from ingest_project.sources.file_server import FileServerSource
from ingest_project.sources.registry import SourceContext

# Their connections are closed at the end of each test, see conftest.py.
OPENED: list[FileServerSource] = []


def context_of(
    polling: PollingSettings | None = None, credentials: Mapping[str, Credential] | None = None
) -> SourceContext:
    """The context of a process with these settings."""
    return SourceContext(
        Settings.model_validate({"polling": polling or PollingSettings(), "credentials": credentials or {}})
    )


def taken(source: FileServerSource, pattern: str = "*") -> dict[str, SourceFile]:
    """The files that are taken, by path."""
    return {found.path: found for found in source.list_files(pattern) if isinstance(found, SourceFile)}


def skipped(source: FileServerSource, pattern: str = "*") -> dict[str, Skipped]:
    """What is left out, by path."""
    return {found.path: found for found in source.list_files(pattern) if isinstance(found, Skipped)}
