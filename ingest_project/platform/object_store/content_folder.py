"""The landing store in a local folder: a temporary name first, then one rename."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ingest_project.core.errors import SourceNotFoundError
from ingest_project.platform.object_store.content_store import Digest, Landed, chunks_of, object_name
from ingest_project.platform.object_store.files import write_all
from ingest_project.platform.object_store.locations import folder_errors

# Left by a process that was killed while it copied; nobody copies for a day.
STALE_SECONDS = 24 * 3600
# Quarantined files are further names of the same bytes: nobody must change them in place.
READ_ONLY = 0o400


class FolderLanding:
    """See `landing.LandingStore`."""

    def __init__(self, folder: Path, *, sync: bool = False) -> None:
        self._folder = folder.absolute()
        self._incoming = self._folder / "incoming"
        self._sync = sync
        self._numbers = itertools.count()
        with folder_errors(self._folder):
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._remove_stale()

    def land(
        self,
        stream: BinaryIO | Iterator[bytes],
        *,
        expected_size: int | None = None,
        expected_md5: str | None = None,
        location: str = "The file",
    ) -> Landed:
        """Copy a stream to its end; see `landing.LandingStore.land`."""
        digest = Digest(expected_size, expected_md5, location)
        temporary = f"{self._incoming}/{os.getpid()}-{next(self._numbers)}-{time.time_ns()}"
        try:
            self._copy(chunks_of(stream), temporary, digest)
            sha256 = digest.finish()
            path = self._keep(temporary, sha256, digest.size_bytes)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 - strings: a thousand small files a batch pass here
            raise
        return Landed(sha256, digest.size_bytes, path)

    def find(self, sha256: str) -> Landed | None:
        """What was landed before; see `landing.LandingStore.find`."""
        path = self._folder / object_name(sha256)
        with folder_errors(self._folder):
            try:
                return Landed(sha256, path.stat().st_size, str(path), landed_before=True)
            except FileNotFoundError:
                return None

    def open(self, sha256: str) -> BinaryIO:
        """The bytes; see `landing.LandingStore.open`."""
        path = self._folder / object_name(sha256)
        try:
            with folder_errors(self._folder):
                return path.open("rb")
        except Exception as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise SourceNotFoundError(str(path)) from error
            raise

    def remove(self, sha256: str) -> None:
        """Let go of a content; see `landing.LandingStore.remove`."""
        with folder_errors(self._folder):
            (self._folder / object_name(sha256)).unlink(missing_ok=True)

    @contextmanager
    def local_path(self, sha256: str) -> Iterator[Path]:
        """The file itself."""
        path = self._folder / object_name(sha256)
        if not path.exists():
            raise SourceNotFoundError(str(path))
        yield path

    def _copy(self, chunks: Iterator[bytes], temporary: str, digest: Digest) -> None:
        with folder_errors(self._folder):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READ_ONLY)
        try:
            # What goes wrong while the source is read is the source's failure, not the store's.
            for chunk in chunks:
                digest.add(chunk)
                with folder_errors(self._folder):
                    write_all(descriptor, chunk)
            if self._sync:
                with folder_errors(self._folder):
                    os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _keep(self, temporary: str, sha256: str, size_bytes: int) -> str:
        path = f"{self._folder}/{object_name(sha256)}"
        with folder_errors(self._folder):
            try:
                # Of another size: a power cut left it, and it is written anew.
                if os.stat(path).st_size == size_bytes:  # noqa: PTH116 - see above
                    os.unlink(temporary)  # noqa: PTH108
                    return path
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            os.replace(temporary, path)  # noqa: PTH105
        return path

    def _remove_stale(self) -> None:
        oldest = time.time() - STALE_SECONDS
        for entry in os.scandir(self._incoming):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)  # noqa: PTH108
