"""Files on servers that speak FTP or SFTP: what a listing says of them, and which connections a test leaves open."""

from __future__ import annotations

from ingest_project.sources.protocol import Skipped, SourceFile
from ingest_project.sources.server_source import ServerSource

# Their connections are closed at the end of each test, see conftest.py.
OPENED: list[ServerSource] = []


def taken(source: ServerSource, pattern: str = "*") -> dict[str, SourceFile]:
    """The files that are taken, by path."""
    return {found.path: found for found in source.list_files(pattern) if isinstance(found, SourceFile)}


def skipped(source: ServerSource, pattern: str = "*") -> dict[str, Skipped]:
    """What is left out, by path."""
    return {found.path: found for found in source.list_files(pattern) if isinstance(found, Skipped)}
