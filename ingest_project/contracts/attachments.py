"""AttachmentEvent and the messages of a download: the task, the cached file, the result.

An event (topic `events.raw`) names the files that belong to what happened in a business domain; an entry that cannot be
an attachment is set apart with the reason and does not affect the others. Downloads travel on the topics `downloads.*`.
An attachment's partition key is defined here: the same address in the same trace is the same attachment, however often
and by whichever producer it is requested.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import msgspec

from ingest_project.contracts import decode, plainly, require_names, utc
from ingest_project.core.errors import UnreadableMessageError

MAX_ATTACHMENTS = 10_000
SHOWN_LENGTH = 200
MAX_URL_LENGTH = 8_192
MAX_PATH_LENGTH = 2_048
MAX_TEXT_LENGTH = 1_024
# As the name of a folder: file systems allow 255 bytes, and a Delta table names it `domain=…`, percent-encoded.
MAX_ENCODED_DOMAIN_LENGTH = 240
MAX_ATTEMPTS = 1_000
MAX_SIZE_BYTES = 2**63 - 1
KEY_NAME_LENGTH = 60
# 128 bits: a second address with the same hash cannot be found by search.
KEY_HASH_LENGTH = 32


class DeclaredAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """A file as the event declares it.

    Args:
        url: its address.
        file_name: its name; None: the server or the URL decides.
        content_type: the expected type, e.g. `image/jpeg`; a download of another type is rejected.
        size_bytes: the expected length.
        checksum: `sha256:...`, `md5:...` or bare hexadecimal digits.
    """

    url: str
    file_name: str | None = None
    content_type: str | None = None
    size_bytes: int | None = None
    checksum: str | None = None


class RefusedAttachment(NamedTuple):
    """An entry of an event that cannot be an attachment.

    Args:
        url: its address if it has one, else the beginning of the entry; never empty.
        entry: the whole entry, as JSON.
        reason: the mistake, with its position in the event.
    """

    url: str
    entry: str
    reason: str


class AttachmentEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event with zero or more attachments.

    Args:
        trace_id: the sender's name for what happened; the same file of the same trace is one attachment.
        domain: decides where files are stored.
        attachments: addresses, or objects with an address and file facts; others are set apart by `sorted_out`.
        payload: the event's own content; a domain's JSON path may find more addresses in it.
    """

    trace_id: str
    domain: str
    event_type: str = ""
    occurred_at: datetime | None = None
    attachments: list[Any] = []
    payload: Any = None

    def sorted_out(self) -> tuple[list[DeclaredAttachment], list[RefusedAttachment]]:
        """Return every entry in one form, and those that cannot be attachments."""
        declared: list[DeclaredAttachment] = []
        refused: list[RefusedAttachment] = []
        for number, entry in enumerate(self.attachments):
            found = declared_or_refused(entry, f"attachments[{number}]")
            if isinstance(found, RefusedAttachment):
                refused.append(found)
            else:
                declared.append(found)
        return declared, refused


class DownloadStatus(StrEnum):
    """The result of an attempt."""

    SUCCESS = "success"
    FAILED_TRANSIENT = "failed_transient"
    FAILED_PERMANENT = "failed_permanent"


class DownloadTask(msgspec.Struct, frozen=True, kw_only=True):
    """One file to download (topics `downloads.pending`, `downloads.retry.*` and `downloads.dlq`).

    Args:
        destination_path: its path in the attachment store; empty: the domain's template decides.
        attempt: number of this attempt, from 1.
        expected_size: bytes, if known.
        checksum: `sha256:...`, `md5:...` or bare hexadecimal digits, if known.
        file_name: its name, if the event has one.
        content_type: the expected type, if the event has one.
        refused: the reason if its entry in the event cannot be an attachment; it is not downloaded.
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

    The fields of the task, and the path of the bytes until they are stored. `sha256` is in hexadecimal digits.
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
    """The result of one attempt (topic `downloads.results`, and a row of the Delta table `attachment_results`)."""

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


def decode_attachment_event(raw: bytes | None) -> AttachmentEvent:
    """Decode a message of `events.raw`.

    Raises:
        UnreadableMessageError: not an attachment event.
    """
    event = decode(raw, AttachmentEvent)
    require_names(event, "trace_id", "domain")
    _require_domain(event, event.domain)
    if len(event.event_type) > MAX_TEXT_LENGTH:
        raise UnreadableMessageError(f"Not an AttachmentEvent: event_type is longer than {MAX_TEXT_LENGTH} characters.")
    if len(event.attachments) > MAX_ATTACHMENTS:
        raise UnreadableMessageError(f"Not an AttachmentEvent: more than {MAX_ATTACHMENTS} attachments.")
    return msgspec.structs.replace(event, occurred_at=utc(event.occurred_at, AttachmentEvent, "occurred_at"))


def decode_download_task(raw: bytes | None) -> DownloadTask:
    """Decode a message of `downloads.pending` or a retry topic.

    Raises:
        UnreadableMessageError: not a download task.
    """
    task = decode(raw, DownloadTask)
    require_names(task, "trace_id", "domain")
    _require_domain(task, task.domain)
    if not task.attachment_url.strip() or len(task.attachment_url) > MAX_URL_LENGTH:
        raise UnreadableMessageError(f"Not a DownloadTask: attachment_url must be 1 to {MAX_URL_LENGTH} characters.")
    if "\x00" in task.attachment_url:
        raise UnreadableMessageError("Not a DownloadTask: attachment_url contains a NUL character.")
    if len(task.destination_path) > MAX_PATH_LENGTH:
        raise UnreadableMessageError(
            f"Not a DownloadTask: destination_path is longer than {MAX_PATH_LENGTH} characters."
        )
    if not 1 <= task.attempt <= MAX_ATTEMPTS:
        raise UnreadableMessageError(f"Not a DownloadTask: attempt must be between 1 and {MAX_ATTEMPTS}.")
    if task.expected_size is not None and not 0 <= task.expected_size <= MAX_SIZE_BYTES:
        raise UnreadableMessageError(f"Not a DownloadTask: expected_size must be between 0 and {MAX_SIZE_BYTES}.")
    for field in ("event_type", "checksum", "file_name", "content_type", "refused"):
        if len(getattr(task, field) or "") > MAX_TEXT_LENGTH:
            raise UnreadableMessageError(f"Not a DownloadTask: {field} is longer than {MAX_TEXT_LENGTH} characters.")
    return msgspec.structs.replace(task, occurred_at=utc(task.occurred_at, DownloadTask, "occurred_at"))


def declared_or_refused(entry: Any, position: str) -> DeclaredAttachment | RefusedAttachment:  # noqa: ANN401 - any JSON
    """Return an entry of an event in one form, or the reason why it cannot be an attachment.

    Args:
        entry: as the event has it.
        position: in the event, for the reason.
    """
    try:
        return _parse_entry(entry)
    except msgspec.ValidationError as error:
        text = msgspec.json.encode(entry).decode()
        url = entry.get("url") if isinstance(entry, dict) else entry
        shown = url[:MAX_URL_LENGTH] if isinstance(url, str) and url.strip() else text[:SHOWN_LENGTH]
        return RefusedAttachment(shown, text, f"{position} cannot be an attachment: {plainly(error)}.")


def attachment_key(trace_id: str, attachment_url: str) -> str:
    """Return the partition key of one attachment: readable, short, stable. The query string is part of the hash only.

    Args:
        trace_id: trace id of the event.
        attachment_url: as the event gives it.
    """
    return f"{_readable_name(attachment_url)}~{attachment_hash(trace_id, attachment_url)}"


def refused_attachment_key(trace_id: str, attachment_url: str, entry: str) -> str:
    """Return the partition key of an entry that cannot be an attachment; never that of an attachment with its address.

    Args:
        trace_id: trace id of the event.
        attachment_url: its address, if it has one.
        entry: the whole entry, as JSON.
    """
    return f"{_readable_name(attachment_url)}~{attachment_hash(trace_id, entry)}"


def attachment_hash(trace_id: str, attachment_url: str) -> str:
    """Return 128 bits in hexadecimal that identify an attachment in its key and in the path it is stored under."""
    text = f"{trace_id}\n{attachment_url}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:KEY_HASH_LENGTH]


def _parse_entry(entry: object) -> DeclaredAttachment:
    named = {"url": entry} if isinstance(entry, str) else entry
    if not isinstance(named, dict):
        raise msgspec.ValidationError("Expected an address, or an object with a `url`")
    declared = msgspec.convert({n: v for n, v in named.items() if v is not None}, DeclaredAttachment)
    _require_possible(declared)
    return declared


def _require_possible(declared: DeclaredAttachment) -> None:
    if not declared.url.strip():
        raise msgspec.ValidationError("The address is empty")
    if "\x00" in declared.url:
        raise msgspec.ValidationError("The address contains a NUL character")
    if len(declared.url) > MAX_URL_LENGTH:
        raise msgspec.ValidationError(f"The address is longer than {MAX_URL_LENGTH} characters")
    if declared.size_bytes is not None and not 0 <= declared.size_bytes <= MAX_SIZE_BYTES:
        raise msgspec.ValidationError(f"size_bytes must be between 0 and {MAX_SIZE_BYTES}")
    for field in ("file_name", "content_type", "checksum"):
        if len(getattr(declared, field) or "") > MAX_TEXT_LENGTH:
            raise msgspec.ValidationError(f"{field} is longer than {MAX_TEXT_LENGTH} characters")


def _require_domain(message: msgspec.Struct, domain: str) -> None:
    """Reject a message whose domain, percent-encoded, is too long for the name of a folder."""
    length = len(quote(domain, safe=""))
    if length > MAX_ENCODED_DOMAIN_LENGTH:
        kind = type(message).__name__
        raise UnreadableMessageError(
            f"Not a {kind}: domain has {length} characters when it is percent-encoded, as the name of a folder is; "
            f"at most {MAX_ENCODED_DOMAIN_LENGTH} are allowed."
        )


def _readable_name(attachment_url: str) -> str:
    try:
        path = urlsplit(attachment_url).path
    except ValueError:
        path = ""
    name = re.sub(r"[^\w.\-]+", "_", unquote(path).rpartition("/")[2])
    # Dagster rejects keys with three dots in a row.
    name = re.sub(r"\.{2,}", ".", name)[-KEY_NAME_LENGTH:].strip("_")
    return name or "attachment"
