"""Download one file from an untrusted address to a cache folder, whole and verified, or fail with a clear reason.

Order: request (checked, see `client`), decode where the server compresses anyway, write and hash while it arrives,
resume where the connection breaks, verify length and checksum, check its type, give it its final name.
"""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ingest_project.core.errors import DownloadFailedError, DownloadRejectedError, FileRejectedError, LimitExceededError
from ingest_project.core.local_files import FileFingerprint
from ingest_project.core.settings import DownloadSettings
from ingest_project.platform.http import printable_url
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.file_names import (
    announced_type,
    chosen_file_name,
    path_file_name,
    require_announced,
    shows,
)
from ingest_project.platform.http.partial_download import PartFile
from ingest_project.platform.http.pinned_transport import Deadline
from ingest_project.platform.http.response import (
    SUPPORTED,
    Decoder,
    WebResponse,
    codings_in,
    contradicts,
    require_readable,
)

SIZE_SETTING = "INGEST_MAX_ATTACHMENT_BYTES"
EXPANSION_SETTING = "INGEST_MAX_ATTACHMENT_EXPANSION"
# The speed is measured over intervals of this length.
PACE_WINDOW_SECONDS = 20.0
# Most resumptions or restarts of one download after broken connections.
MAX_RESUMES = 3

_PARTIAL = 206
_RANGE_NOT_SATISFIABLE = 416
_ALGORITHM_BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}


@dataclass(frozen=True)
class DownloadRequest:
    """A file to download, and what is known about it.

    Args:
        url: as it came.
        file_name: as the sender named it; None leaves that to the server.
        content_type: as the sender declared it.
        expected_size: in bytes.
        checksum: `sha256:…` or `md5:…` (sha1 and sha512 too) in hexadecimal, or bare hexadecimal, known by its length.
    """

    url: str
    file_name: str | None = None
    content_type: str | None = None
    expected_size: int | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class Downloaded:
    """A downloaded file.

    Args:
        path: of the file.
        size_bytes: as stored.
        sha256: of the bytes as stored, in hexadecimal.
        content_type: by its first bytes, or as announced where these do not decide.
        file_name: safe for every store.
        http_status: of the last answer: 200, or 206 for a resumed download.
        url: that it came from after redirects, without secrets.
        resumed: it was resumed after a break.
        fingerprint: of the file when these bytes were hashed.
    """

    path: Path
    size_bytes: int
    sha256: str
    content_type: str
    file_name: str
    http_status: int
    url: str
    resumed: bool
    fingerprint: FileFingerprint


class Downloader:
    """Downloads files; threads share it.

    Args:
        client: contacts hosts.
        limits: of one download.
    """

    def __init__(self, client: WebClient, limits: DownloadSettings) -> None:
        self._client = client
        self._limits = limits

    def download(self, request: DownloadRequest, to: Path) -> Downloaded:
        """Download one file to a path; a second download replaces it.

        A broken connection is resumed at once, a few times. What has arrived of a large file when it fails for the
        moment stays as `<to>.part`, and the next call with the same address and path resumes it.

        Raises:
            AddressRejectedError: the address, or one that it redirects to, may not be contacted.
            DownloadRejectedError: a permanent status, such as 404, or an empty file.
            FileRejectedError: not what was announced: size, checksum, kind of content; or it cannot be decoded.
            LimitExceededError: it is too large, or expands too much.
            DownloadFailedError: for the moment: no connection, too slow, cut short, 429, 503.
            HostThrottledError: the host is paused.
            StoreUnavailableError: it cannot be written.
        """
        checksum = _Checksum.of(request)
        deadline = Deadline(timedelta(seconds=self._limits.max_seconds))
        with PartFile(to, request.url, checksum.algorithm) as part:
            for tries_left in range(MAX_RESUMES, -1, -1):
                try:
                    with self._answer(request, part, deadline, forgive_breaks=tries_left > 0) as answer:
                        self._append_or_restart(answer, part)
                        self._require_size(request, answer, part)
                        self._receive(request, answer, part)
                    self._verify(request, part, checksum, answer)
                    return self._published(request, to, part, answer)
                except DownloadFailedError as failure:
                    if not failure.cut or not tries_left:
                        raise
        raise AssertionError("the last try either returns or raises")

    def _answer(
        self, request: DownloadRequest, part: PartFile, deadline: Deadline, *, forgive_breaks: bool
    ) -> AbstractContextManager[WebResponse]:
        wanted = part.range_headers
        accept = (200, _PARTIAL, _RANGE_NOT_SATISFIABLE) if wanted else (200,)
        return self._client.get(request.url, deadline, headers=wanted, accept=accept, forgive_breaks=forgive_breaks)

    def _published(self, request: DownloadRequest, to: Path, part: PartFile, answer: WebResponse) -> Downloaded:
        is_intact = bool(request.checksum) or shows(part.head, _announced(request))
        require_readable(part.undecoded, is_intact=is_intact, printable=answer.address.printable)
        found = require_announced(
            part.head, _announced(request), answer.headers.get("Content-Type"), answer.address.printable
        )
        fingerprint = part.publish()
        return Downloaded(
            path=to,
            size_bytes=part.size,
            sha256=part.sha256,
            content_type=found,
            file_name=_file_name(request, answer),
            http_status=answer.status,
            url=answer.address.printable,
            resumed=part.resumed,
            fingerprint=fingerprint,
        )

    def _append_or_restart(self, answer: WebResponse, part: PartFile) -> None:
        """Append the body to what has arrived, or begin again."""
        if answer.status == _PARTIAL and part.continued_by(answer):
            return
        if answer.status in (_PARTIAL, _RANGE_NOT_SATISFIABLE):
            part.start_over()
            raise DownloadFailedError(answer.address.printable, "the server did not resume the same file", cut=True)
        part.start_over(answer)

    def _require_size(self, request: DownloadRequest, answer: WebResponse, part: PartFile) -> None:
        """Refuse a file by the announced size, before anything is read."""
        announced = part.size + (answer.content_length or 0)
        if announced > self._limits.max_bytes:
            raise self._too_large(answer, announced)
        if request.expected_size is None or answer.content_length is None or part.resumed:
            return
        if announced != request.expected_size and not codings_in(answer.headers.get("Content-Encoding")):
            raise _wrong_size(answer.address.printable, announced, request.expected_size)

    def _receive(self, request: DownloadRequest, answer: WebResponse, part: PartFile) -> None:
        encoding = self._encoding(request, answer)
        decoder = self._decoder(encoding, answer)
        pace = _Pace(self._limits, answer.address.printable)
        part.undecoded = None if decoder else encoding
        for chunk in answer.chunks():
            if decoder and not part.size and contradicts(encoding or "", chunk):
                decoder, part.undecoded = None, encoding
            for data in decoder.decoded(chunk) if decoder else (chunk,):
                part.write(data)
                if part.size > self._limits.max_bytes:
                    raise self._too_large(answer, part.size)
            pace.require(len(chunk))
        if decoder:
            decoder.finish()
        if part.missing_bytes > 0:
            raise DownloadFailedError(
                answer.address.printable, f"it was cut short, {part.missing_bytes} bytes are missing", cut=True
            )

    def _encoding(self, request: DownloadRequest, answer: WebResponse) -> str | None:
        encoding = codings_in(answer.headers.get("Content-Encoding"))
        # Servers that call a .tar.gz "a tar in gzip encoding" mean the requested file, as browsers know.
        is_the_file = encoding in ("gzip", "x-gzip") and _announced(request) == "application/gzip"
        return None if is_the_file else encoding

    def _decoder(self, encoding: str | None, answer: WebResponse) -> Decoder | None:
        if encoding not in SUPPORTED:
            return None
        limits = self._limits
        return Decoder(encoding, limits.max_expansion, EXPANSION_SETTING, answer.address.printable)

    def _verify(self, request: DownloadRequest, part: PartFile, checksum: _Checksum, answer: WebResponse) -> None:
        printable = answer.address.printable
        if not part.size:
            raise DownloadRejectedError(printable, "the file is empty", answer.status)
        if answer.ends_with_connection and part.size < (request.expected_size or 0):
            raise DownloadFailedError(printable, f"it was cut short after {part.size} bytes", cut=True)
        wrong: FileRejectedError | None = None
        if request.expected_size not in (None, part.size):
            wrong = _wrong_size(printable, part.size, request.expected_size)
        elif checksum.value and checksum.value != part.checksum:
            wrong = FileRejectedError(
                "wrong_checksum", f"{printable} has {checksum.algorithm} {part.checksum}, not {checksum.value}"
            )
        if wrong and part.resumed:
            # The two halves may be of different versions, whatever the server declared.
            part.start_over()
            raise DownloadFailedError(
                printable, f"the resumed file is not what was announced: {wrong.detail}", cut=True
            )
        if wrong:
            raise wrong

    def _too_large(self, answer: WebResponse, size: int) -> LimitExceededError:
        return LimitExceededError(
            SIZE_SETTING,
            f"{answer.address.printable} has {size} bytes or more, at most {self._limits.max_bytes} are downloaded",
        )


class _Pace:
    """Ends the download from a server that is too slow."""

    def __init__(self, limits: DownloadSettings, printable: str) -> None:
        self._least = limits.min_bytes_per_second
        self._printable = printable
        self._received = 0
        self._since = time.monotonic()

    def require(self, received: int) -> None:
        """Count bytes that arrived."""
        self._received += received
        passed = time.monotonic() - self._since
        if passed < PACE_WINDOW_SECONDS:
            return
        if self._received < self._least * passed:
            raise DownloadFailedError(
                self._printable,
                f"the server sends less than {self._least} bytes a second ({self._received} in {passed:.0f} s)",
            )
        self._received, self._since = 0, time.monotonic()


@dataclass(frozen=True)
class _Checksum:
    algorithm: str
    value: str | None

    @classmethod
    def of(cls, request: DownloadRequest) -> _Checksum:
        """Read the checksum to verify.

        Raises:
            FileRejectedError: its algorithm is not known.
        """
        text = (request.checksum or "").strip().lower()
        if not text:
            return cls("sha256", None)
        name, _, value = text.rpartition(":")
        algorithm = _ALGORITHM_BY_LENGTH.get(len(value), "")
        if name.replace("-", "") not in ("", algorithm) or not re.fullmatch(r"[0-9a-f]+", value) or not algorithm:
            raise FileRejectedError(
                "unknown_checksum",
                f"{printable_url(request.url)} has a checksum that is not md5, sha1, sha256 or sha512 in hexadecimal",
            )
        return cls(algorithm, value)


def _announced(request: DownloadRequest) -> str | None:
    name = request.file_name or path_file_name(request.url)
    return announced_type(request.content_type, name)


def _file_name(request: DownloadRequest, answer: WebResponse) -> str:
    return chosen_file_name(request.file_name, answer.headers.get("Content-Disposition"), answer.address.target)


def _wrong_size(printable: str, size: int, expected: int | None) -> FileRejectedError:
    return FileRejectedError("wrong_size", f"{printable} has {size} bytes, {expected} were announced")
