"""FileEvent and PollingJob: a file to ingest, and a request to list a source.

File events use the topics `file-event-queue` and, in their short form, `file_events`; polling jobs `polling-queue`. A
file's partition key is defined here, so that discovery and ingest agree on it: the same version of a file at the same
location has the same key, however often and by whichever producer its event is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from ingest_project.contracts import (
    MAX_NAME_LENGTH,
    decode,
    plainly,
    require_details,
    require_texts,
    utc,
    without_null_values,
)
from ingest_project.core import plugins
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.items import key_of

# What the shipped dataset takes.
INGESTIBLE_TYPES = ("csv", "xlsx", "xls")
# The shipped dataset. It takes every file that belongs to no declared one.
SENSOR_READINGS = "sensor_readings"
# File types that a declared dataset may have, in addition to those of readers of other packages.
SHIPPED_TYPES = (*INGESTIBLE_TYPES, "tsv", "psv", "txt", "dat", "json", "jsonl", "ndjson", "parquet", "zip")
COMPRESSED_TYPES = ("gz", "bz2", "xz", "zst")
MAX_PATH_BYTES = 4_096
MAX_PATTERN_BYTES = 512
MAX_SIZE_BYTES = 2**63 - 1
MAX_FILE_EVENT_TEXTS = {
    "file_path": MAX_PATH_BYTES,
    "file_name": 1_024,
    "event_id": 512,
    "job_id": 1_024,
    "source_type": 64,
    "file_type": 64,
    "etag": 1_024,
    "trace_id": 1_024,
}
MAX_POLLING_JOB_TEXTS = {"job_id": 800, "file_pattern": MAX_PATTERN_BYTES, "trace_id": 1_024}
# In the metadata of a file: the store's own name of its version, where the store keeps versions.
VERSION_ID = "s3_version_id"
SECRET_NAMES = ("password", "secret", "token", "access_key", "private_key", "connection_string", "sas", "account_key")

Priority = Literal["low", "normal", "high"]


class FileEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one file.

    Args:
        source_type: kind of source; the short form of older producers has none and means a local file.
        file_path: location of the file in the terms of its source (path, object key, address).
        size_bytes: as listed; None when the sender does not know.
        modified_at: as listed, UTC; None when the sender does not know.
        etag: the source's own name for this version, if it has one.
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
        """Return the file type by the extension, in lower case without the dot; empty if it has none."""
        return file_type_of(self.file_name)


class PollingJob(msgspec.Struct, frozen=True, kw_only=True):
    """A request to list a source and publish an event for each new file.

    Args:
        job_id: chosen by the sender; sending it again requests another listing of the same source.
        source_config: `source_type`, `path`, and the other fields of that type of source. Never a secret: a job names
            stored credentials (`"credentials": "warehouse-sftp"`).
        file_pattern: glob that file names must match.
        priority: high goes before normal before low.
        metadata: carried along to every file event; `format` names a reader profile.
    """

    job_id: str
    source_config: dict[str, Any]
    file_pattern: str = "*"
    priority: Priority = "normal"
    metadata: dict[str, Any] = {}
    trace_id: str | None = None

    @property
    def source_type(self) -> str:
        """Kind of source, e.g. `local`."""
        return str(self.source_config["source_type"])

    @property
    def path(self) -> str:
        """Folder, prefix or listing address."""
        return str(self.source_config.get("path", ""))


def file_type_of(file_name: str) -> str:
    """Return the file type by the extension, in lower case: `csv` for `A.CSV`, `csv.gz` for `a.csv.gz`.

    Empty for a name without extension.
    """
    stem, ending = _split_ending(file_name)
    inner = _split_ending(stem)[1] if ending in COMPRESSED_TYPES else ""
    return f"{inner}.{ending}" if _has_reader(inner) else ending


def _split_ending(name: str) -> tuple[str, str]:
    stem, dot, ending = name.rpartition(".")
    return (stem, ending.lower()) if dot and stem else ("", "")


def type_inside(file_type: str) -> str:
    """Return the type without the compression around it: `csv` of `csv.gz`, nothing of `gz` alone."""
    inner, _, _ = file_type.partition(".")
    return "" if inner in COMPRESSED_TYPES else inner


def is_readable(file_type: str) -> bool:
    """Return True for a type that a declared dataset may take."""
    return file_type in COMPRESSED_TYPES or _has_reader(type_inside(file_type))


def _has_reader(file_type: str) -> bool:
    return file_type in SHIPPED_TYPES or file_type in plugins.installed(plugins.READERS)


def decode_file_event(raw: bytes | None) -> FileEvent:
    """Decode a message of `file-event-queue` or `file_events`.

    Raises:
        UnreadableMessageError: not a file event. Which file types are ingested, its dataset decides.
    """
    return checked(decode(raw, FileEvent))


def checked(event: FileEvent) -> FileEvent:
    """Return a file event with its times in UTC.

    Raises:
        UnreadableMessageError: a field is empty, too long or impossible; names it.
    """
    if not event.file_path.strip() or not event.file_name.strip():
        raise UnreadableMessageError("Not a FileEvent: file_path and file_name must not be empty.")
    require_texts(event, MAX_FILE_EVENT_TEXTS)
    require_details(event, "metadata", "source_config")
    _require_format(event, event.metadata)
    if event.size_bytes is not None and not 0 <= event.size_bytes <= MAX_SIZE_BYTES:
        raise UnreadableMessageError(f"Not a FileEvent: size_bytes must be between 0 and {MAX_SIZE_BYTES}.")
    # Producers take the name from the end of an address, with the query that may sign it.
    query = event.file_path.partition("?")[2] if event.file_path.startswith(("http://", "https://")) else ""
    return msgspec.structs.replace(
        event,
        file_name=event.file_name.removesuffix(f"?{query}") if query else event.file_name,
        modified_at=utc(event.modified_at, FileEvent, "modified_at"),
        discovered_at=utc(event.discovered_at, FileEvent, "discovered_at"),
        source_config=without_null_values(event.source_config),
    )


def decode_polling_job(raw: bytes | None) -> PollingJob:
    """Decode a message of `polling-queue`.

    Raises:
        UnreadableMessageError: not a polling job; also when it carries a secret, which must not travel in messages.
    """
    job = decode(raw, PollingJob)
    if not job.job_id.strip() or len(job.job_id) > 200:  # noqa: PLR2004 - the reason names the bound
        raise UnreadableMessageError("Not a PollingJob: job_id must have 1 to 200 characters.")
    require_texts(job, MAX_POLLING_JOB_TEXTS)
    require_details(job, "metadata", "source_config")
    _require_format(job, job.metadata)
    trace_id = job.metadata.get("trace_id")
    if trace_id is not None and not (isinstance(trace_id, str) and len(trace_id) <= MAX_NAME_LENGTH):
        raise UnreadableMessageError(
            f"Not a PollingJob: metadata.trace_id must be a text of at most {MAX_NAME_LENGTH}."
        )
    job = msgspec.structs.replace(job, source_config=without_null_values(job.source_config))
    try:
        config = msgspec.convert(job.source_config, _SourceConfig)
    except msgspec.ValidationError as error:
        raise UnreadableMessageError(f"Not a PollingJob: {plainly(error)} (in source_config).") from error
    if config.source_type in {"local", "http"} and not config.path.strip():
        raise UnreadableMessageError("Not a PollingJob: source_config.path must say where to look.")
    if len(config.path.encode()) > MAX_PATH_BYTES:
        raise UnreadableMessageError(f"Not a PollingJob: source_config.path is longer than {MAX_PATH_BYTES} bytes.")
    if problem := secret_problem(job.source_config):
        raise UnreadableMessageError(problem)
    return job


def secret_problem(source_config: Mapping[str, Any]) -> str:
    """Describe a secret in a `source_config`, which logs and dead letters would show; empty for none."""
    carried = next((name for name in source_config if name.lower() in SECRET_NAMES), None)
    return (
        f'source_config carries {carried!r}: name stored credentials instead ("credentials": "…").' if carried else ""
    )


def file_key(location: str, file_name: str, version: str, profile: str, dataset: str = SENSOR_READINGS) -> str:
    """Make the partition key of one version of one file, read by one profile: readable, short, stable.

    Everything that determines the meaning of its bytes is part of it, except the content of the profile: the person who
    corrects a profile decides which files are read again.

    Args:
        location: canonical address of the file, unique over all sources, e.g. `local:/data/in/a.csv`.
        file_name: a profile may read a device from it, and its extension decides how the file is read.
        version: identifies this version of the file, see `version_of`.
        profile: name of the reader profile, see `profile_named`.
        dataset: dataset of the file.
    """
    return key_of(file_name, location, file_name, version, profile, *of_dataset(dataset))


def of_dataset(dataset: str) -> tuple[str, ...]:
    """Return the part that a dataset adds to the identity of its files: empty for the shipped one, else its name."""
    return () if dataset == SENSOR_READINGS else (dataset,)


def profile_named(metadata: Mapping[str, Any], default: str) -> str:
    """Return the reader profile that the metadata of a job or an event names, else the default one."""
    return str(metadata.get("format") or default)


def version_of_event(event: FileEvent) -> str:
    """Identify the version that an event announces; a store that keeps versions names it.

    Content that an object had before, written again, is a version of its own then.
    """
    version_id = event.metadata.get(VERSION_ID)
    version = version_of(event.etag, event.size_bytes, event.modified_at)
    return f"{version} version={version_id}" if version_id else version


def version_of(etag: str | None, size_bytes: int | None, modified_at: datetime | None) -> str:
    """Identify a version of a file by its etag, else by its size and modification time."""
    if etag:
        return f"etag={etag}"
    changed = modified_at.astimezone(UTC).isoformat(timespec="microseconds") if modified_at else "unknown"
    return f"size={size_bytes} modified={changed}"


class _SourceConfig(msgspec.Struct):
    source_type: str
    path: str = ""
    credentials: str | None = None


def _require_format(message: msgspec.Struct, metadata: dict[str, Any]) -> None:
    """Reject a message whose `format` is not the name of a reader profile."""
    name = metadata.get("format")
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME_LENGTH):
        kind = type(message).__name__
        raise UnreadableMessageError(f"Not a {kind}: metadata.format must name a reader profile, in a text.")
