"""The attachment store in OneLake or another ADLS Gen2 account.

A small file is written whole by one Put Blob: the service checks its MD5, and makes the file visible complete or not at
all. A larger one is appended in parallel to a temporary name beside its final one, each append checked by its MD5,
flushed at its full length (which the service refuses unless every byte before it is there), compared by length and the
MD5 that was sent for the whole, and renamed. In both, what was read here is held to the announced SHA-256 before it is
visible; the service itself knows no SHA-256, so that one is kept in the metadata, for `stat` and for other readers.

Both write only where there is no file yet, or over the very version that was seen to be the same attachment's: the
service decides, so that of two writers at once none replaces the other one's file.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ingest_project.attachments.storage.store import (
    SHA256,
    StoredAttachment,
    from_header_values,
    header_values,
    kept_metadata,
    require_owner,
    require_plain,
    require_portable,
)
from ingest_project.core.errors import SourceNotFoundError, StoreUnavailableError
from ingest_project.core.logging import get_logger
from ingest_project.platform.azure.address import OneLakeAddress, require_folder, require_writable
from ingest_project.platform.azure.client import list_folder, open_container, open_file, open_file_system
from ingest_project.platform.azure.errors import onelake_errors
from ingest_project.platform.azure.identity import OneLakeOptions
from ingest_project.platform.object_store.files import FileFingerprint, LocalFile

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties
    from azure.storage.filedatalake import DataLakeFileClient

_TEMPORARY = re.compile(r"(?:.*/)?\.[0-9a-f]{32}\.uploading")
# What the service answers where a condition does not hold: exists already, or is another version; and a rename whose
# source is gone, because its first answer was lost.
CONFLICTS = (404, 409, 412)
MOST_CONFLICTS = 10
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
        seal: FileFingerprint | None = None,  # noqa: ARG002 - the file is read to be sent, and checked on the way
    ) -> StoredAttachment:
        """Store a local file; see `attachments.AttachmentStore.put`.

        A file of the same content and metadata is left alone. A large one is asked for first; a small one is sent at
        once, which fails where there is one.
        """
        target = self._target(require_portable(destination))
        kept = kept_metadata(metadata, sha256)
        stored = StoredAttachment(target.url, size_bytes, sha256)
        with LocalFile(local_path, size_bytes, sha256) as file:
            if size_bytes <= self._whole_bytes:
                self._put_whole(file, target, kept)
            else:
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
            raise SourceNotFoundError(target.url)
        return from_header_values(properties.metadata)

    def open(self, destination: str) -> BinaryIO:
        """The bytes; see `attachments.AttachmentStore.open`."""
        return open_file(self._files, self._target(destination))

    def remove_orphaned(self, older_than: timedelta, below: str = "") -> int:
        """Remove what killed uploaders left; see `attachments.AttachmentStore.remove_orphaned`."""
        folder = self._root.child(below) if below else self._root
        oldest = datetime.now(UTC) - older_than
        removed = 0
        try:
            for listed in list_folder(self._files, folder):
                if _TEMPORARY.fullmatch(listed.path) and listed.modified_at < oldest:
                    removed += self._discard(self._files.get_file_client(listed.path))
        except SourceNotFoundError as missing:
            if missing.location != folder.url:
                raise
        return removed

    def close(self) -> None:
        """Let go of connections and threads."""
        self._appenders.shutdown(cancel_futures=True)
        self._files.close()
        self._blobs.close()

    def _put_whole(self, file: LocalFile, target: OneLakeAddress, kept: Mapping[str, str]) -> None:
        with self._room:
            data = file.read_all()
            self._put_in_place(file, target, kept, None, lambda condition: self._upload(data, target, kept, condition))

    def _put_in_place(
        self,
        file: LocalFile,
        target: OneLakeAddress,
        kept: Mapping[str, str],
        present: BlobProperties | None,
        put: Callable[[Mapping[str, Any]], object],
    ) -> bool:
        """Give the file its final name, over nothing but what was seen to be there.

        Args:
            file: the local file.
            target: its final name.
            kept: its metadata.
            present: what is there, of the same attachment; None: nothing is expected.
            put: writes under a condition.

        Returns:
            whether this call did it; otherwise the same file is there already.
        """
        from azure.core.exceptions import HttpResponseError  # noqa: PLC0415 - loaded with the client

        for _ in range(MOST_CONFLICTS):
            with onelake_errors(target.url):
                try:
                    put(_still(present))
                except HttpResponseError as error:
                    # Somebody else was quicker, or the answer of a first attempt was lost.
                    present = self._properties(target) if error.status_code in CONFLICTS else None
                    if present is None:
                        raise
                else:
                    return True
            if self._is_stored(target, present, file, kept):
                return False
        raise StoreUnavailableError(target.url, "other writers were in the way each time")

    def _upload(
        self, data: bytes, target: OneLakeAddress, kept: Mapping[str, str], condition: Mapping[str, Any]
    ) -> None:
        from azure.storage.blob import ContentSettings  # noqa: PLC0415 - loaded with the client

        # The service keeps the MD5 it was sent, so that readers can check the file too.
        self._blobs.get_blob_client(target.path).upload_blob(
            data,
            length=len(data),
            overwrite="etag" in condition,
            validate_content=True,
            metadata=header_values(kept),
            content_settings=ContentSettings(content_type=_content_type(kept)),
            **(condition if "etag" in condition else {}),
        )

    def _put_in_chunks(self, file: LocalFile, target: OneLakeAddress, kept: Mapping[str, str]) -> None:
        from azure.storage.filedatalake import ContentSettings  # noqa: PLC0415 - loaded with the client

        present = self._properties(target)
        if present is not None and self._is_stored(target, present, file, kept):
            return
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
            name = f"{target.file_system}/{target.path}"
            if not self._put_in_place(file, target, kept, present, lambda is_as: temporary.rename_file(name, **is_as)):
                self._discard(temporary)
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

    def _is_stored(
        self, target: OneLakeAddress, present: BlobProperties, file: LocalFile, kept: Mapping[str, str]
    ) -> bool:
        """Whether the file that is there is this one, with its metadata.

        Raises:
            PathTakenError: it is another attachment's.
        """
        there = from_header_values(present.metadata)
        require_owner(target.path, there, from_header_values(header_values(kept)))
        return present.size == file.size_bytes and there == dict(kept)

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

    def _properties(self, target: OneLakeAddress) -> BlobProperties | None:
        try:
            with onelake_errors(target.url):
                properties = self._blobs.get_blob_client(target.path).get_blob_properties()
        except SourceNotFoundError as missing:
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


def _still(present: BlobProperties | None) -> dict[str, Any]:
    """The condition that a file is still the version that was looked at, or that there is still none."""
    from azure.core import MatchConditions  # noqa: PLC0415 - loaded with the client

    if present is None:
        return {"match_condition": MatchConditions.IfMissing}
    return {"etag": present.etag, "match_condition": MatchConditions.IfNotModified}


def _append(temporary: DataLakeFileClient, chunk: bytes, offset: int) -> None:
    temporary.append_data(chunk, offset, length=len(chunk), validate_content=True)


def _require_stored(temporary: DataLakeFileClient, target: OneLakeAddress, size_bytes: int, md5: bytes) -> None:
    """Compare what the service has with what was sent.

    Raises:
        StoreUnavailableError: not the same.
    """
    properties = temporary.get_file_properties()
    kept_md5 = properties.content_settings.content_md5
    if properties.size != size_bytes or (kept_md5 and bytes(kept_md5) != md5):
        raise StoreUnavailableError(
            target.url, f"{properties.size} bytes arrived of {size_bytes}, or their content changed on the way"
        )


def _content_type(kept: Mapping[str, str]) -> str:
    """As it was put with the file, if a header can carry it; no guess from the name, which strangers choose."""
    declared = kept.get("content_type", "")
    return declared if _CONTENT_TYPE.fullmatch(declared) else "application/octet-stream"
