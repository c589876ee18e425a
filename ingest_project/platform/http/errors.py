"""Map HTTP statuses and the exceptions of requests and urllib3 to errors of ours, without addresses and secrets."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from requests.exceptions import RequestException, SSLError
from urllib3.exceptions import (
    ConnectTimeoutError,
    IncompleteRead,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)
from urllib3.exceptions import SSLError as TLSError

from ingest_project.core.errors import DownloadFailedError, DownloadRejectedError
from ingest_project.platform.http.deadlines import Deadline


def failure_from(error: BaseException, printable: str, deadline: Deadline) -> DownloadFailedError:
    """What went wrong, in one sentence that quotes no address.

    Args:
        error: as raised.
        printable: the address, as it may be printed.
        deadline: in force; if it has passed, that is what went wrong.
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
    """What urllib3 raised, below what requests and its retries made of it."""
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
            said = "the name of the host cannot be resolved"
        case NewConnectionError():
            said = f"no connection: {_system_words(root) or 'refused'}"
        case ConnectTimeoutError():
            said = "no connection in time"
        case ReadTimeoutError() | TimeoutError():
            said = "the server stopped sending"
        case TLSError() | SSLError() | ssl.SSLError():
            said = f"no TLS connection: {_tls_words(root)}"
        case IncompleteRead():
            said = f"it was cut short after {root.partial} bytes"
        case _:
            said = "the connection was cut, or the answer is not HTTP"
    return said


def _system_words(root: BaseException) -> str:
    cause = root.__cause__
    return (cause.strerror or "") if isinstance(cause, OSError) else ""


def _tls_words(root: BaseException) -> str:
    while root.args and isinstance(root.args[0], BaseException):
        root = root.args[0]
    with contextlib.suppress(AttributeError):
        return str(getattr(root, "verify_message", None) or root.reason)  # type: ignore[attr-defined]
    return type(root).__name__


REDIRECTS = frozenset({301, 302, 303, 307, 308})
# 202: it is being prepared. 425 and 429: too early, too often.
_COME_AGAIN = frozenset({202, 408, 425, 429})
_MAX_RETRY_AFTER_DIGITS = 9
_MAX_DATE_LENGTH = 64


def map_error(
    status: int, printable: str, retry_after: timedelta | None
) -> DownloadFailedError | DownloadRejectedError:
    """The error that an unwanted status is.

    Args:
        status: as answered.
        printable: the address, as it may be printed.
        retry_after: how long the server asked to be left alone.
    """
    said = f"the server answered {status} {_phrase(status)}".rstrip()
    if status in _COME_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return DownloadFailedError(printable, said, status, retry_after)
    return DownloadRejectedError(printable, said, status)


def parse_retry_after(value: str | None, now: datetime | None = None) -> timedelta | None:
    """How long to wait, from seconds or an HTTP date; None for anything else. A moment in the past is no wait.

    It may be any length: whoever keeps to it bounds it, see `limits.HostLimits.bounded`.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=int(text[:_MAX_RETRY_AFTER_DIGITS]))
    try:
        moment = parsedate_to_datetime(text[:_MAX_DATE_LENGTH])
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(moment - (now or datetime.now(UTC)), timedelta(0))
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


def _phrase(status: int) -> str:
    # The server's own words are a stranger's: ours say the same.
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
