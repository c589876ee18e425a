"""Download one file from an untrusted address to a cache folder, whole and verified, or fail with a clear reason.

Steps: send a checked request (see `client`), decode a body that the server compresses anyway, write and hash it as it
arrives, resume after a broken connection, verify length and checksum, check the type, rename to the final name.

`<name>.part` grows during the download and gets its final name at the end, so that a file with its final name is whole.
For a large file, `<name>.part.json` records address and version; a later attempt resumes there, even after this process
was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Self

from ingest_project.core.errors import (
    DownloadFailedError,
    DownloadRejectedError,
    FileRejectedError,
    LimitExceededError,
    StoreUnavailableError,
)
from ingest_project.core.local_files import FileFingerprint, write_all
from ingest_project.core.settings import DownloadSettings
from ingest_project.platform.http import redacted_url
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.file_names import (
    SNIFFED_BYTES,
    announced_type,
    chosen_file_name,
    path_file_name,
    require_announced,
    shows,
)
from ingest_project.platform.http.pinned_transport import Deadline
from ingest_project.platform.http.response import (
    SUPPORTED,
    Decoder,
    Pace,
    WebResponse,
    codings_in,
    contradicts,
    map_status,
    parse_date,
    require_readable,
)

# Downloading a smaller part again is cheaper than keeping it.
WORTH_RESUMING_BYTES = 1024**2
_NOTED_AT_ONCE_BYTES = 8 * 1024**2
_READ_BYTES = 1024**2
_SETTLED = timedelta(minutes=1)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True)
class Version:
    """Address and version of the downloaded bytes.

    Args:
        url_sha256: SHA-256 of the address, which itself may be a secret.
        validator: strong ETag or Last-Modified, for If-Range; None if this version cannot be resumed.
        size_bytes: size of the whole file; None if the server did not declare it.
    """

    url_sha256: str
    validator: str | None = None
    size_bytes: int | None = None


class PartFile:
    """A file during its download. Use it as a context manager, which removes a part that is not worth keeping.

    Args:
        to: final path; its folder is created.
        url: address of the file.
        algorithm: algorithm of the checksum to compute in addition to SHA-256.
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
        # Content encoding of the bytes that were written without decoding.
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
        """Return the headers that request the rest; none to request the whole file."""
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
        """Discard the received bytes; the body of this response, a 200, replaces them."""
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
        """Append data and update the checksums."""
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
        """Return the SHA-256 of the received bytes, in hexadecimal."""
        return self._sha256.hexdigest()

    @property
    def checksum(self) -> str:
        """Return the requested checksum of the received bytes, in hexadecimal."""
        return self._other.hexdigest() if self._other else self.sha256

    @property
    def missing_bytes(self) -> int:
        """Return the bytes missing from the declared size, negative for too many; 0 if none was declared."""
        return 0 if self._version.size_bytes is None else self._version.size_bytes - self.size

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
                # The lock's holder has just renamed this file to its final name: open a new one.
            except BlockingIOError:
                os.close(descriptor)
                reason = "another download to the same file is under way"
                raise DownloadFailedError(redacted_url(self._url), reason) from None
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def _resume_earlier(self) -> None:
        """Resume the part of an earlier attempt if it belongs to this address; discard it otherwise."""
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
    """Return the validator for If-Range; a weak ETag does not guarantee the same bytes."""
    if headers.get("Accept-Ranges", "").lower() == "none":
        return None
    etag = headers.get("ETag", "")
    if etag:
        return etag if etag.startswith('"') else None
    changed, now = parse_date(headers.get("Last-Modified")), parse_date(headers.get("Date"))
    # A file that changed within the last minute may change again with the same timestamp.
    return headers.get("Last-Modified") if changed and now and now - changed >= _SETTLED else None


SIZE_SETTING = "INGEST_MAX_ATTACHMENT_BYTES"
EXPANSION_SETTING = "INGEST_MAX_ATTACHMENT_EXPANSION"
# The speed is measured over intervals of this length.
PACE_WINDOW_SECONDS = 20.0
# Maximum number of resumptions or restarts of one download after broken connections.
MAX_RESUMES = 3

_PARTIAL = 206
_RANGE_NOT_SATISFIABLE = 416
_ALGORITHM_BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}


@dataclass(frozen=True)
class DownloadRequest:
    """A file to download, with the sender's declarations.

    Args:
        url: address as received.
        file_name: name from the sender; None to use the server's.
        content_type: media type that the sender declared.
        expected_size: expected size in bytes.
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
        path: path of the file.
        size_bytes: size of the stored bytes.
        sha256: SHA-256 of the stored bytes, in hexadecimal.
        content_type: media type by the first bytes, or as announced if these are ambiguous.
        file_name: name that is safe for every store.
        http_status: status of the last response: 200, or 206 for a resumed download.
        url: final address after redirects, without secrets.
        resumed: True if the download was resumed after a break.
        fingerprint: fingerprint of the file when these bytes were hashed.
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
        client: client that sends the requests.
        limits: limits of one download.
    """

    def __init__(self, client: WebClient, limits: DownloadSettings) -> None:
        self._client = client
        self._limits = limits

    def download(self, request: DownloadRequest, to: Path) -> Downloaded:
        """Download one file to a path; a second download replaces it.

        A broken connection is resumed immediately, a few times. After a transient failure, the received part of a large
        file stays as `<to>.part`, and the next call with the same address and path resumes it.

        Raises:
            AddressRejectedError: the address, or one that it redirects to, may not be contacted.
            DownloadRejectedError: a permanent status, such as 404, or an empty file.
            FileRejectedError: size, checksum or kind of content differ from the announced ones, or decoding fails.
            LimitExceededError: it is too large, or expands too much.
            DownloadFailedError: a transient failure: no connection, too slow, cut short, 429, 503.
            HostThrottledError: the host is paused.
            StoreUnavailableError: the file cannot be written.
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
        accept = (200, _PARTIAL, _RANGE_NOT_SATISFIABLE) if wanted else (200, _PARTIAL)
        return self._client.get(request.url, deadline, headers=wanted, accept=accept, forgive_breaks=forgive_breaks)

    def _published(self, request: DownloadRequest, to: Path, part: PartFile, answer: WebResponse) -> Downloaded:
        is_intact = bool(request.checksum) or shows(part.head, _announced(request))
        require_readable(part.undecoded, is_intact=is_intact, redacted=answer.address.redacted)
        found = require_announced(
            part.head, _announced(request), answer.headers.get("Content-Type"), answer.address.redacted
        )
        fingerprint = part.publish()
        return Downloaded(
            path=to,
            size_bytes=part.size,
            sha256=part.sha256,
            content_type=found,
            file_name=_file_name(request, answer),
            http_status=answer.status,
            url=answer.address.redacted,
            resumed=part.resumed,
            fingerprint=fingerprint,
        )

    def _append_or_restart(self, answer: WebResponse, part: PartFile) -> None:
        """Append the body to the received bytes, or start over."""
        asked = bool(part.range_headers)
        if answer.status == _PARTIAL and asked and part.continued_by(answer):
            return
        if answer.status == HTTPStatus.OK or _is_whole(answer):
            part.start_over(answer)
            return
        if not asked:
            raise map_status(answer.status, answer.address.redacted, None)
        part.start_over()
        raise DownloadFailedError(answer.address.redacted, "the server did not resume the same file", cut=True)

    def _require_size(self, request: DownloadRequest, answer: WebResponse, part: PartFile) -> None:
        """Refuse a file by its announced size before reading it."""
        announced = part.size + (answer.content_length or 0)
        if announced > self._limits.max_bytes:
            raise self._too_large(answer, announced)
        if request.expected_size is None or answer.content_length is None or part.resumed:
            return
        if announced != request.expected_size and not codings_in(answer.headers.get("Content-Encoding")):
            raise _wrong_size(answer.address.redacted, announced, request.expected_size)

    def _receive(self, request: DownloadRequest, answer: WebResponse, part: PartFile) -> None:
        encoding, limits, redacted = self._encoding(request, answer), self._limits, answer.address.redacted
        known = encoding if encoding in SUPPORTED else None
        decoder = Decoder(known, limits.max_expansion, EXPANSION_SETTING, redacted) if known else None
        pace = Pace(limits.min_bytes_per_second, PACE_WINDOW_SECONDS, partial(DownloadFailedError, redacted))
        part.undecoded = None if decoder else encoding
        pieces = answer.chunks()
        while chunk := pace.timed(partial(next, pieces, b"")):
            if decoder and not part.size and contradicts(known or "", chunk):
                decoder, part.undecoded = None, encoding
            for data in decoder.decoded(chunk) if decoder else (chunk,):
                part.write(data)
                if part.size > limits.max_bytes:
                    raise self._too_large(answer, part.size)
        if decoder:
            decoder.finish()
        if part.missing_bytes > 0:
            raise DownloadFailedError(
                answer.address.redacted, f"it was cut short, {part.missing_bytes} bytes are missing", cut=True
            )
        if part.missing_bytes < 0:
            part.start_over()
            raise DownloadFailedError(
                answer.address.redacted, "the resumed file is longer than its first answer said", cut=True
            )

    def _encoding(self, request: DownloadRequest, answer: WebResponse) -> str | None:
        encoding = codings_in(answer.headers.get("Content-Encoding"))
        # Some servers send a .tar.gz as "a tar in gzip encoding": keep its bytes, as browsers do.
        is_the_file = encoding in ("gzip", "x-gzip") and _announced(request) == "application/gzip"
        return None if is_the_file else encoding

    def _verify(self, request: DownloadRequest, part: PartFile, checksum: _Checksum, answer: WebResponse) -> None:
        redacted = answer.address.redacted
        if not part.size:
            raise DownloadRejectedError(redacted, "the file is empty", answer.status)
        if answer.ends_with_connection and part.size < (request.expected_size or 0):
            raise DownloadFailedError(redacted, f"it was cut short after {part.size} bytes", cut=True)
        wrong: FileRejectedError | None = None
        if request.expected_size not in (None, part.size):
            wrong = _wrong_size(redacted, part.size, request.expected_size)
        elif checksum.value and checksum.value != part.checksum:
            wrong = FileRejectedError(
                "wrong_checksum", f"{redacted} has {checksum.algorithm} {part.checksum}, not {checksum.value}"
            )
        if wrong and part.resumed:
            # The parts may belong to different versions, whatever the server declared.
            part.start_over()
            raise DownloadFailedError(redacted, f"the resumed file is not what was announced: {wrong.detail}", cut=True)
        if wrong:
            raise wrong

    def _too_large(self, answer: WebResponse, size: int) -> LimitExceededError:
        return LimitExceededError(
            SIZE_SETTING,
            f"{answer.address.redacted} has {size} bytes or more, at most {self._limits.max_bytes} are downloaded",
        )


@dataclass(frozen=True)
class _Checksum:
    algorithm: str
    value: str | None

    @classmethod
    def of(cls, request: DownloadRequest) -> _Checksum:
        """Parse the checksum to verify.

        Raises:
            FileRejectedError: the algorithm is unknown.
        """
        text = (request.checksum or "").strip().lower()
        if not text:
            return cls("sha256", None)
        name, _, value = text.rpartition(":")
        algorithm = _ALGORITHM_BY_LENGTH.get(len(value), "")
        if name.replace("-", "") not in ("", algorithm) or not re.fullmatch(r"[0-9a-f]+", value) or not algorithm:
            raise FileRejectedError(
                "unknown_checksum",
                f"{redacted_url(request.url)} has a checksum that is not md5, sha1, sha256 or sha512 in hexadecimal",
            )
        return cls(algorithm, value)


def _is_whole(answer: WebResponse) -> bool:
    """Return True for a 206 with all bytes: caches and file servers send one also without a request for a range."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    return answer.status == _PARTIAL and found is not None and (found[1], found[3]) == ("0", str(int(found[2]) + 1))


def _announced(request: DownloadRequest) -> str | None:
    name = request.file_name or path_file_name(request.url)
    return announced_type(request.content_type, name)


def _file_name(request: DownloadRequest, answer: WebResponse) -> str:
    return chosen_file_name(request.file_name, answer.headers.get("Content-Disposition"), answer.address.target)


def _wrong_size(redacted: str, size: int, expected: int | None) -> FileRejectedError:
    return FileRejectedError("wrong_size", f"{redacted} has {size} bytes, {expected} were announced")
