"""Reading a file in OneLake as a stream."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, cast

from ingest_project.onelake.failures import onelake_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from _typeshed import WriteableBuffer
    from azure.storage.filedatalake import FileSystemClient

    from ingest_project.onelake.address import OneLakeAddress

    class Download(Protocol):
        """What the SDK gives for a file being downloaded."""

        read: Callable[[int], bytes]


BUFFER_BYTES = 1024**2


def open_file(files: FileSystemClient, address: OneLakeAddress) -> io.BufferedReader:
    """The file's bytes, to be read in order; the caller closes it. At most `client.READ_BYTES` and a buffer are kept.

    All of it is of one version of the file: replaced meanwhile, it fails rather than mixes two.

    Raises:
        SourceMissing, StoreRefused, StoreUnavailable: when it is opened, and while it is read.
    """
    with onelake_errors(address.url):
        download = files.get_file_client(address.path).download_file()
    return io.BufferedReader(_DownloadedBytes(cast("Download", download), address.url), BUFFER_BYTES)


class _DownloadedBytes(io.RawIOBase):
    """A download of the SDK as a binary file."""

    def __init__(self, download: Download, address: str) -> None:
        self._download = download
        self._address = address

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        with onelake_errors(self._address):
            data = self._download.read(len(view))
        view[: len(data)] = data
        return len(data)
