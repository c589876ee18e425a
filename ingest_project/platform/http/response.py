"""The response to one GET: status, headers, and a body that is read in large pieces and decoded within bounds.

Some servers compress a body although the request forbade it: `Decoder` decodes it piece by piece.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from requests.exceptions import RequestException
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from ingest_project.core.errors import DownloadFailedError, FileRejectedError, LimitExceededError
from ingest_project.platform.http.deadlines import Deadline, deadline_in_force
from ingest_project.platform.http.errors import failure_from
from ingest_project.platform.http.urls import WebAddress

_PIECE_BYTES = 1024**2
# A few hundred bytes of spaces are no bomb, whatever their ratio.
_ALWAYS_ALLOWED_BYTES = 1024**2
_GZIP = 16 + zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_SHOWN_LENGTH = 40
SUPPORTED = frozenset({"gzip", "x-gzip", "deflate"})
# Codings that exist and that are not undone here; all other words in the header (`utf-8`, `none`, `aws-chunked`,
# `binary`) are none: servers that send them mean the bytes as they are.
_UNREADABLE = frozenset(
    {"br", "zstd", "compress", "x-compress", "bzip2", "x-bzip2", "xz", "lzma", "exi", "pack200-gzip", "dcb", "dcz"}
)


class Decoder:
    """One body's decoder; memory is bounded by the pieces that go in and come out.

    Args:
        encoding: gzip or deflate.
        max_expansion: bytes out per byte in.
        setting: that holds this limit.
        printable: the address, as it may be printed.
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
        """The content of one piece, in pieces of at most 1 MiB.

        Raises:
            FileRejectedError: it is not of this encoding.
            LimitExceededError: it expands too much.
        """
        self._bytes_in += len(data)
        while data:
            stream = self._stream = self._stream or zlib.decompressobj(_window_of(data))
            try:
                piece = stream.decompress(data, _PIECE_BYTES)
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
        """State that the body is over.

        Raises:
            DownloadFailedError: it was not.
        """
        if self._bytes_in and (self._stream is None or not self._stream.eof):
            raise DownloadFailedError(self._printable, "its compressed content ends in the middle", cut=True)

    def _next_member(self, data: bytes) -> bytes:
        """What is left to decode: gzip bodies may be several, one after another; other bytes after one mean nothing."""
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
    """The encoding that a body is sent in; one that is not SUPPORTED perhaps, or several. None where there is none.

    Args:
        header: Content-Encoding.
    """
    words = [word.strip().lower() for word in (header or "").split(",")]
    codings = [word for word in words if word in SUPPORTED | _UNREADABLE]
    return ", ".join(codings)[:_SHOWN_LENGTH] or None


def content_encoding_of(header: str | None, printable: str) -> str | None:
    """The encoding to undo; None where there is none.

    Raises:
        FileRejectedError: one that is not supported, or several.
    """
    encoding = codings_in(header)
    if encoding not in SUPPORTED:
        require_readable(encoding, is_intact=False, printable=printable)
    return encoding


def contradicts(encoding: str, first: bytes) -> bool:
    """Whether a body cannot be of this encoding by its first bytes: some servers say gzip of what is stored plain."""
    return encoding.endswith("gzip") and not _GZIP_MAGIC.startswith(first[: len(_GZIP_MAGIC)])


def require_readable(encoding: str | None, *, is_intact: bool, printable: str) -> None:
    """Refuse a file that was written as it was sent, though it may be encoded.

    Args:
        encoding: that was not undone; None where there is none.
        is_intact: whether the bytes are known to be the file's own all the same.
        printable: the address, as it may be printed.

    Raises:
        FileRejectedError: nobody knows what it is.
    """
    if encoding and not is_intact:
        raise FileRejectedError(
            "unsupported_encoding",
            f"{printable} is sent as Content-Encoding {encoding!r} although identity was asked for, and nothing shows "
            "that its bytes are the file's own; gzip and deflate can be read",
        )


def _window_of(data: bytes) -> int:
    # What "deflate" means was never agreed on: with a zlib header, or without one.
    has_header = data[0] & 0x0F == zlib.DEFLATED and (len(data) < 2 or int.from_bytes(data[:2], "big") % 31 == 0)  # noqa: PLR2004 - RFC 1950
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


CHUNK_BYTES = 1024**2
# A body of this size has usually come with the headers; reading it saves the connection.
_SMALL_BYTES = 64 * 1024
_PATIENCE = timedelta(seconds=1)
_MAX_DIGITS = 18


@dataclass(frozen=True)
class WebResponse:
    """An answer whose body has not been read yet.

    Args:
        address: what answered, after redirects.
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
        """Whether nothing but the end of the connection says that the body is over: a break looks the same."""
        return self.content_length is None and "Transfer-Encoding" not in self.headers

    def chunks(self) -> Iterator[bytes]:
        """The body as it was sent, not decoded, in pieces of at most 1 MiB: as much as one read of the socket brings.

        Raises:
            DownloadFailedError: cut short, silent for too long, or past the deadline.
        """
        read = self.raw.read1
        try:
            while chunk := read(CHUNK_BYTES, decode_content=False):
                yield chunk
        except (RequestException, HTTPError, OSError) as error:
            failure = failure_from(error, self.address.printable, self.deadline)
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


def whole_number(text: str) -> int | None:
    """A number as headers state it; None for anything else, and for one that no size or position can be."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None
