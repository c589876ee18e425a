"""The object store in OneLake or another ADLS Gen2 account. Loads the Azure SDK: import it lazily.

A small object is written by one Put Blob: the service checks its MD5 and makes it visible atomically. A larger one is
appended in parallel to a temporary file in the same folder, each append protected by TLS or else by its MD5; then it is
flushed at its full length (which the service refuses if a byte is missing), compared by length and MD5, and renamed. In
both cases, the local content is verified against its announced SHA-256 before it is visible.

With `may_replace`, both write only if there is no object yet, or over exactly the version that it accepted: the service
evaluates this condition, so that neither of two concurrent writers replaces the other's object.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.storage.blob import ContainerClient
from azure.storage.blob import ContentSettings as BlobContentSettings
from azure.storage.filedatalake import ContentSettings, DataLakeFileClient, FileSystemClient

from ingest_project.core.errors import SourceNotFoundError, StoreUnavailableError
from ingest_project.core.local_files import PIECE_BYTES, LocalFile
from ingest_project.core.logging import get_logger
from ingest_project.platform.azure import (
    OneLakeAddress,
    OneLakeOptions,
    StoreRejectedError,
    parse_address,
    require_folder,
    require_writable,
)
from ingest_project.platform.azure.client import (
    PASSING,
    REFUSALS,
    code_of,
    list_folder,
    map_error,
    onelake_errors,
    open_file,
    shared_container,
    shared_file_system,
)
from ingest_project.platform.object_store.store import (
    ConflictError,
    MayReplace,
    StoredObject,
    StoreOptions,
    content_type_of,
    from_header_values,
    header_values,
    require_safe_name,
    temporary_copy,
    write_conditionally,
)

_TEMPORARY = re.compile(r"(?:.*/)?\.[0-9a-f]{32}\.uploading")
# Statuses of a failed condition (the object exists, or is another version), and of a rename whose source no longer
# exists because the first answer was lost.
CONFLICTS = (404, 409, 412)
# Azure accepts 8 KiB of metadata, names included.
MAX_METADATA_BYTES = 6_144

log = get_logger(__name__)


def open_onelake(url: str, options: StoreOptions) -> OneLakeStore:
    """Return the store in a folder of OneLake or another ADLS Gen2 account.

    Raises:
        SettingsError: the address is malformed.
        ForbiddenPathError: a host or level that cannot be written.
    """
    return OneLakeStore(parse_address(url, options.onelake.endpoint), options.onelake)


class OneLakeStore:
    """An `ObjectStore` in a folder of an account.

    Args:
        root: folder to which names are relative.
        options: connection options; `concurrency` chunks of `chunk_bytes` are in memory at a time, over all threads.
    """

    scratch = Path(tempfile.gettempdir())

    def __init__(self, root: OneLakeAddress, options: OneLakeOptions) -> None:
        require_folder(root)
        self._root = root
        self._chunk_bytes = options.chunk_bytes
        self._options = options
        # TLS detects transmission errors better than an MD5 of each append, which takes as long as all the rest.
        self._append_md5 = not root.account_url.startswith("https:")
        self._appenders = ThreadPoolExecutor(options.concurrency, thread_name_prefix="onelake-append")
        self._slots = threading.BoundedSemaphore(options.concurrency)

    @property
    def _files(self) -> FileSystemClient:
        return shared_file_system(self._root.account_url, self._root.file_system, self._options)

    @property
    def _blobs(self) -> ContainerClient:
        return shared_container(self._root.account_url, self._root.file_system, self._options)

    def location(self, name: str) -> str:
        """Return the https:// address of an object."""
        return self._target(name).url

    def put(
        self,
        name: str,
        content: LocalFile | bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        may_replace: MayReplace | None = None,
    ) -> StoredObject:
        """Store an object; see `ObjectStore.put`.

        With `may_replace`, a large object is looked up first; a small one is sent directly, which fails if one exists.
        """
        target, kept = self._target(name), metadata or {}
        if isinstance(content, bytes):
            retained = self._put_whole(content, target, kept, may_replace)
        else:
            with content:
                if content.size_bytes <= self._chunk_bytes:
                    with self._slots:
                        retained = self._put_whole(content.read_all(), target, kept, may_replace)
                else:
                    retained = self._put_in_chunks(content, target, kept, may_replace)
        size_bytes = len(content) if isinstance(content, bytes) else content.size_bytes
        return retained or StoredObject(target.url, size_bytes, kept)

    def stat(self, name: str) -> StoredObject | None:
        """Return size and metadata; see `ObjectStore.stat`."""
        return self._stat(self._target(name))

    def local_path(self, name: str) -> AbstractContextManager[Path]:
        """Download into a temporary file; see `ObjectStore.local_path`."""
        return temporary_copy(name, lambda path: self._download(self._target(name), path))

    def remove(self, name: str) -> None:
        """Remove an object; see `ObjectStore.remove`."""
        target = self._target(name)
        with _errors(target.url):
            try:
                self._files.get_file_client(target.path).delete_file()
            except ResourceNotFoundError:
                return

    def remove_orphaned(self, older_than: timedelta) -> int:
        """Remove the temporary files of killed writers; see `ObjectStore.remove_orphaned`."""
        oldest = datetime.now(UTC) - older_than
        removed = 0
        try:
            with _errors(self._root.url):
                for listed in list_folder(self._files, self._root):
                    if _TEMPORARY.fullmatch(listed.path) and listed.modified_at < oldest:
                        removed += self._discard(self._files.get_file_client(listed.path))
        except SourceNotFoundError as missing:
            if missing.location != self._root.url:
                raise
        return removed

    def _put_whole(
        self, data: bytes, target: OneLakeAddress, metadata: Mapping[str, str], may_replace: MayReplace | None
    ) -> StoredObject | None:
        """Write a small object; return the present one if it may not be replaced."""

        def write(present: StoredObject | None) -> None:
            with _conflicts(target):
                upload(**({"overwrite": False} if present is None else {"overwrite": True, **_unchanged(present)}))

        def upload(**how: Any) -> None:  # noqa: ANN401 - the SDK's own options
            # The service stores the MD5 with the file, so that readers can check it too.
            self._blobs.get_blob_client(target.path).upload_blob(
                data,
                length=len(data),
                validate_content=True,
                metadata=header_values(metadata, MAX_METADATA_BYTES),
                content_settings=BlobContentSettings(content_type=content_type_of(metadata)),
                **how,
            )

        with _errors(target.url):
            if may_replace is not None:
                return write_conditionally(write, None, lambda: self._stat(target), may_replace)
            upload(overwrite=True)
        return None

    def _put_in_chunks(
        self, file: LocalFile, target: OneLakeAddress, metadata: Mapping[str, str], may_replace: MayReplace | None
    ) -> StoredObject | None:
        """Write a large object through a temporary one; return the present one if it may not be replaced."""
        seen = self._stat(target) if may_replace else None
        if seen and may_replace and not may_replace(seen):
            return seen
        folder, _, _ = target.path.rpartition("/")
        # Use the same folder: creating a file creates missing folders, but a rename does not.
        temporary = self._files.get_file_client(f"{folder}/.{uuid.uuid4().hex}.uploading")
        final_name = f"{target.file_system}/{target.path}"

        def write(present: StoredObject | None) -> None:
            with _conflicts(target):
                temporary.rename_file(final_name, **_unchanged(present))

        def write_over_any(md5: bytes) -> None:
            try:
                temporary.rename_file(final_name)
            except ResourceNotFoundError:
                # The first answer may have been lost, so that the file already has its final name.
                if self._md5_of(target) != md5:
                    raise

        retained: StoredObject | None = None
        try:
            with _errors(target.url):
                md5 = self._fill(temporary, file, target, metadata)
                if may_replace is None:
                    write_over_any(md5)
                else:
                    retained = write_conditionally(write, seen, lambda: self._stat(target), may_replace)
        except BaseException:
            self._discard(temporary)
            raise
        if retained:
            self._discard(temporary)
        return retained

    def _fill(
        self, temporary: DataLakeFileClient, file: LocalFile, target: OneLakeAddress, metadata: Mapping[str, str]
    ) -> bytes:
        """Write the content to the temporary file, and compare the stored length and MD5 with those sent.

        Returns:
            the MD5 of the content.

        Raises:
            StoreUnavailableError: they differ.
        """
        temporary.create_file(
            ContentSettings(content_type=content_type_of(metadata)),
            metadata=header_values(metadata, MAX_METADATA_BYTES),
        )
        md5 = self._append_all(file, temporary)
        temporary.flush_data(file.size_bytes, close=True, content_settings=ContentSettings(content_md5=bytearray(md5)))
        properties = temporary.get_file_properties()
        stored_md5 = properties.content_settings.content_md5
        if properties.size != file.size_bytes or (stored_md5 and bytes(stored_md5) != md5):
            raise StoreUnavailableError(
                target.url, f"{properties.size} bytes arrived of {file.size_bytes}, or their content changed on the way"
            )
        return md5

    def _append_all(self, file: LocalFile, temporary: DataLakeFileClient) -> bytes:
        """Append the file's chunks in parallel, and return the MD5 of everything."""
        md5 = hashlib.md5(usedforsecurity=False)
        running: list[Future[None]] = []
        try:
            for offset in range(0, file.size_bytes, self._chunk_bytes):
                self._slots.acquire()
                running.append(self._start_append(file, temporary, offset, md5))
                for done in [future for future in running if future.done()]:
                    running.remove(done)
                    done.result()
            file.finish()
            for future in running:
                future.result()
        finally:
            # Wait even after an error: no append may be running when the caller removes the temporary file.
            for future in running:
                future.cancel()
            wait(running)
        return md5.digest()

    def _start_append(
        self, file: LocalFile, temporary: DataLakeFileClient, offset: int, md5: hashlib._Hash
    ) -> Future[None]:
        """Read the next chunk and submit it; its slot is released once it is sent."""
        try:
            chunk = file.read(self._chunk_bytes)
            md5.update(chunk)
            future = self._appenders.submit(_append, temporary, chunk, offset, with_md5=self._append_md5)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())
        return future

    def _discard(self, temporary: DataLakeFileClient) -> bool:
        """Remove a temporary file; `remove_orphaned` finds one that cannot be removed now."""
        try:
            temporary.delete_file()
        except ResourceNotFoundError:
            return False
        except AzureError as error:
            log.warning("temporary_file_not_removed", path=temporary.path_name, error_class=type(error).__name__)
            return False
        return True

    def _md5_of(self, target: OneLakeAddress) -> bytes | None:
        try:
            kept = self._blobs.get_blob_client(target.path).get_blob_properties().content_settings.content_md5
        except ResourceNotFoundError:
            return None
        return bytes(kept) if kept else None

    def _stat(self, target: OneLakeAddress) -> StoredObject | None:
        try:
            with _errors(target.url):
                properties = self._blobs.get_blob_client(target.path).get_blob_properties()
        except SourceNotFoundError as missing:
            if missing.location != target.url:
                raise
            return None
        if (properties.metadata or {}).get("hdi_isfolder") == "true":
            return None
        return StoredObject(target.url, properties.size, from_header_values(properties.metadata), properties.etag)

    def _download(self, target: OneLakeAddress, path: Path) -> None:
        with _errors(target.url), closing(open_file(self._files, target)) as stream, path.open("wb") as copy:
            shutil.copyfileobj(stream, copy, PIECE_BYTES)

    def _target(self, name: str) -> OneLakeAddress:
        target = self._root.child(require_safe_name(name))
        require_writable(target)
        return target


def _unchanged(present: StoredObject | None) -> dict[str, Any]:
    """Return the condition that a file still has this version, or still does not exist."""
    if present is None:
        return {"match_condition": MatchConditions.IfMissing}
    return {"etag": present.version, "match_condition": MatchConditions.IfNotModified}


@contextmanager
def _errors(address: str) -> Iterator[None]:
    """Map errors as `onelake_errors` does; but a refused credential counts as a store that is away.

    A missing right is granted in minutes, and until then no file is at fault.
    """
    try:
        with onelake_errors(address):
            yield
    except StoreRejectedError as error:
        if error.status in {None, *REFUSALS} or "Authentication" in error.code:
            raise StoreUnavailableError(address, f"refused ({error.code})") from error
        raise


@contextmanager
def _conflicts(target: OneLakeAddress) -> Iterator[None]:
    try:
        yield
    except HttpResponseError as error:
        # The owner of a lease may keep the file as it is for hours.
        passing = code_of(error).startswith("Lease") or code_of(error).endswith(PASSING)
        if error.status_code in CONFLICTS and not passing:
            raise ConflictError(map_error(error, target.url)) from None
        raise


def _append(temporary: DataLakeFileClient, chunk: bytes, offset: int, *, with_md5: bool) -> None:
    temporary.append_data(chunk, offset, length=len(chunk), validate_content=with_md5)
