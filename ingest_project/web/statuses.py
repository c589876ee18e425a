"""What an HTTP status means for us: good, come again later, or never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from ingest_project.errors import DownloadFailed, DownloadRefused

REDIRECTS = frozenset({301, 302, 303, 307, 308})
# 202: it is being prepared. 425 and 429: too early, too often.
_COME_AGAIN = frozenset({202, 408, 425, 429})
_MAX_RETRY_AFTER_DIGITS = 9
_MAX_DATE_LENGTH = 64


def failure_of(status: int, printable: str, retry_after: timedelta | None) -> DownloadFailed | DownloadRefused:
    """The error that an unwanted status is.

    Args:
        status: as answered.
        printable: the address, as it may be printed.
        retry_after: how long the server asked to be left alone.
    """
    said = f"the server answered {status} {_phrase(status)}".rstrip()
    if status in _COME_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return DownloadFailed(printable, said, status, retry_after)
    return DownloadRefused(printable, said, status)


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
