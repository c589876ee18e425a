"""A file that is being downloaded, under a temporary name, with the version that a later attempt resumes.

`<name>.part` grows while the download runs and takes its final name at the end, so that a file under its final name is
whole. Next to a large one, `<name>.part.json` records its address and version; a later attempt, also
after this process was killed, resumes there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from ingest_project.core.errors import DownloadFailedError, StoreUnavailableError
from ingest_project.core.local_files import FileFingerprint, write_all
from ingest_project.platform.http import printable_url
from ingest_project.platform.http.file_names import SNIFFED_BYTES
from ingest_project.platform.http.response import WebResponse, codings_in, parse_date

# Downloading less again is cheaper than remembering it.
WORTH_RESUMING_BYTES = 1024**2
_NOTED_AT_ONCE_BYTES = 8 * 1024**2
_READ_BYTES = 1024**2
_SETTLED = timedelta(minutes=1)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True)
class Version:
    """Address and version of the downloaded bytes.

    Args:
        url_sha256: of the address, which itself may be a secret.
        validator: strong ETag or Last-Modified, for If-Range; None when this version cannot be continued.
        size_bytes: of the whole file; None when the server did not declare it.
    """

    url_sha256: str
    validator: str | None = None
    size_bytes: int | None = None


class PartFile:
    """A file that is being downloaded. Use as a context manager: what is not worth keeping is removed at its end.

    Args:
        to: final path; its folder is made.
        url: what is downloaded.
        algorithm: of the checksum to compute in addition to SHA-256.
    """

    def __init__(self, to: Path, url: str, algorithm: str = "sha256") -> None:
        self._to = str(to)
        self._path = f"{self._to}.part"
        self._note = f"{self._to}.part.json"
        self._url = url
        self._version = Version(hashlib.sha256(url.encode("utf-8", "replace")).hexdigest())
        self._algorithm = algorithm
        self._noted = False
        self.resumed = False
        # The encoding that what has arrived may still be in.
        self.undecoded: str | None = None
        self._reset()
        self._descriptor = -1

    def __enter__(self) -> Self:
        with self._folder_errors():
            self._descriptor = self._opened()
            try:
                self._resume_earlier()
            except BaseException:
                os.close(self._descriptor)
                raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        worth_keeping = isinstance(error, DownloadFailedError) and self._resumable and self.size >= WORTH_RESUMING_BYTES
        with contextlib.suppress(OSError):
            if worth_keeping:
                self._write_note()
            elif self._descriptor >= 0:
                self._remove()
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def range_headers(self) -> dict[str, str]:
        """Headers that request the rest; empty where the whole file is requested."""
        if not self.size or not self._resumable:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._version.validator or ""}

    def continued_by(self, answer: WebResponse) -> bool:
        """Return True if the body of a 206 is exactly the next part of the same version."""
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != self.size or codings_in(answer.headers.get("Content-Encoding")):
            return False
        etag = answer.headers.get("ETag")
        total = None if found[3] == "*" else int(found[3])
        same_version = (
            not etag or etag == self._version.validator or not (self._version.validator or "").startswith('"')
        )
        self.resumed = same_version and self._version.size_bytes in (None, total)
        return self.resumed

    def start_over(self, answer: WebResponse | None = None) -> None:
        """Discard what has arrived; the body of this response, a 200, is written instead."""
        if self.size:
            with self._folder_errors():
                os.ftruncate(self._descriptor, 0)
                os.lseek(self._descriptor, 0, os.SEEK_SET)
                self._forget_note()
        self._reset()
        self.resumed = False
        self._version = Version(self._version.url_sha256)
        if answer is not None and codings_in(answer.headers.get("Content-Encoding")) is None:
            self._version = Version(self._version.url_sha256, _validator(answer.headers), answer.content_length)
        if self._resumable and (self._version.size_bytes or 0) >= _NOTED_AT_ONCE_BYTES:
            with self._folder_errors():
                self._write_note()

    def write(self, data: bytes) -> None:
        """Append, and update the checksums."""
        self._digests(data)
        with self._folder_errors():
            write_all(self._descriptor, data)

    def publish(self) -> FileFingerprint:
        """Rename the file to its final name, replacing an earlier one; return the fingerprint of the hashed bytes."""
        with self._folder_errors():
            fingerprint = FileFingerprint.of(os.fstat(self._descriptor))
            os.replace(self._path, self._to)  # noqa: PTH105 - strings: thousands of small files pass here
            self._forget_note()
            os.close(self._descriptor)
        self._descriptor = -1
        return fingerprint

    @property
    def sha256(self) -> str:
        """SHA-256 of what has arrived, in hexadecimal."""
        return self._sha256.hexdigest()

    @property
    def checksum(self) -> str:
        """The requested checksum of what has arrived, in hexadecimal."""
        return self._other.hexdigest() if self._other else self.sha256

    @property
    def missing_bytes(self) -> int:
        """Bytes still missing from the declared size; zero when none was declared."""
        return (self._version.size_bytes or self.size) - self.size

    @property
    def _resumable(self) -> bool:
        return self._version.validator is not None

    def _digests(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._other:
            self._other.update(data)
        if len(self.head) < SNIFFED_BYTES:
            self.head += data[: SNIFFED_BYTES - len(self.head)]
        self.size += len(data)

    def _reset(self) -> None:
        self.size = 0
        self.head = b""
        self._sha256 = hashlib.sha256()
        self._other = None if self._algorithm == "sha256" else hashlib.new(self._algorithm, usedforsecurity=False)

    def _opened(self) -> int:
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self._to), exist_ok=True)  # noqa: PTH103, PTH120 - strings, as above
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):  # noqa: PTH116 - strings, as above
                    return descriptor
                # The lock's holder has just given this file its final name: ours is a new one.
            except BlockingIOError:
                os.close(descriptor)
                reason = "another download to the same file is under way"
                raise DownloadFailedError(printable_url(self._url), reason) from None
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def _resume_earlier(self) -> None:
        """Resume the part of an earlier attempt if it is of this address; drop it otherwise."""
        if not os.fstat(self._descriptor).st_size:
            return
        version = self._read_note()
        if version is None or version.url_sha256 != self._version.url_sha256 or not version.validator:
            os.ftruncate(self._descriptor, 0)
            self._forget_note()
            return
        self._version = version
        while data := os.read(self._descriptor, _READ_BYTES):
            self._digests(data)

    def _read_note(self) -> Version | None:
        self._noted = True
        try:
            with open(self._note, encoding="utf-8") as file:  # noqa: PTH123 - strings, as above
                return Version(**json.load(file))
        except FileNotFoundError:
            self._noted = False
        except (OSError, ValueError, TypeError):
            pass
        return None

    def _write_note(self) -> None:
        with open(self._note, "w", encoding="utf-8") as file:  # noqa: PTH123 - strings, as above
            json.dump(asdict(self._version), file)
        self._noted = True

    def _forget_note(self) -> None:
        if self._noted:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._note)  # noqa: PTH108 - strings, as above
            self._noted = False

    def _remove(self) -> None:
        os.unlink(self._path)  # noqa: PTH108 - strings, as above
        self._forget_note()

    @contextlib.contextmanager
    def _folder_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailableError(os.path.dirname(self._to), error.strerror or error) from error  # noqa: PTH120


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return what If-Range may carry; a weak ETag does not promise the same bytes."""
    if headers.get("Accept-Ranges", "").lower() == "none":
        return None
    etag = headers.get("ETag", "")
    if etag:
        return etag if etag.startswith('"') else None
    changed, now = parse_date(headers.get("Last-Modified")), parse_date(headers.get("Date"))
    # A file that changed within the last minute may change again under the same time.
    return headers.get("Last-Modified") if changed and now and now - changed >= _SETTLED else None
