"""FileEvent: a file is there to be ingested (topics `file-event-queue` and, in its short form, `file_events`).

A file's partition key is made here, so that discovery and ingest agree on it: the same version of a file at the same
place has the same key, however often and by whomever its event is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from ingest_project.contracts.decoding import (
    MAX_NAME_LENGTH,
    decode,
    require_details,
    require_texts,
    utc,
    without_null_values,
)
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.keys import key_of

INGESTIBLE_TYPES = ("csv", "xlsx", "xls")
MAX_PATH_BYTES = 4_096
LARGEST_SIZE = 2**63 - 1
LONGEST_TEXTS = {
    "file_path": MAX_PATH_BYTES,
    "file_name": 1_024,
    "event_id": 512,
    "job_id": 1_024,
    "source_type": 64,
    "file_type": 64,
    "etag": 1_024,
    "trace_id": 1_024,
}


class FileEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one file.

    Args:
        source_type: kind of source; the short form of older producers has none and means a local file.
        file_path: where the file is, in the terms of its source (path, object key, address).
        size_bytes: as listed; None when the sender does not know.
        modified_at: as listed, UTC; None when the sender does not know.
        etag: the source's own name for this version, where it has one.
        metadata: from the polling job; `format` names a reader profile.
        source_config: the polling job's, so that the file can be read again later.
    """

    file_path: str
    file_name: str
    event_id: str = ""
    job_id: str | None = None
    source_type: str = "local"
    file_type: str | None = None
    size_bytes: int | None = None
    modified_at: datetime | None = None
    etag: str | None = None
    discovered_at: datetime | None = None
    trace_id: str | None = None
    metadata: dict[str, Any] = {}
    source_config: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        """File type by the ending of the name, in lower case without the dot; empty when it has none."""
        return file_type_of(self.file_name)


def file_type_of(file_name: str) -> str:
    """`csv` for `A.CSV`; empty for a name without ending."""
    stem, dot, ending = file_name.rpartition(".")
    return ending.lower() if dot and stem else ""


def decode_file_event(raw: bytes | None) -> FileEvent:
    """One message of `file-event-queue` or `file_events`.

    Raises:
        UnreadableMessageError: not a file event, or not of a file type that is ingested.
    """
    event = decode(raw, FileEvent)
    if not event.file_path.strip() or not event.file_name.strip():
        raise UnreadableMessageError("Not a FileEvent: file_path and file_name must not be empty.")
    require_texts(event, LONGEST_TEXTS)
    require_details(event, "metadata", "source_config")
    require_format(event, event.metadata)
    if event.size_bytes is not None and not 0 <= event.size_bytes <= LARGEST_SIZE:
        raise UnreadableMessageError(f"Not a FileEvent: size_bytes must be between 0 and {LARGEST_SIZE}.")
    if event.kind not in INGESTIBLE_TYPES:
        raise UnreadableMessageError(
            f"Only {', '.join(INGESTIBLE_TYPES)} are ingested, not {event.kind or 'no type'!r}."
        )
    return msgspec.structs.replace(
        event,
        modified_at=utc(event.modified_at, FileEvent, "modified_at"),
        discovered_at=utc(event.discovered_at, FileEvent, "discovered_at"),
        source_config=without_null_values(event.source_config),
    )


def require_format(message: msgspec.Struct, metadata: dict[str, Any]) -> None:
    """Refuse a message whose metadata names no reader profile where it should.

    Raises:
        UnreadableMessageError: `format` is there and is no name.
    """
    name = metadata.get("format")
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME_LENGTH):
        kind = type(message).__name__
        raise UnreadableMessageError(f"Not a {kind}: metadata.format must name a reader profile, in a text.")


def file_key(location: str, file_name: str, version: str, profile: str) -> str:
    """Make the partition key of one version of one file, read by one profile: readable, short, stable.

    Everything that determines what its bytes mean is part of it. The content of the profile is not: who mends a profile
    decides which files are read again.

    Args:
        location: canonical address of the file, unique over all sources, e.g. `local:/data/in/a.csv`.
        file_name: a profile may take a device from it, and its ending says how the file is read.
        version: what tells this version from others, see `version_of`.
        profile: name of the reader profile, see `profile_named`.
    """
    return key_of(file_name, location, file_name, version, profile)


def profile_named(metadata: Mapping[str, Any], default: str) -> str:
    """Name the reader profile that a job's or an event's metadata asks for, else the default one."""
    return str(metadata.get("format") or default)


def version_of(etag: str | None, size_bytes: int | None, modified_at: datetime | None) -> str:
    """What tells one version of a file from another: its etag, else its size and time of change."""
    if etag:
        return f"etag={etag}"
    changed = modified_at.astimezone(UTC).isoformat(timespec="microseconds") if modified_at else "unknown"
    return f"size={size_bytes} modified={changed}"
