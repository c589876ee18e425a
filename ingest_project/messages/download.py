"""The messages of a download: the task, the file in the cache, the result (topics `downloads.*`).

An attachment's partition key is made here: the same address in the same trace is the same attachment, whoever asks
for it and however often.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime  # noqa: TC003 - msgspec reads the fields' types when it runs
from enum import StrEnum
from urllib.parse import unquote, urlsplit

import msgspec

from ingest_project.errors import UnreadableMessage
from ingest_project.messages.decoding import decode, require_names

MAX_URL_LENGTH = 8_192
MAX_PATH_LENGTH = 2_048
MOST_ATTEMPTS = 1_000
LARGEST_SIZE = 2**63 - 1
KEY_NAME_LENGTH = 60
KEY_HASH_LENGTH = 12


class DownloadStatus(StrEnum):
    """How an attempt ended."""

    SUCCESS = "success"
    FAILED_TRANSIENT = "failed_transient"
    FAILED_PERMANENT = "failed_permanent"


class DownloadTask(msgspec.Struct, frozen=True, kw_only=True):
    """One file to bring (topics `downloads.pending`, `downloads.retry.*` and `downloads.dlq`).

    Args:
        destination_path: where to store it, relative to the attachment store; empty: as the domain's template says.
        attempt: which attempt this is, the first being 1.
        expected_size: bytes, where known.
        checksum: `sha256:...`, `md5:...` or bare hexadecimal digits, where known.
        file_name: what to call it, where the event says so.
        content_type: what it should be, where the event says so.
    """

    trace_id: str
    domain: str
    attachment_url: str
    destination_path: str = ""
    attempt: int = 1
    event_type: str = ""
    occurred_at: datetime | None = None
    expected_size: int | None = None
    checksum: str | None = None
    file_name: str | None = None
    content_type: str | None = None


class CachedDownload(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was downloaded and verified, on its way to the store (topic `downloads.cached`).

    The fields of the task, and where the bytes lie until they are stored. `sha256` is in hexadecimal digits.
    """

    trace_id: str
    domain: str
    attachment_url: str
    destination_path: str
    attempt: int
    event_type: str
    occurred_at: datetime | None
    expected_size: int | None
    checksum: str | None
    local_path: str
    size_bytes: int
    sha256: str
    content_type: str | None


class DownloadResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended (topic `downloads.results`, and a row of the Delta table `attachment_results`)."""

    trace_id: str
    attachment_url: str
    status: DownloadStatus
    http_status: int | None
    error_class: str | None
    error: str | None
    size_bytes: int | None
    sha256: str | None
    onelake_path: str | None
    attempt: int
    completed_at: datetime


def decode_download_task(raw: bytes | None) -> DownloadTask:
    """One message of `downloads.pending` or a retry topic.

    Raises:
        UnreadableMessage: not a download task.
    """
    task = decode(raw, DownloadTask)
    require_names(task, "trace_id", "domain")
    if not task.attachment_url.strip() or len(task.attachment_url) > MAX_URL_LENGTH:
        raise UnreadableMessage(f"Not a DownloadTask: attachment_url must be 1 to {MAX_URL_LENGTH} characters.")
    if len(task.destination_path) > MAX_PATH_LENGTH:
        raise UnreadableMessage(f"Not a DownloadTask: destination_path is longer than {MAX_PATH_LENGTH} characters.")
    if not 1 <= task.attempt <= MOST_ATTEMPTS:
        raise UnreadableMessage(f"Not a DownloadTask: attempt must be between 1 and {MOST_ATTEMPTS}.")
    if task.expected_size is not None and not 0 <= task.expected_size <= LARGEST_SIZE:
        raise UnreadableMessage(f"Not a DownloadTask: expected_size must be between 0 and {LARGEST_SIZE}.")
    return task


def attachment_key(trace_id: str, attachment_url: str) -> str:
    """The partition key of one attachment: readable, short, stable. The address's query string shows in the hash only.

    Args:
        trace_id: of the event.
        attachment_url: as the event gives it.
    """
    digest = hashlib.sha256(f"{trace_id}\n{attachment_url}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{_readable(attachment_url)}~{digest[:KEY_HASH_LENGTH]}"


def _readable(attachment_url: str) -> str:
    try:
        path = urlsplit(attachment_url).path
    except ValueError:
        path = ""
    name = re.sub(r"[^\w.\-]+", "_", unquote(path).rpartition("/")[2])
    # Dagster takes no key with three dots in a row.
    name = re.sub(r"\.{2,}", ".", name)[-KEY_NAME_LENGTH:].strip("_")
    return name or "attachment"
