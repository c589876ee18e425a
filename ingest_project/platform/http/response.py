"""The response to one GET, and the errors of a request.

A response has status, headers, and a body that is read in large pieces and decoded within bounds: some servers compress
a body although the request forbade it. Errors quote no address with its query, which may be a secret.
"""

from __future__ import annotations

import contextlib
import ssl
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

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

# Larger reads cost more: the memory of each is new, and out of the processor's cache before it is hashed and written.
CHUNK_BYTES = 256 * 1024
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SUPPORTED = frozenset({"gzip", "x-gzip", "deflate"})
# Codings that exist and that are not decoded here; all other words in the header (`utf-8`, `none`, `aws-chunked`,
# `binary`) are none: servers that send them mean the bytes as they are.
_UNREADABLE = frozenset(
    {"br", "zstd", "compress", "x-compress", "bzip2", "x-bzip2", "xz", "lzma", "exi", "pack200-gzip", "dcb", "dcz"}
)
# 202: still being prepared. 425: too early. 429: too many requests.
_TRANSIENT = frozenset({202, 408, 425, 429})
# A body of this size usually arrives with the headers; reading it keeps the connection reusable.
_SMALL_BYTES = 64 * 1024
_PATIENCE = timedelta(seconds=1)
# Small bodies are never bombs, whatever their ratio.
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
        address: that answered, after redirects.
        status: HTTP status.
        headers: names in any case.
        raw: the body, as urllib3 reads it.
        deadline: of the whole conversation.
    """

    address: WebAddress
    status: int
    headers: Mapping[str, str]
    raw: HTTPResponse
    deadline: Deadline

    @property
    def content_length(self) -> int | None:
        """Bytes of the body as declared; None where it is not, or not as a number."""
        return whole_number(self.headers.get("Content-Length", ""))

    @property
    def ends_with_connection(self) -> bool:
        """Only the end of the connection ends the body, which a broken connection resembles."""
        return self.content_length is None and "Transfer-Encoding" not in self.headers

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it was sent, not decoded, in pieces of at most CHUNK_BYTES: one read of the socket each.

        Raises:
            DownloadFailedError: cut short, silent for too long, or past the deadline.
        """
        read = self.raw.read1
        try:
            while chunk := read(CHUNK_BYTES, decode_content=False):
                yield chunk
        except (RequestException, HTTPError, OSError) as error:
            failure = map_error(error, self.address.printable, self.deadline)
        else:
            return
        raise failure

    def discard(self) -> None:
        """Read the rest if it is small and soon there, so that the connection can be used again."""
        with deadline_in_force(Deadline(_PATIENCE)), contextlib.suppress(HTTPError, OSError):
            for _ in range(2):
                if not self.raw.read1(_SMALL_BYTES, decode_content=False):
                    return

    def close(self) -> None:
        """Close the connection unless the body was read to its end, when it is already free for the next request."""
        self.raw.close()


class Decoder:
    """Decodes one body; memory is bounded by the pieces that go in and come out.

    Args:
        encoding: gzip or deflate.
        max_expansion: bytes out per byte in.
        setting: the name of this limit.
        printable: the address, without secrets.
    """

    def __init__(self, encoding: str, max_expansion: float, setting: str, printable: str) -> None:
        self._gzip = encoding != "deflate"
        self._stream = zlib.decompressobj(_GZIP) if self._gzip else None
        self._max_expansion = max_expansion
        self._setting = setting
        self._printable = printable
        self._bytes_in = 0
        self._bytes_out = 0

    def decoded(self, data: bytes) -> Iterator[bytes]:
        """Yield the content of one piece, in pieces of at most CHUNK_BYTES.

        Raises:
            FileRejectedError: it is not of this encoding.
            LimitExceededError: it expands too much.
        """
        self._bytes_in += len(data)
        while data:
            stream = self._stream = self._stream or zlib.decompressobj(_window_of(data))
            try:
                piece = stream.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                raise FileRejectedError(
                    "bad_encoding", f"{self._printable} is not the {self._name} it claims to be"
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
            raise DownloadFailedError(self._printable, "its compressed content ends in the middle", cut=True)

    def _next_member(self, data: bytes) -> bytes:
        """Return the rest to decode: several gzip bodies may follow each other; other bytes after one mean nothing."""
        if self._gzip and data.startswith(_GZIP_MAGIC):
            self._stream = zlib.decompressobj(_GZIP)
            return data
        return b""

    def _require_bounded(self) -> None:
        if self._bytes_out > _ALWAYS_ALLOWED_BYTES and self._bytes_out > self._bytes_in * self._max_expansion:
            raise LimitExceededError(
                self._setting,
                f"{self._printable} expands more than {self._max_expansion:g} times: "
                f"{self._bytes_in} bytes to {self._bytes_out} and on",
            )

    @property
    def _name(self) -> str:
        return "gzip" if self._gzip else "deflate"


def codings_in(header: str | None) -> str | None:
    """Return the encoding that a body is sent in, supported or not, or several; None where there is none.

    Args:
        header: Content-Encoding.
    """
    words = [word.strip().lower() for word in (header or "").split(",")]
    codings = [word for word in words if word in SUPPORTED | _UNREADABLE]
    return ", ".join(codings)[:_SHOWN_LENGTH] or None


def content_encoding_of(header: str | None, printable: str) -> str | None:
    """Return the encoding to decode; None where there is none.

    Raises:
        FileRejectedError: one that is not supported, or several.
    """
    encoding = codings_in(header)
    if encoding not in SUPPORTED:
        require_readable(encoding, is_intact=False, printable=printable)
    return encoding


def contradicts(encoding: str, first: bytes) -> bool:
    """Return True if the first bytes of a body contradict this encoding: some servers declare a plain file as gzip."""
    return encoding.endswith("gzip") and not _GZIP_MAGIC.startswith(first[: len(_GZIP_MAGIC)])


def require_readable(encoding: str | None, *, is_intact: bool, printable: str) -> None:
    """Refuse a file that was written as it was sent although it may be encoded.

    Args:
        encoding: that was not decoded; None where there is none.
        is_intact: the bytes are known to be the file's own nevertheless.
        printable: the address, without secrets.

    Raises:
        FileRejectedError: its content is not known.
    """
    if encoding and not is_intact:
        raise FileRejectedError(
            "unsupported_encoding",
            f"{printable} is sent as Content-Encoding {encoding!r} although identity was requested, and nothing shows "
            "that its bytes are the file's own; gzip and deflate can be read",
        )


def _window_of(data: bytes) -> int:
    # What "deflate" means was never agreed on: with a zlib header, or without one.
    has_header = data[0] & 0x0F == zlib.DEFLATED and (len(data) < 2 or int.from_bytes(data[:2], "big") % 31 == 0)  # noqa: PLR2004 - RFC 1950
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


def whole_number(text: str) -> int | None:
    """Parse a number of a header; None for anything else, and for one that no size or position can be."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def parse_date(value: str | None) -> datetime | None:
    """Parse an HTTP date; None for anything else. Without a zone it is UTC, as HTTP's dates are."""
    try:
        return as_utc(parsedate_to_datetime((value or "")[:_MAX_DATE_LENGTH]))
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


def parse_retry_after(value: str | None, now: datetime | None = None) -> timedelta | None:
    """Parse how long to wait, from seconds or an HTTP date; None for anything else. A moment in the past is no wait.

    It may be any length; `client.HostLimits.bounded` bounds it.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=int(text[:_MAX_RETRY_AFTER_DIGITS]))
    moment = parse_date(text)
    return None if moment is None else max(moment - (now or datetime.now(UTC)), timedelta(0))


def map_status(
    status: int, printable: str, retry_after: timedelta | None
) -> DownloadFailedError | DownloadRejectedError:
    """Map an unwanted status.

    Args:
        status: as answered.
        printable: the address, without secrets.
        retry_after: pause that the server requested.
    """
    reason = f"the server answered {status} {_phrase(status)}".rstrip()
    if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return DownloadFailedError(printable, reason, status, retry_after)
    return DownloadRejectedError(printable, reason, status)


def map_error(error: BaseException, printable: str, deadline: Deadline) -> DownloadFailedError:
    """Map the error of a request, in one sentence that quotes no address.

    Args:
        error: as raised.
        printable: the address, without secrets.
        deadline: in force; if it has passed, that is the reason.
    """
    try:
        deadline.seconds_left()
    except TimeoutError as passed:
        return DownloadFailedError(printable, passed)
    root = _root(error)
    cut = isinstance(root, (IncompleteRead, ProtocolError, ConnectionError)) and not isinstance(
        root, NewConnectionError
    )
    return DownloadFailedError(printable, _sentence(root), cut=cut)


def _root(error: BaseException) -> BaseException:
    """Return what urllib3 raised, below the wrappers of requests and of retries."""
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
            reason = "the name of the host cannot be resolved"
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


def _phrase(status: int) -> str:
    # Without the server's own text, which is untrusted.
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
