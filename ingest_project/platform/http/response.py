"""The response to one GET, and the errors of a request.

A response has a status, headers, and a body that is read in large pieces and decoded within bounds: some servers
compress a body although the request forbade it. Errors quote addresses without their queries, which may be secrets.
"""

from __future__ import annotations

import contextlib
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import responses

from requests.exceptions import RequestException, SSLError
from urllib3 import HTTPResponse
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)
from urllib3.exceptions import SSLError as TLSError

from ingest_project.core.errors import DownloadFailedError, DownloadRejectedError, FileRejectedError, LimitExceededError
from ingest_project.core.items import as_utc
from ingest_project.platform.http import WebAddress
from ingest_project.platform.http.pinned_transport import Deadline, deadline_in_force

# Larger reads are slower: their newly allocated memory leaves the CPU cache before it is hashed and written.
CHUNK_BYTES = 256 * 1024
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SUPPORTED = frozenset({"gzip", "x-gzip", "deflate"})
# Content codings that are not decoded here. All other words in the header (`utf-8`, `none`, `aws-chunked`, `binary`)
# are not codings: servers that send them mean the bytes as they are.
_UNREADABLE = frozenset(
    {"br", "zstd", "compress", "x-compress", "bzip2", "x-bzip2", "xz", "lzma", "exi", "pack200-gzip", "dcb", "dcz"}
)
# 202: still being prepared. 423: locked by a writer. 425: too early. 429: too many requests.
_TRANSIENT = frozenset({202, 408, 423, 425, 429})
# A body of at most this size usually arrives with the headers; reading it keeps the connection reusable.
_SMALL_BYTES = 64 * 1024
_PATIENCE = timedelta(seconds=1)
# Small bodies are not decompression bombs, whatever their ratio.
_ALWAYS_ALLOWED_BYTES = 1024**2
_GZIP = 16 + zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_SHOWN_LENGTH = 40
_MAX_DIGITS = 18
_MAX_RETRY_AFTER_DIGITS = 9
_MAX_DATE_LENGTH = 64


@dataclass(frozen=True)
class WebResponse:
    """A response whose body has not been read yet.

    Args:
        address: address that answered, after redirects.
        status: HTTP status.
        headers: headers; names are case-insensitive.
        raw: body, as urllib3 reads it.
        deadline: deadline of request and response.
    """

    address: WebAddress
    status: int
    headers: Mapping[str, str]
    raw: HTTPResponse
    deadline: Deadline

    @property
    def content_length(self) -> int | None:
        """Return the declared size of the body in bytes; None without a valid Content-Length."""
        return whole_number(self.headers.get("Content-Length", ""))

    @property
    def ends_with_connection(self) -> bool:
        """Return True if the end of the connection ends the body, so that a broken connection looks the same."""
        return self.content_length is None and "Transfer-Encoding" not in self.headers

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as sent, not decoded, in pieces of at most CHUNK_BYTES: one read of the socket each.

        Raises:
            DownloadFailedError: cut short, silent for too long, or past the deadline.
        """
        read = self.raw.read1
        try:
            while chunk := read(CHUNK_BYTES, decode_content=False):
                yield chunk
        except (RequestException, HTTPError, OSError) as error:
            failure = map_error(error, self.address.redacted, self.deadline)
        else:
            return
        raise failure

    def discard(self) -> None:
        """Read the rest if it is small and arrives soon, so that the connection can be reused."""
        with deadline_in_force(Deadline(_PATIENCE)), contextlib.suppress(HTTPError, OSError):
            for _ in range(2):
                if not self.raw.read1(_SMALL_BYTES, decode_content=False):
                    return

    def close(self) -> None:
        """Close the connection, unless the whole body was read, so that it is already back in the pool."""
        self.raw.close()


class Decoder:
    """Decodes one body; memory use is bounded by the size of the input and output pieces.

    Args:
        encoding: gzip or deflate.
        max_expansion: limit of output bytes per input byte.
        setting: name of the setting with this limit.
        redacted: address without secrets.
    """

    def __init__(self, encoding: str, max_expansion: float, setting: str, redacted: str) -> None:
        self._gzip = encoding != "deflate"
        self._stream = zlib.decompressobj(_GZIP) if self._gzip else None
        self._max_expansion = max_expansion
        self._setting = setting
        self._redacted = redacted
        self._bytes_in = 0
        self._bytes_out = 0

    def decoded(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded content of one piece, in pieces of at most CHUNK_BYTES.

        Raises:
            FileRejectedError: the data do not have this encoding.
            LimitExceededError: the data expand too much.
        """
        self._bytes_in += len(data)
        while data:
            stream = self._stream = self._stream or zlib.decompressobj(_window_of(data))
            try:
                piece = stream.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                raise FileRejectedError(
                    "bad_encoding", f"{self._redacted} is not the {self._name} it claims to be"
                ) from error
            self._bytes_out += len(piece)
            self._require_bounded()
            yield piece
            data = stream.unconsumed_tail
            if stream.eof:
                data = self._next_member(stream.unused_data)

    def finish(self) -> None:
        """Require that the body was complete.

        Raises:
            DownloadFailedError: the compressed content ends early.
        """
        if self._bytes_in and (self._stream is None or not self._stream.eof):
            raise DownloadFailedError(self._redacted, "its compressed content ends in the middle", cut=True)

    def _next_member(self, data: bytes) -> bytes:
        """Return the rest to decode: gzip members may follow each other; other bytes after a member are ignored."""
        if self._gzip and data.startswith(_GZIP_MAGIC):
            self._stream = zlib.decompressobj(_GZIP)
            return data
        return b""

    def _require_bounded(self) -> None:
        if self._bytes_out > _ALWAYS_ALLOWED_BYTES and self._bytes_out > self._bytes_in * self._max_expansion:
            raise LimitExceededError(
                self._setting,
                f"{self._redacted} expands more than {self._max_expansion:g} times: "
                f"{self._bytes_in} bytes to {self._bytes_out} and on",
            )

    @property
    def _name(self) -> str:
        return "gzip" if self._gzip else "deflate"


class Pace:
    """Enforces a minimum speed while a body is read piece by piece.

    Args:
        least: least bytes a second.
        seconds: time for which the server may be slower.
        failure: makes the error from its reason.
    """

    def __init__(self, least: float, seconds: float, failure: Callable[[str], Exception]) -> None:
        self._least = least
        self._interval = seconds
        self._failure = failure
        self._seconds, self._bytes = 0.0, 0

    def timed(self, read: Callable[[], bytes]) -> bytes:
        """Read one piece, or raise the failure; the caller's time between two pieces does not count."""
        before = time.monotonic()
        piece = read()
        self._seconds += time.monotonic() - before
        self._bytes += len(piece)
        if self._seconds >= self._interval and piece:
            if self._bytes < self._least * self._seconds:
                speed = f"{self._bytes} bytes in {self._seconds:.0f} s, under {self._least:g} bytes a second"
                raise self._failure(f"it is too slow: {speed}")
            self._seconds, self._bytes = 0.0, 0
        return piece


def codings_in(header: str | None) -> str | None:
    """Return the content encoding of a body, or several, supported or not; None without one.

    Args:
        header: value of Content-Encoding.
    """
    words = [word.strip().lower() for word in (header or "").split(",")]
    codings = [word for word in words if word in SUPPORTED | _UNREADABLE]
    return ", ".join(codings)[:_SHOWN_LENGTH] or None


def content_encoding_of(header: str | None, redacted: str) -> str | None:
    """Return the encoding to decode; None without one.

    Raises:
        FileRejectedError: the encoding is not supported, or there are several.
    """
    encoding = codings_in(header)
    if encoding not in SUPPORTED:
        require_readable(encoding, is_intact=False, redacted=redacted)
    return encoding


def contradicts(encoding: str, first: bytes) -> bool:
    """Return True if the first bytes of a body contradict this encoding: some servers declare a plain file as gzip."""
    return encoding.endswith("gzip") and not _GZIP_MAGIC.startswith(first[: len(_GZIP_MAGIC)])


def require_readable(encoding: str | None, *, is_intact: bool, redacted: str) -> None:
    """Refuse a file that was written without decoding although it may be encoded.

    Args:
        encoding: encoding that was not decoded; None without one.
        is_intact: True if the bytes are known to be the file's own.
        redacted: address without secrets.

    Raises:
        FileRejectedError: the bytes may still be encoded.
    """
    if encoding and not is_intact:
        raise FileRejectedError(
            "unsupported_encoding",
            f"{redacted} is sent as Content-Encoding {encoding!r} although identity was requested, and nothing shows "
            "that its bytes are the file's own; gzip and deflate can be read",
        )


def _window_of(data: bytes) -> int:
    # Servers disagree about "deflate": with a zlib header, or without one.
    has_header = data[0] & 0x0F == zlib.DEFLATED and (len(data) < 2 or int.from_bytes(data[:2], "big") % 31 == 0)  # noqa: PLR2004 - RFC 1950
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


def whole_number(text: str) -> int | None:
    """Parse a size or position in a header; None for any other text, and for a number too large to be one."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def parse_date(value: str | None) -> datetime | None:
    """Parse an HTTP date; None for any other text. A date without zone is UTC, as HTTP defines."""
    try:
        return as_utc(parsedate_to_datetime((value or "")[:_MAX_DATE_LENGTH]))
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


def parse_retry_after(value: str | None, now: datetime | None = None) -> timedelta | None:
    """Parse a Retry-After, in seconds or as an HTTP date; None for any other text. A past date is a wait of zero.

    The wait is not bounded here; `client.HostLimits.bounded` does that.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=int(text[:_MAX_RETRY_AFTER_DIGITS]))
    moment = parse_date(text)
    return None if moment is None else max(moment - (now or datetime.now(UTC)), timedelta(0))


def map_status(
    status: int, redacted: str, retry_after: timedelta | None
) -> DownloadFailedError | DownloadRejectedError:
    """Return the error for an unexpected status.

    Args:
        status: HTTP status.
        redacted: address without secrets.
        retry_after: pause that the server requested.
    """
    # The standard phrase instead of the server's own text, which is untrusted.
    reason = f"the server answered {status} {responses.get(status, '')}".rstrip()
    if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return DownloadFailedError(redacted, reason, status, retry_after)
    return DownloadRejectedError(redacted, reason, status)


def map_error(error: BaseException, redacted: str, deadline: Deadline) -> DownloadFailedError:
    """Map the exception of a request to our error, with a reason that quotes no address.

    Args:
        error: exception of the request.
        redacted: address without secrets.
        deadline: deadline of the request; if it has passed, that is the reason.
    """
    try:
        deadline.seconds_left()
    except TimeoutError as passed:
        return DownloadFailedError(redacted, passed)
    root = _root(error)
    cut = isinstance(root, (IncompleteRead, ProtocolError, ConnectionError)) and not isinstance(
        root, NewConnectionError
    )
    return DownloadFailedError(redacted, _sentence(root), cut=cut)


def _root(error: BaseException) -> BaseException:
    """Return the exception of urllib3, below the wrappers of requests and of retries."""
    while True:
        inner = error.reason if isinstance(error, MaxRetryError) else next(iter(error.args), None)
        if not isinstance(error, (RequestException, MaxRetryError)) or not isinstance(inner, BaseException):
            return error
        error = inner


def _sentence(root: BaseException) -> str:
    if isinstance(root, ProtocolError) and isinstance(root.args[-1], IncompleteRead):
        root = root.args[-1]
    match root:
        case NameResolutionError():
            reason = "the host name cannot be resolved"
        case NewConnectionError():
            reason = f"no connection: {_system_words(root) or 'refused'}"
        case ConnectTimeoutError():
            reason = "no connection in time"
        case ReadTimeoutError() | TimeoutError():
            reason = "the server stopped sending"
        case TLSError() | SSLError() | ssl.SSLError():
            reason = f"no TLS connection: {_tls_words(root)}"
        case IncompleteRead():
            reason = f"it was cut short after {root.partial} bytes"
        case _:
            reason = "the connection was cut, or the answer is not HTTP"
    return reason


def _system_words(root: BaseException) -> str:
    cause = root.__cause__
    return (cause.strerror or "") if isinstance(cause, OSError) else ""


def _tls_words(root: BaseException) -> str:
    while root.args and isinstance(root.args[0], BaseException):
        root = root.args[0]
    with contextlib.suppress(AttributeError):
        return str(getattr(root, "verify_message", None) or root.reason)  # type: ignore[attr-defined]
    return type(root).__name__
