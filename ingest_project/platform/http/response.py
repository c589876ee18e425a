"""The answer to one GET: status, headers, and a body that is read in large pieces, each as soon as it is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from requests.exceptions import RequestException
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from ingest_project.platform.http.deadlines import Deadline, deadline_in_force
from ingest_project.platform.http.errors import failure_from
from ingest_project.platform.http.urls import WebAddress

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
