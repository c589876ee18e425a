"""The attachment store in OneLake or another ADLS Gen2 account.

A small file is written whole by one Put Blob: the service checks its MD5, and makes the file visible complete or not at
all. A larger one is appended in parallel to a temporary name beside its final one, each append checked by its MD5,
flushed at its full length (which the service refuses unless every byte before it is there), compared by length and the
MD5 that was sent for the whole, and renamed. In both, what was read here is held to the announced SHA-256 before it is
visible; the service itself knows no SHA-256, so that one is kept in the metadata, for `stat` and for other readers.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO

from ingest_project.errors import SourceMissing, StoreUnavailable
from ingest_project.logs import get_logger
from ingest_project.onelake.address import OneLakeAddress, require_folder, require_writable
from ingest_project.onelake.client import open_container, open_file_system
from ingest_project.onelake.failures import onelake_errors
from ingest_project.onelake.listing import list_folder
from ingest_project.onelake.reading import open_file
from ingest_project.stores.attachment_metadata import SHA256, from_header_values, header_values, kept_metadata
from ingest_project.stores.attachment_names import require_plain
from ingest_project.stores.attachments import StoredAttachment
from ingest_project.stores.local_file import LocalFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from pathlib import Path

    from azure.storage.blob import BlobProperties
    from azure.storage.filedatalake import DataLakeFileClient

    from ingest_project.onelake.options import OneLakeOptions
    from ingest_project.web.seals import FileSeal

_TEMPORARY = re.compile(r"(?:.*/)?\.[0-9a-f]{32}\.uploading")
_CONTENT_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}", re.ASCII)

log = get_logger(__name__)


class OneLakeAttachments:
    """See `attachments.AttachmentStore`.

    Args:
        root: folder that destinations are relative to.
        options: how to reach it; `concurrency` chunks of `chunk_bytes` are in memory at a time, over all threads.
        whole_files: write files of up to one chunk by one Put Blob. Without it they take four requests, like large
            ones, through the DFS endpoint alone.
    """

    def __init__(self, root: OneLakeAddress, options: OneLakeOptions, *, whole_files: bool = True) -> None:
        require_folder(root)
        self._root = root
        self._chunk_bytes = options.chunk_bytes
        self._whole_bytes = options.chunk_bytes if whole_files else -1
        self._files = open_file_system(root, options)
        self._blobs = open_container(root, options)
        self._appenders = ThreadPoolExecutor(options.concurrency, thread_name_prefix="onelake-append")
        self._room = threading.BoundedSemaphore(options.concurrency)

    def put(  # noqa: PLR0913 - each is passed by name
        self,
        local_path: Path,
        destination: str,
        *,
        size_bytes: int,
        sha256: str,
        metadata: Mapping[str, str],
        seal: FileSeal | None = None,  # noqa: ARG002 - the file is read to be sent, and checked on the way
    ) -> StoredAttachment:
        """Store a local file; see `attachments.AttachmentStore.put`.

        A small file stored before is written again, which is the same state and cheaper than asking first; a larger one
        of the same content and metadata is left alone.
        """
        target = self._target(destination)
        kept = kept_metadata(metadata, sha256)
        stored = StoredAttachment(target.url, size_bytes, sha256)
        with LocalFile(local_path, size_bytes, sha256) as file:
            if size_bytes <= self._whole_bytes:
                self._put_whole(file, target, kept)
            elif size_bytes <= self._chunk_bytes or self._known(target) != (stored, kept):
                self._put_in_chunks(file, target, kept)
        return stored

    def stat(self, destination: str) -> StoredAttachment | None:
        """What is stored; see `attachments.AttachmentStore.stat`. A file put by others is read to know its digest."""
        target = self._target(destination)
        if (properties := self._properties(target)) is None:
            return None
        sha256 = from_header_values(properties.metadata).get(SHA256) or self._digest(target)
        return StoredAttachment(target.url, properties.size, sha256)

    def metadata(self, destination: str) -> Mapping[str, str]:
        """What was put with the file; see `attachments.AttachmentStore.metadata`."""
        target = self._target(destination)
        if (properties := self._properties(target)) is None:
            raise SourceMissing(target.url)
        return from_header_values(properties.metadata)

    def open(self, destination: str) -> BinaryIO:
        """The bytes; see `attachments.AttachmentStore.open`."""
        return open_file(self._files, self._target(destination))

    def remove_abandoned(self, older_than: timedelta, below: str = "") -> int:
        """Remove what killed uploaders left; see `attachments.AttachmentStore.remove_abandoned`."""
        folder = self._root.child(below) if below else self._root
        oldest = datetime.now(UTC) - older_than
        removed = 0
        try:
            for listed in list_folder(self._files, folder):
                if _TEMPORARY.fullmatch(listed.path) and listed.modified_at < oldest:
                    removed += self._discard(self._files.get_file_client(listed.path))
        except SourceMissing as missing:
            if missing.location != folder.url:
                raise
        return removed

    def close(self) -> None:
        """Let go of connections and threads."""
        self._appenders.shutdown(cancel_futures=True)
        self._files.close()
        self._blobs.close()

    def _put_whole(self, file: LocalFile, target: OneLakeAddress, kept: Mapping[str, str]) -> None:
        from azure.storage.blob import ContentSettings  # noqa: PLC0415 - loaded with the client

        with self._room:
            data = file.read_all()
            with onelake_errors(target.url):
                # The service keeps the MD5 it was sent, so that readers can check the file too.
                self._blobs.get_blob_client(target.path).upload_blob(
                    data,
                    length=len(data),
                    overwrite=True,
                    validate_content=True,
                    metadata=header_values(kept),
                    content_settings=ContentSettings(content_type=_content_type(kept)),
                )

    def _put_in_chunks(self, file: LocalFile, target: OneLakeAddress, kept: Mapping[str, str]) -> None:
        from azure.storage.filedatalake import ContentSettings  # noqa: PLC0415 - loaded with the client

        folder, _, _ = target.path.rpartition("/")
        # In the same folder: a rename does not make folders, and creating a file does.
        temporary = self._files.get_file_client(f"{folder}/.{uuid.uuid4().hex}.uploading")
        try:
            with onelake_errors(target.url):
                temporary.create_file(ContentSettings(content_type=_content_type(kept)), metadata=header_values(kept))
                md5 = self._append_all(file, temporary)
                temporary.flush_data(
                    file.size_bytes, close=True, content_settings=ContentSettings(content_md5=bytearray(md5))
                )
                _require_stored(temporary, target, file.size_bytes, md5)
                self._rename(temporary, target, file)
        except BaseException:
            self._discard(temporary)
            raise

    def _append_all(self, file: LocalFile, temporary: DataLakeFileClient) -> bytes:
        """Append the file's chunks in parallel, each checked by its MD5, and return the MD5 of everything."""
        md5 = hashlib.md5(usedforsecurity=False)
        running: list[Future[None]] = []
        try:
            for offset in range(0, file.size_bytes, self._chunk_bytes):
                self._room.acquire()
                running.append(self._start_append(file, temporary, offset, md5))
                for done in [future for future in running if future.done()]:
                    running.remove(done)
                    done.result()
            file.finish()
            for future in running:
                future.result()
        finally:
            # Whatever happened: nothing is appended any more once the temporary file may be removed.
            for future in running:
                future.cancel()
            wait(running)
        return md5.digest()

    def _start_append(
        self, file: LocalFile, temporary: DataLakeFileClient, offset: int, md5: hashlib._Hash
    ) -> Future[None]:
        """Read the next chunk and hand it over; the room it takes is free again when it is sent."""
        try:
            chunk = file.read(self._chunk_bytes)
            md5.update(chunk)
            future = self._appenders.submit(_append, temporary, chunk, offset)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def _rename(self, temporary: DataLakeFileClient, target: OneLakeAddress, file: LocalFile) -> None:
        from azure.core.exceptions import ResourceNotFoundError  # noqa: PLC0415 - loaded with the client

        try:
            temporary.rename_file(f"{target.file_system}/{target.path}")
        except ResourceNotFoundError:
            # The answer of a first attempt may have been lost: then the file has its final name already.
            if (known := self._known(target)) is None or known[0][1:] != (file.size_bytes, file.sha256):
                raise

    def _discard(self, temporary: DataLakeFileClient) -> bool:
        """Remove a temporary file; one that cannot be removed now is found by the next sweep."""
        from azure.core.exceptions import AzureError, ResourceNotFoundError  # noqa: PLC0415 - loaded with the client

        try:
            temporary.delete_file()
        except ResourceNotFoundError:
            return False
        except AzureError as error:
            log.warning("temporary_file_left", path=temporary.path_name, error_class=type(error).__name__)
            return False
        return True

    def _known(self, target: OneLakeAddress) -> tuple[StoredAttachment, dict[str, str]] | None:
        """What is stored by us under a name, without reading it."""
        if (properties := self._properties(target)) is None:
            return None
        kept = from_header_values(properties.metadata)
        return StoredAttachment(target.url, properties.size, kept.get(SHA256, "")), kept

    def _properties(self, target: OneLakeAddress) -> BlobProperties | None:
        try:
            with onelake_errors(target.url):
                properties = self._blobs.get_blob_client(target.path).get_blob_properties()
        except SourceMissing as missing:
            if missing.location != target.url:
                raise
            return None
        is_folder = (properties.metadata or {}).get("hdi_isfolder") == "true"
        return None if is_folder else properties

    def _digest(self, target: OneLakeAddress) -> str:
        with contextlib.closing(open_file(self._files, target)) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _target(self, destination: str) -> OneLakeAddress:
        target = self._root.child(require_plain(destination))
        require_writable(target)
        return target


def _append(temporary: DataLakeFileClient, chunk: bytes, offset: int) -> None:
    temporary.append_data(chunk, offset, length=len(chunk), validate_content=True)


def _require_stored(temporary: DataLakeFileClient, target: OneLakeAddress, size_bytes: int, md5: bytes) -> None:
    """Compare what the service has with what was sent.

    Raises:
        StoreUnavailable: not the same.
    """
    properties = temporary.get_file_properties()
    kept_md5 = properties.content_settings.content_md5
    if properties.size != size_bytes or (kept_md5 and bytes(kept_md5) != md5):
        raise StoreUnavailable(
            target.url, f"{properties.size} bytes arrived of {size_bytes}, or their content changed on the way"
        )


def _content_type(kept: Mapping[str, str]) -> str:
    """As it was put with the file, if a header can carry it; no guess from the name, which strangers choose."""
    declared = kept.get("content_type", "")
    return declared if _CONTENT_TYPE.fullmatch(declared) else "application/octet-stream"
