"""One file on a web server: its version now, and its bytes from any position on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from ingest_project.core.errors import (
    AddressRejectedError,
    DownloadFailedError,
    DownloadRejectedError,
    FileRejectedError,
    ForbiddenPathError,
    HostThrottledError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.pinned_transport import Deadline, deadline_in_force
from ingest_project.platform.http.response import (
    Decoder,
    WebResponse,
    codings_in,
    content_encoding_of,
    parse_date,
    whole_number,
)
from ingest_project.sources import SourceFile
from ingest_project.sources.reading import Pace, SourceLimits, skip_bytes

MAX_EXPANSION = 100.0
# A silent server is given up much earlier; this bounds one that sends byte by byte.
_MAX_REQUEST_TIME = timedelta(hours=2)
_WITHOUT_HEAD = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.FORBIDDEN})
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


@contextmanager
def web_errors(location: str) -> Iterator[None]:
    """Map a failure of the web client to a source's error.

    Raises:
        ForbiddenPathError: an address that may not be contacted.
        SourceNotFoundError: 404 or 410.
        SourceAccessDeniedError: any other refusal, or a body that cannot be decoded.
        SourceUnreachableError: no response, a cut one, or a transient error.
    """
    try:
        yield
    except AddressRejectedError as error:
        raise ForbiddenPathError(location, str(error)) from error
    except DownloadRejectedError as error:
        if error.http_status in _GONE:
            raise SourceNotFoundError(location) from error
        answer = f"the server answered {error.http_status}" if error.http_status else error.reason
        raise SourceAccessDeniedError(
            location, f"{answer}; check the address and the credentials of this host"
        ) from error
    except FileRejectedError as error:
        raise SourceAccessDeniedError(location, error.detail.rstrip(".")) from error
    except DownloadFailedError as error:
        raise SourceUnreachableError(location, str(error).partition(" failed: ")[2].rstrip(".") or error) from error
    except HostThrottledError as error:
        raise SourceUnreachableError(location, error) from error


def describe(web: WebClient, url: str, name: str, limits: SourceLimits) -> SourceFile:
    """Describe a file by the headers that its server sends now.

    Raises:
        SourceNotFoundError, SourceAccessDeniedError, SourceUnreachableError, ForbiddenPathError: see `web_errors`.
    """
    with web_errors(web.check(url).printable):
        try:
            with web.get(url, Deadline(limits.answer_time), method="HEAD") as answer:
                return _file(url, name, answer.headers, answer.content_length)
        except DownloadRejectedError as error:
            if error.http_status not in _WITHOUT_HEAD:
                raise
        # Servers that sign addresses for GET refuse HEAD: a request for the first byte returns the same headers.
        wanted = {"Range": "bytes=0-0"}
        with web.get(url, Deadline(limits.answer_time), headers=wanted, accept=(200, 206, 416)) as answer:
            size = answer.content_length if answer.status == HTTPStatus.OK else _total(answer.headers)
            return _file(url, name, answer.headers, size)


@dataclass
class WebFileReader:
    """Opens one file, and reopens the same version after a broken connection.

    Args:
        web: the client of web hosts.
        url: of the file.
        location: for messages.
        limits: of its source.
    """

    web: WebClient
    url: str
    location: str
    limits: SourceLimits
    version: tuple[str | None, datetime | None] | None = None

    def opened(self, offset: int) -> OpenedWebFile:
        """Open the file at this position.

        Raises:
            SourceChangedError: the file has another version now. Also raises the other errors of a source.
        """
        stack = ExitStack()
        try:
            with web_errors(self.location):
                answer = stack.enter_context(
                    self.web.get(
                        self.url,
                        Deadline(_MAX_REQUEST_TIME),
                        headers=self._range(offset),
                        accept=(200, 206),
                        forgive_breaks=True,
                    )
                )
                self._require_same(answer)
                return self._file(offset, answer, stack)
        except BaseException:
            stack.close()
            raise

    def _range(self, offset: int) -> dict[str, str]:
        if not offset or self.version is None or self.version == (None, None):
            return {}
        etag, _ = self.version
        # A date is not sent as If-Range: servers compare it differently, and `_require_same` compares both.
        return {"Range": f"bytes={offset}-", **({"If-Range": etag} if strong_etag(etag) and etag else {})}

    def _require_same(self, answer: WebResponse) -> None:
        found = (answer.headers.get("ETag"), parse_date(answer.headers.get("Last-Modified")))
        if self.version is not None and found != self.version:
            raise SourceChangedError(self.location, "the connection was cut, and by then it was another version")
        self.version = found

    def _file(self, offset: int, answer: WebResponse, stack: ExitStack) -> OpenedWebFile:
        resumed = answer.status == HTTPStatus.PARTIAL_CONTENT
        if resumed and _range_start(answer.headers) != offset:
            raise SourceUnreachableError(self.location, "it answers with another range than was requested")
        decoder = decoder_of(answer, self.location)
        if decoder and resumed:
            raise SourceUnreachableError(self.location, "it answers with a range of something compressed")
        size = _total(answer.headers) if resumed else answer.content_length
        file = OpenedWebFile(decoded_body(answer, decoder), stack, self, None if decoder else size)
        # A server that cannot resume sends all of it again: known bytes are skipped.
        skip_bytes(file, 0 if resumed else offset, Pace(self.limits, self.location))
        return file


class OpenedWebFile:
    """One answer of a web server that is being read."""

    def __init__(
        self, pieces: Iterator[bytes], stack: ExitStack, reader: WebFileReader, size_bytes: int | None
    ) -> None:
        self._stack = stack
        self._reader = reader
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.size_bytes = size_bytes
        self.modified_at: datetime | None = None

    def read(self, size: int) -> bytes:
        """Read some of the next bytes; empty at the end."""
        while not self._rest:
            # The framing of a piece may come byte by byte as well.
            answer_time = Deadline(self._reader.limits.answer_time)
            with web_errors(self._reader.location), deadline_in_force(answer_time):
                piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        block, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return block

    def close(self) -> None:
        """Stop reading."""
        self._stack.close()


def decoded_body(answer: WebResponse, decoder: Decoder | None) -> Iterator[bytes]:
    """Yield the body without the compression that its server added.

    Raises:
        FileRejectedError: it is not what its header says, or expands too much.
    """
    if decoder is None:
        yield from answer.chunks()
        return
    for chunk in answer.chunks():
        yield from decoder.decoded(chunk)
    decoder.finish()


def decoder_of(answer: WebResponse, location: str) -> Decoder | None:
    """Return the decoder of the body's Content-Encoding; None where it has none.

    Raises:
        FileRejectedError: an encoding that is not supported.
    """
    encoding = content_encoding_of(answer.headers.get("Content-Encoding"), location)
    return Decoder(encoding, MAX_EXPANSION, "100 times", location) if encoding else None


def strong_etag(value: str | None) -> str | None:
    """Return the ETag where it promises the same bytes."""
    return value if value and value.startswith('"') else None


def _file(url: str, name: str, headers: Mapping[str, str], size_bytes: int | None) -> SourceFile:
    etag, modified_at = headers.get("ETag"), parse_date(headers.get("Last-Modified"))
    return SourceFile(
        path=url,
        name=name,
        size_bytes=None if codings_in(headers.get("Content-Encoding")) else size_bytes,
        modified_at=modified_at,
        # A weak ETag changes with compression and between servers behind one name: the time is more reliable.
        etag=strong_etag(etag) or (None if modified_at else etag),
    )


def _total(headers: Mapping[str, str]) -> int | None:
    return whole_number(headers.get("Content-Range", "").rpartition("/")[2])


def _range_start(headers: Mapping[str, str]) -> int | None:
    return whole_number(headers.get("Content-Range", "").strip().removeprefix("bytes ").partition("-")[0])
