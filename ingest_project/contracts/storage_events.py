"""Notifications of object stores on `file-event-queue`: one message names one or more objects that were written.

Recognized are those of S3 and of servers that speak its protocol (`Records`, MinIO's `EventName` and `Key`, wrapped by
SNS, or from EventBridge), and Azure Event Grid's, in its own schema or as CloudEvents, alone or in a list. An object
that was written becomes a file event; deletions, tests, confirmations and incomplete writes are ignored, and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit

import msgspec

from ingest_project.contracts import plainly, require_readable_size, require_single_names
from ingest_project.contracts.files import VERSION_ID, FileEvent, checked
from ingest_project.core.errors import UnreadableMessageError

MAX_RECORDS = 5_000
MAX_NAME_OF_EVENT = 100
TEST_EVENT = "s3:TestEvent"
CREATED_IN_S3 = "ObjectCreated:"
CREATED_BY_EVENTBRIDGE = "Object Created"
CREATED_IN_AZURE = frozenset({"Microsoft.Storage.BlobCreated", "Microsoft.Fabric.OneLake.FileCreated"})
# ADLS Gen2 reports a file when it is created, empty, and again when its writer has flushed and closed it.
COMPLETE_WRITE = re.compile(r"(Put|Copy)\w+|FlushWithClose|SftpCommit")
NO_VERSION = "null"


class Ignored(StrEnum):
    """Why a record of a notification announces no file."""

    DELETED = "deleted"
    TEST = "test"
    SUBSCRIPTION = "subscription"
    FOLDER = "folder"
    INCOMPLETE_WRITE = "incomplete_write"
    OTHER_EVENT = "other_event"


DELETED = re.compile(r"(s3:)?(ObjectRemoved|LifecycleExpiration):.*|Object Deleted|Microsoft\.[\w.]+Deleted")
SUBSCRIPTION = re.compile(r"(Subscription|Unsubscribe)Confirmation|Microsoft\.EventGrid\.Subscription\w+")


@dataclass
class StorageNotification:
    """The records of one notification.

    Args:
        files: a file event for each object that was written, without the configuration of its source.
        rejected: why the others are not ingested, one sentence each, which names the record.
        ignored: names of events that announce no complete file, each with why, and their number.
    """

    files: list[FileEvent] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    ignored: Counter[tuple[str, Ignored]] = field(default_factory=Counter)


class _Name(msgspec.Struct):
    name: str


class _Object(msgspec.Struct):
    key: str
    size: int | None = None
    etag: str | None = msgspec.field(default=None, name="eTag")
    version_id: str | None = msgspec.field(default=None, name="versionId")
    sequencer: str | None = None


class _S3Entity(msgspec.Struct):
    bucket: _Name
    object: _Object


class _S3Record(msgspec.Struct):
    s3: _S3Entity
    at: datetime | None = msgspec.field(default=None, name="eventTime")


class _BridgeObject(msgspec.Struct):
    key: str
    size: int | None = None
    etag: str | None = None
    version_id: str | None = msgspec.field(default=None, name="version-id")


class _BridgeDetail(msgspec.Struct):
    bucket: _Name
    object: _BridgeObject


class _BridgeEvent(msgspec.Struct):
    detail: _BridgeDetail
    id: str = ""
    at: datetime | None = msgspec.field(default=None, name="time")


class _Blob(msgspec.Struct):
    url: str
    etag: str | None = msgspec.field(default=None, name="eTag")
    size: int | None = msgspec.field(default=None, name="contentLength")


class _AzureEvent(msgspec.Struct, rename="camel"):
    data: _Blob
    id: str = ""
    event_time: datetime | None = None
    # The name of `event_time` in CloudEvents.
    time: datetime | None = None


def decode_storage_notification(raw: bytes | None) -> StorageNotification | None:
    """Decode a notification; None for any other message.

    Raises:
        UnreadableMessageError: it has more than MAX_RECORDS records or an object with a name twice, or SNS wrapped
            something else.
    """
    content, text = _json(raw), raw or b""
    if isinstance(content, dict) and content.get("Type") == "Notification" and isinstance(content.get("Message"), str):
        require_single_names(text)
        text = content["Message"].encode("utf-8", "replace")
        content = _json(text)
        if _named_records(content) is None:
            raise UnreadableMessageError("Not a FileEvent: SNS wrapped a message that is no notification of S3.")
    records = _named_records(content)
    if records is None:
        return None
    require_single_names(text)
    if len(records) > MAX_RECORDS:
        raise UnreadableMessageError(f"The notification has {len(records)} records; at most {MAX_RECORDS} are read.")
    notification = StorageNotification()
    for number, (name, record) in enumerate(records, 1):
        _add(notification, f"record {number}: " if len(records) > 1 else "", name, record)
    return notification


def _json(raw: bytes | None) -> Any:  # noqa: ANN401 - anything that JSON can hold
    try:
        return msgspec.json.decode(require_readable_size(raw))
    except (UnreadableMessageError, ValueError, RecursionError):
        return None


def _named_records(content: object) -> list[tuple[str, Any]] | None:
    """Return the records of a notification, each with the name of its event; None for anything else."""
    found: list[tuple[str, Any]] | None = None
    match content:
        case {"Records": [_, *_] as records} if any(isinstance(_name_of(record), str) for record in records):
            # Other services and applications use the same key in messages without event names.
            found = [(str(_name_of(record) or ""), record) for record in records]
        case {"EventName": str(name), "Key": str(key)}:
            bucket, _, key = key.partition("/")
            # MinIO writes the key literally here, and percent-encoded in its records.
            found = [(name, {"detail": {"bucket": {"name": bucket}, "object": {"key": key}}})]
        case {"Event": "s3:TestEvent" as name} | {
            "Type": ("SubscriptionConfirmation" | "UnsubscribeConfirmation") as name,
            "TopicArn": str(),
        }:
            found = [(name, {})]
        case (
            {"detail-type": str(name), "source": "aws.s3", "detail": _}
            | {"eventType": str(name), "data": _}
            | {"specversion": str(), "type": str(name)}
        ):
            found = [(name, content)]
        case [_, *_]:
            each = [_named_records(one) if isinstance(one, dict) else None for one in content]
            if any(each):
                found = [record for one in each for record in one or [("", None)]]
    return found


def _name_of(record: object) -> object:
    return record.get("eventName") if isinstance(record, dict) else None


def _add(notification: StorageNotification, which: str, name: str, record: Any) -> None:  # noqa: ANN401 - see `_json`
    """Add the file that one record announces."""
    try:
        found = _file_of(name, record)
    except (msgspec.ValidationError, UnreadableMessageError, ValueError) as error:
        notification.rejected.append(f"{which}{plainly(error).removesuffix('.')[:300]}")
        return
    if isinstance(found, Ignored):
        notification.ignored[name[:MAX_NAME_OF_EVENT], found] += 1
    else:
        notification.files.append(found)


def _file_of(name: str, record: Any) -> FileEvent | Ignored:  # noqa: ANN401 - see `_json`
    """Return the file that a record announces, or why it announces none."""
    if not name:
        raise UnreadableMessageError("it names no event of a store")
    if name in CREATED_IN_AZURE:
        return _azure_file(record)
    event = name.removeprefix("s3:")
    if not event.startswith((CREATED_IN_S3, CREATED_BY_EVENTBRIDGE)):
        return _reason_ignored(name)
    if "detail" in record:
        bridged = msgspec.convert(record, _BridgeEvent)
        found = bridged.detail.object
        return _s3_file(bridged.detail.bucket.name, found.key, found, bridged.id, bridged.at)
    written = msgspec.convert(record, _S3Record)
    key = unquote_plus(written.s3.object.key, errors="strict")
    return _s3_file(written.s3.bucket.name, key, written.s3.object, written.s3.object.sequencer or "", written.at)


def _reason_ignored(name: str) -> Ignored:
    if name == TEST_EVENT:
        return Ignored.TEST
    if DELETED.fullmatch(name):
        return Ignored.DELETED
    return Ignored.SUBSCRIPTION if SUBSCRIPTION.fullmatch(name) else Ignored.OTHER_EVENT


def _s3_file(
    bucket: str, key: str, found: _Object | _BridgeObject, event_id: str, at: datetime | None
) -> FileEvent | Ignored:
    if key.endswith("/"):
        # Some tools mark a folder by such an empty object.
        return Ignored.FOLDER
    version = found.version_id if found.version_id != NO_VERSION else None
    return checked(
        FileEvent(
            event_id=event_id,
            source_type="s3",
            file_path=f"s3://{bucket}/{key}",
            file_name=key.rpartition("/")[2],
            size_bytes=found.size,
            etag=_unquoted(found.etag),
            discovered_at=at,
            metadata={VERSION_ID: version} if version else {},
        )
    )


def _azure_file(record: Mapping[str, Any]) -> FileEvent | Ignored:
    data = record.get("data")
    api = data.get("api") if isinstance(data, dict) else None
    if api is not None and not COMPLETE_WRITE.fullmatch(str(api)):
        return Ignored.INCOMPLETE_WRITE
    event = msgspec.convert(record, _AzureEvent)
    return checked(
        FileEvent(
            event_id=event.id,
            source_type="onelake",
            file_path=event.data.url,
            file_name=unquote(urlsplit(event.data.url).path, errors="strict").rpartition("/")[2],
            size_bytes=event.data.size,
            etag=_unquoted(event.data.etag),
            discovered_at=event.event_time or event.time,
        )
    )


def _unquoted(etag: str | None) -> str | None:
    return (etag or "").strip('"') or None
