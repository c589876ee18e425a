"""One file from an address that a stranger named to a file in a cache folder, whole and verified, or a clear reason.

Order: ask (checked, see `client`), decode where the server compresses anyway, write and hash while it arrives, continue
where the connection breaks, verify length and checksum, look at what it is, give it its final name.
"""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ingest_project.core.errors import (
    DownloadFailedError,
    DownloadRejectedError,
    FileRejectedError,
    LimitExceededError,
)
from ingest_project.core.settings import (
    DownloadSettings,
)
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.content_types import announced_type, require_announced, shows
from ingest_project.platform.http.deadlines import Deadline
from ingest_project.platform.http.file_names import chosen_file_name, path_file_name
from ingest_project.platform.http.partial_download import PartFile
from ingest_project.platform.http.response import (
    SUPPORTED,
    Decoder,
    WebResponse,
    codings_in,
    contradicts,
    require_readable,
)
from ingest_project.platform.http.urls import printable_url
from ingest_project.platform.local_files import FileFingerprint


def download_limits(downloads: DownloadSettings) -> DownloadLimits:
    """What one download may take."""
    return DownloadLimits(
        max_bytes=downloads.max_bytes,
        max_expansion=downloads.max_expansion,
        total_time=timedelta(seconds=downloads.max_seconds),
        min_bytes_per_second=downloads.min_bytes_per_second,
    )


SIZE_SETTING = "INGEST_MAX_ATTACHMENT_BYTES"
EXPANSION_SETTING = "INGEST_MAX_ATTACHMENT_EXPANSION"

_PARTIAL = 206
_RANGE_NOT_SATISFIABLE = 416
_ALGORITHM_BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}


@dataclass(frozen=True)
class DownloadRequest:
    """What to download, and what is known about it.

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
    """A file that is there, whole.

    Args:
        path: where.
        size_bytes: as stored.
        sha256: of the bytes as stored, in hexadecimal.
        content_type: by its first bytes, or as announced where these leave it open.
        file_name: safe for every store.
        http_status: of the last answer: 200, or 206 for a continued download.
        url: where it came from in the end, as it may be printed.
        resumed: whether it was continued after a break.
        seal: of the file when these bytes were hashed.
    """

    path: Path
    size_bytes: int
    sha256: str
    content_type: str
    file_name: str
    http_status: int
    url: str
    resumed: bool
    seal: FileFingerprint


@dataclass(frozen=True)
class DownloadLimits:
    """What one download may take.

    Args:
        max_bytes: of the file, decoded.
        max_expansion: bytes decoded per byte sent, where the server compresses.
        total_time: of one download, continuations included, waiting for a free place not.
        min_bytes_per_second: a slower server is given up.
        pace_window: over which that is measured, again and again.
        max_resumes: continuations, or fresh starts, after a break within one download.
    """

    max_bytes: int = 1024**3
    max_expansion: float = 100.0
    total_time: timedelta = timedelta(minutes=10)
    min_bytes_per_second: int = 1024
    pace_window: timedelta = timedelta(seconds=20)
    max_resumes: int = 3


class Downloader:
    """Downloads files; threads share it.

    Args:
        client: what contacts hosts.
        limits: what one download may take.
    """

    def __init__(self, client: WebClient, limits: DownloadLimits | None = None) -> None:
        self._client = client
        self._limits = limits or DownloadLimits()

    def download(self, request: DownloadRequest, to: Path) -> Downloaded:
        """Bring one file to a path; doing it again replaces it.

        A break of the connection is continued at once, a few times. What has arrived of a large file when it fails for
        the moment stays as `<to>.part`, and the next call with the same address and path continues it.

        Raises:
            AddressRejectedError: the address, or one that it redirects to, may not be contacted.
            DownloadRejectedError: an answer that stays, such as 404, or an empty file.
            FileRejectedError: not what was announced: size, checksum, kind of content; or it cannot be decoded.
            LimitExceededError: it is too large, or expands too much.
            DownloadFailedError: for the moment: no connection, too slow, cut short, 429, 503.
            HostThrottledError: the host is left alone for a while.
            StoreUnavailableError: it cannot be written.
        """
        checksum = _Checksum.of(request)
        deadline = Deadline(self._limits.total_time)
        with PartFile(to, request.url, checksum.algorithm) as part:
            for tries_left in range(self._limits.max_resumes, -1, -1):
                try:
                    with self._answer(request, part, deadline, forgive_breaks=tries_left > 0) as answer:
                        self._place(answer, part)
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
        seal = part.publish()
        return Downloaded(
            path=to,
            size_bytes=part.size,
            sha256=part.sha256,
            content_type=found,
            file_name=_file_name(request, answer),
            http_status=answer.status,
            url=answer.address.printable,
            resumed=part.resumed,
            seal=seal,
        )

    def _place(self, answer: WebResponse, part: PartFile) -> None:
        """Let the body follow what has arrived, or begin again."""
        if answer.status == _PARTIAL and part.continued_by(answer):
            return
        if answer.status in (_PARTIAL, _RANGE_NOT_SATISFIABLE):
            part.start_over()
            raise DownloadFailedError(answer.address.printable, "the server did not continue what it began", cut=True)
        part.start_over(answer)

    def _require_size(self, request: DownloadRequest, answer: WebResponse, part: PartFile) -> None:
        """Refuse by what the server announces, before anything is read."""
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
        # Servers that call a .tar.gz "a tar in gzip encoding" mean the file that was asked for, as browsers know.
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
            # The two halves may be of different versions, whatever the server said.
            part.start_over()
            raise DownloadFailedError(
                printable, f"the continued file is not what was announced: {wrong.detail}", cut=True
            )
        if wrong:
            raise wrong

    def _too_large(self, answer: WebResponse, size: int) -> LimitExceededError:
        return LimitExceededError(
            SIZE_SETTING,
            f"{answer.address.printable} has {size} bytes or more, at most {self._limits.max_bytes} are downloaded",
        )


class _Pace:
    """Gives up a server that sends, but hardly."""

    def __init__(self, limits: DownloadLimits, printable: str) -> None:
        self._window = limits.pace_window.total_seconds()
        self._least = limits.min_bytes_per_second
        self._printable = printable
        self._received = 0
        self._since = time.monotonic()

    def require(self, received: int) -> None:
        """Take note of bytes that arrived."""
        self._received += received
        passed = time.monotonic() - self._since
        if passed < self._window:
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
        """The checksum to verify.

        Raises:
            FileRejectedError: it is none that is known.
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
