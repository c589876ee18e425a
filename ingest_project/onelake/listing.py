"""What is in a folder of OneLake, page by page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from ingest_project.onelake.failures import onelake_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure.storage.filedatalake import FileSystemClient

    from ingest_project.onelake.address import OneLakeAddress

# The most that the service gives in one answer.
PAGE = 5_000


class Listed(NamedTuple):
    """One file or folder.

    Args:
        path: in its file system, without a slash at either end; starts with the item's name, or with its GUID where the
            service answers so.
        modified_at: UTC.
        etag: without quotes.
    """

    path: str
    is_folder: bool
    size_bytes: int
    modified_at: datetime
    etag: str


def list_folder(
    files: FileSystemClient, folder: OneLakeAddress, *, recursive: bool = True, page: int = PAGE
) -> Iterator[Listed]:
    """What is below a folder, as it is read; one page is in memory at a time.

    Raises:
        SourceMissing, StoreRefused, StoreUnavailable: at the first page or at any later one.
    """
    with onelake_errors(folder.url):
        for found in files.get_paths(folder.path or None, recursive=recursive, max_results=page):
            # The SDK gives times in UTC that do not say so.
            modified_at = found.last_modified.replace(tzinfo=UTC)
            size_bytes = found.content_length or 0
            yield Listed(found.name, bool(found.is_directory), size_bytes, modified_at, (found.etag or "").strip('"'))
