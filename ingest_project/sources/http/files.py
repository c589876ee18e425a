"""One file on a web server: what it is now, and its bytes from any position on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
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
from ingest_project.platform.http.deadlines import Deadline, deadline_in_force
from ingest_project.platform.http.response import Decoder, WebResponse, content_encoding_of, whole_number
from ingest_project.sources.limits import Pace, SourceLimits
from ingest_project.sources.protocol import SourceFile
from ingest_project.sources.resumed_reading import NO_LEASE, Releasable, pass_over

# Silence ends a conversation much earlier; this ends one that a server keeps alive byte by byte.
LONGEST_CONVERSATION = timedelta(hours=2)
ASKED_OTHERWISE = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.FORBIDDEN})
MAX_EXPANSION = 100.0
GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


@contextmanager
def web_errors(location: str) -> Iterator[None]:
    """Tell a failure of the web client as a source's.

    Raises:
        ForbiddenPathError: an address that may not be contacted.
        SourceNotFoundError: 404 or 410.
        SourceAccessDeniedError: any other refusal.
        SourceUnreachableError: no answer, a cut one, or one that may be another later.
    """
    try:
        yield
    except AddressRejectedError as error:
        raise ForbiddenPathError(location, str(error)) from error
    except DownloadRejectedError as error:
        if error.http_status in GONE:
            raise SourceNotFoundError(location) from error
        status = f"the server answered {error.http_status}" if error.http_status else "its answer is no use"
        raise SourceAccessDeniedError(
            location, f"{status}; check the address and the credentials of this host"
        ) from error
    except DownloadFailedError as error:
        raise SourceUnreachableError(location, str(error).partition(" failed: ")[2].rstrip(".") or error) from error
    except HostThrottledError as error:
        raise SourceUnreachableError(location, error) from error


def described(web: WebClient, url: str, name: str, limits: SourceLimits) -> SourceFile:
    """What the server says about a file now, from the headers alone.

    Raises:
        SourceNotFoundError, SourceAccessDeniedError, SourceUnreachableError, ForbiddenPathError: see `web_errors`.
    """
    with web_errors(web.check(url).printable):
        try:
            with web.get(url, Deadline(limits.answer_time), method="HEAD") as answer:
                return _file(url, name, answer.headers, answer.content_length)
        except DownloadRejectedError as error:
            if error.http_status not in ASKED_OTHERWISE:
                raise
        # Servers that sign addresses for GET refuse HEAD: the first byte tells as much.
        asked = {"Range": "bytes=0-0"}
        with web.get(url, Deadline(limits.answer_time), headers=asked, accept=(200, 206, 416)) as answer:
            size = answer.content_length if answer.status == HTTPStatus.OK else _total(answer.headers)
            return _file(url, name, answer.headers, size)


@dataclass
class WebFileReader:
    """Opens one file, and opens it again where a connection broke: only ever the version it opened first.

    Args:
        web: contacts hosts within the rules.
        url: of the file.
        location: for messages.
        limits: of its source.
    """

    web: WebClient
    url: str
    location: str
    limits: SourceLimits
    version: tuple[str | None, datetime | None] | None = None

    def opened(self, offset: int) -> tuple[Releasable, OpenedWebFile]:
        """The file from this position to its end.

        Raises:
            SourceChangedError: by now it is another version. And what else a source raises.
        """
        stack = ExitStack()
        try:
            with web_errors(self.location):
                answer = stack.enter_context(
                    self.web.get(
                        self.url,
                        Deadline(LONGEST_CONVERSATION),
                        headers=self._continuing(offset),
                        accept=(200, 206),
                        forgive_breaks=True,
                    )
                )
            self._require_same(answer)
            return NO_LEASE, self._from(offset, answer, stack)
        except BaseException:
            stack.close()
            raise

    def _continuing(self, offset: int) -> dict[str, str]:
        if not offset or self.version is None or self.version == (None, None):
            return {}
        etag, _ = self.version
        # Without If-Range: by which of its validators a server compares differs, and `_require_same` compares both.
        return {"Range": f"bytes={offset}-", **({"If-Range": etag} if etag and etag.startswith('"') else {})}

    def _require_same(self, answer: WebResponse) -> None:
        found = (answer.headers.get("ETag"), moment_of(answer.headers.get("Last-Modified")))
        if self.version is not None and found != self.version:
            raise SourceChangedError(self.location, "the connection was cut, and by then it was another version")
        self.version = found

    def _from(self, offset: int, answer: WebResponse, stack: ExitStack) -> OpenedWebFile:
        continued = answer.status == HTTPStatus.PARTIAL_CONTENT
        begins_at = _range_start(answer.headers) if continued else 0
        if begins_at != offset and continued:
            raise SourceUnreachableError(self.location, "it answers with another range than was asked for")
        decoder = decoder_of(answer, self.location)
        if decoder and continued:
            raise SourceUnreachableError(self.location, "it answers with a range of something compressed")
        size = _total(answer.headers) if continued else answer.content_length
        pieces = decoded_body(answer, self.location, decoder)
        opened = OpenedWebFile(pieces, stack, self.location, self.limits, None if decoder else size)
        # A server that cannot continue sends all of it again: what is known already is passed over.
        pass_over(opened, 0 if continued else offset, Pace(self.limits, self.location))
        return opened


class OpenedWebFile:
    """One answer of a web server that is being read; closes what it was read from."""

    def __init__(
        self, pieces: Iterator[bytes], stack: ExitStack, location: str, limits: SourceLimits, size_bytes: int | None
    ) -> None:
        self._stack = stack
        self._location = location
        self._limits = limits
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.size_bytes = size_bytes
        self.modified_at: datetime | None = None

    def read(self, size: int) -> bytes:
        """Some of the next bytes; empty at the end."""
        while not self._rest:
            # What frames a piece may come byte by byte as well.
            with web_errors(self._location), deadline_in_force(Deadline(self._limits.answer_time)):
                piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        block, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return block

    def close(self) -> None:
        """Stop reading."""
        self._stack.close()


def decoded_body(answer: WebResponse, location: str, decoder: Decoder | None) -> Iterator[bytes]:
    """The body, without the compression that its server put on it.

    Raises:
        SourceAccessDeniedError: it is not what its header says, or expands too much.
    """
    if decoder is None:
        yield from answer.chunks()
        return
    try:
        for chunk in answer.chunks():
            yield from decoder.decoded(chunk)
        decoder.finish()
    except FileRejectedError as error:
        raise SourceAccessDeniedError(location, error.detail.rstrip(".")) from error


def decoder_of(answer: WebResponse, location: str) -> Decoder | None:
    """What undoes the body's Content-Encoding; None where it has none.

    Raises:
        SourceAccessDeniedError: one that is not supported.
    """
    try:
        encoding = content_encoding_of(answer.headers.get("Content-Encoding"), location)
    except FileRejectedError as error:
        raise SourceAccessDeniedError(location, error.detail.rstrip(".")) from error
    return Decoder(encoding, MAX_EXPANSION, "100 times", location) if encoding else None


def moment_of(value: str | None) -> datetime | None:
    """An HTTP date; None for anything else."""
    try:
        moment = parsedate_to_datetime(value or "")
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


def strong_etag(value: str | None) -> str | None:
    """The ETag, where it is one that promises the same bytes."""
    return value if value and value.startswith('"') else None


def _file(url: str, name: str, headers: Mapping[str, str], size_bytes: int | None) -> SourceFile:
    etag, modified_at = headers.get("ETag"), moment_of(headers.get("Last-Modified"))
    try:
        encoded = content_encoding_of(headers.get("Content-Encoding"), name) is not None
    except FileRejectedError:
        encoded = True
    return SourceFile(
        path=url,
        name=name,
        size_bytes=None if encoded else size_bytes,
        modified_at=modified_at,
        # A weak one changes with compression and between the machines behind one name; a time is better than that.
        etag=strong_etag(etag) or (None if modified_at else etag),
    )


def _total(headers: Mapping[str, str]) -> int | None:
    return whole_number(headers.get("Content-Range", "").rpartition("/")[2])


def _range_start(headers: Mapping[str, str]) -> int | None:
    return whole_number(headers.get("Content-Range", "").strip().removeprefix("bytes ").partition("-")[0])
