"""The messages of a download: the task, the file in the cache, the result (topics `downloads.*`).

An attachment's partition key is made here: the same address in the same trace is the same attachment, whoever asks
for it and however often.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit

import msgspec

from ingest_project.contracts.decoding import decode, require_names, utc
from ingest_project.core.errors import UnreadableMessageError

MAX_URL_LENGTH = 8_192
MAX_PATH_LENGTH = 2_048
MAX_TEXT_LENGTH = 1_024
# As the name of a folder: file systems take 255 bytes, and a Delta table calls it `domain=…`, percent-encoded.
MAX_ENCODED_DOMAIN_LENGTH = 240
MOST_ATTEMPTS = 1_000
LARGEST_SIZE = 2**63 - 1
KEY_NAME_LENGTH = 60
# 128 bits: an address that meets another one's hash cannot be searched for.
KEY_HASH_LENGTH = 32
# Of keys that were made before; their attachments keep them.
EARLIER_KEY_HASH_LENGTH = 12


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
        refused: why it is not downloaded, where its event says of it what cannot be.
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
    refused: str | None = None


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
        UnreadableMessageError: not a download task.
    """
    task = decode(raw, DownloadTask)
    require_names(task, "trace_id", "domain")
    require_domain(task, task.domain)
    if not task.attachment_url.strip() or len(task.attachment_url) > MAX_URL_LENGTH:
        raise UnreadableMessageError(f"Not a DownloadTask: attachment_url must be 1 to {MAX_URL_LENGTH} characters.")
    if "\x00" in task.attachment_url:
        raise UnreadableMessageError("Not a DownloadTask: attachment_url contains a NUL character.")
    if len(task.destination_path) > MAX_PATH_LENGTH:
        raise UnreadableMessageError(
            f"Not a DownloadTask: destination_path is longer than {MAX_PATH_LENGTH} characters."
        )
    if not 1 <= task.attempt <= MOST_ATTEMPTS:
        raise UnreadableMessageError(f"Not a DownloadTask: attempt must be between 1 and {MOST_ATTEMPTS}.")
    if task.expected_size is not None and not 0 <= task.expected_size <= LARGEST_SIZE:
        raise UnreadableMessageError(f"Not a DownloadTask: expected_size must be between 0 and {LARGEST_SIZE}.")
    for field in ("event_type", "checksum", "file_name", "content_type", "refused"):
        if len(getattr(task, field) or "") > MAX_TEXT_LENGTH:
            raise UnreadableMessageError(f"Not a DownloadTask: {field} is longer than {MAX_TEXT_LENGTH} characters.")
    return msgspec.structs.replace(task, occurred_at=utc(task.occurred_at, DownloadTask, "occurred_at"))


def require_domain(message: msgspec.Struct, domain: str) -> None:
    """Refuse a message whose domain no folder can be named after.

    Raises:
        UnreadableMessageError: it is longer than MAX_ENCODED_DOMAIN_LENGTH when it is percent-encoded.
    """
    length = len(quote(domain, safe=""))
    if length > MAX_ENCODED_DOMAIN_LENGTH:
        kind = type(message).__name__
        raise UnreadableMessageError(
            f"Not a {kind}: domain has {length} characters when it is percent-encoded, as the name of a folder is; "
            f"at most {MAX_ENCODED_DOMAIN_LENGTH} are taken."
        )


def attachment_key(trace_id: str, attachment_url: str) -> str:
    """The partition key of one attachment: readable, short, stable. The address's query string shows in the hash only.

    Args:
        trace_id: of the event.
        attachment_url: as the event gives it.
    """
    return f"{_readable(attachment_url)}~{attachment_hash(trace_id, attachment_url)}"


def refused_attachment_key(trace_id: str, attachment_url: str, entry: str) -> str:
    """The partition key of what an event names and what cannot be an attachment; of its own also where its address is.

    Args:
        trace_id: of the event.
        attachment_url: its address, as far as it has one.
        entry: all that the event says of it.
    """
    return f"{_readable(attachment_url)}~{attachment_hash(trace_id, entry)}"


def earlier_attachment_key(trace_id: str, attachment_url: str) -> str:
    """The key that the same attachment has if it was recorded while keys had shorter hashes."""
    return f"{_readable(attachment_url)}~{attachment_hash(trace_id, attachment_url)[:EARLIER_KEY_HASH_LENGTH]}"


def attachment_hash(trace_id: str, attachment_url: str) -> str:
    """128 bits in hexadecimal that stand for one attachment: in its key, and in the path it is stored under."""
    text = f"{trace_id}\n{attachment_url}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:KEY_HASH_LENGTH]


def _readable(attachment_url: str) -> str:
    try:
        path = urlsplit(attachment_url).path
    except ValueError:
        path = ""
    name = re.sub(r"[^\w.\-]+", "_", unquote(path).rpartition("/")[2])
    # Dagster takes no key with three dots in a row.
    name = re.sub(r"\.{2,}", ".", name)[-KEY_NAME_LENGTH:].strip("_")
    return name or "attachment"
