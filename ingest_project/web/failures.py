"""From what requests and urllib3 raise to one `DownloadFailed`, without the address and its secrets that they quote."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

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

from ingest_project.errors import DownloadFailed

if TYPE_CHECKING:
    from ingest_project.web.deadlines import Deadline


def failure_from(error: BaseException, printable: str, deadline: Deadline) -> DownloadFailed:
    """What went wrong, in one sentence that quotes no address.

    Args:
        error: as raised.
        printable: the address, as it may be printed.
        deadline: in force; if it has passed, that is what went wrong.
    """
    try:
        deadline.seconds_left()
    except TimeoutError as passed:
        return DownloadFailed(printable, passed)
    root = _root(error)
    cut = isinstance(root, (IncompleteRead, ProtocolError, ConnectionError)) and not isinstance(
        root, NewConnectionError
    )
    return DownloadFailed(printable, _sentence(root), cut=cut)


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
