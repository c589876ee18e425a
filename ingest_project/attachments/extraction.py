"""Extract the addresses of attachment events, and make a download task of each.

An event is kept whole until its addresses are extracted: those that it declares, and those that JSONPaths find in its
payload. An entry that cannot be an attachment becomes a task as well, one with the reason why it is refused: it fails
like any other attachment, and is listed with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jsonpath
import msgspec

from ingest_project.attachments.queue import EventRecord, TaskArrival
from ingest_project.attachments.storage import Destinations, distinct_file_names
from ingest_project.contracts import encode
from ingest_project.contracts.attachments import (
    MAX_TEXT_LENGTH,
    AttachmentEvent,
    DeclaredAttachment,
    DownloadTask,
    RefusedAttachment,
    attachment_key,
    declared_or_refused,
    decode_attachment_event,
    refused_attachment_key,
)
from ingest_project.core.errors import SettingsError
from ingest_project.platform.http.file_names import chosen_file_name

EVERY_DOMAIN = "*"
# Limit for one event: senders are untrusted, and a path may match any number of values.
MAX_ADDRESSES = 10_000
# Time of an event where neither it nor Kafka has one.
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class AddressPaths:
    """The JSONPaths of each domain, compiled.

    Args:
        paths: by domain; those of `*` hold for every domain.

    Raises:
        SettingsError: one of them is not a JSONPath.
    """

    def __init__(self, paths: Mapping[str, Sequence[str]]) -> None:
        self._compiled = {domain: [_compile_path(text) for text in texts] for domain, texts in paths.items()}

    def find(self, domain: str, payload: object) -> Iterator[DeclaredAttachment | RefusedAttachment]:
        """Yield the findings of the domain's paths: addresses, objects with a `url`, or lists of either.

        A path that cannot be followed, as in a payload that is nested too deeply, is an entry that is refused.
        """
        if not isinstance(payload, dict | list):
            return
        for path in (*self._compiled.get(domain, ()), *self._compiled.get(EVERY_DOMAIN, ())):
            try:
                values = path.findall(payload)
            except (jsonpath.JSONPathError, RecursionError) as error:
                why = str(error).partition("\n")[0]
                yield RefusedAttachment(str(path), str(path), f"The JSONPath {path} cannot be followed: {why}.")
            else:
                for value in values:
                    yield from _attachments_in(value)


def named_in(event: AttachmentEvent, paths: AddressPaths) -> tuple[list[DeclaredAttachment], list[RefusedAttachment]]:
    """Return every attachment that an event names, declared ones first, and the entries that cannot be one.

    An address may occur more than once.
    """
    found, refused = event.sorted_out()
    for one in paths.find(event.domain, event.payload):
        if isinstance(one, RefusedAttachment):
            refused.append(one)
        elif one.url.strip():
            judged = declared_or_refused(msgspec.to_builtins(one), "What a path found in the payload")
            refused.append(judged) if isinstance(judged, RefusedAttachment) else found.append(judged)
    if len(found) > MAX_ADDRESSES:
        left_out = found[MAX_ADDRESSES:]
        reason = f"{len(left_out)} addresses were left out: at most {MAX_ADDRESSES} of one event are downloaded."
        entry = msgspec.json.encode([one.url for one in left_out]).decode()
        refused.append(RefusedAttachment(left_out[0].url, entry, reason))
    return found[:MAX_ADDRESSES], refused


def tasks_of(record: EventRecord, paths: AddressPaths, destinations: Destinations) -> list[TaskArrival]:
    """Return the download tasks of one event, one for each address that it names, in order; refused ones at the end.

    Args:
        record: the event, as the queue keeps it.
        paths: where addresses are in its payload.
        destinations: where files go.

    Raises:
        UnreadableMessageError: the stored body is no event.
    """
    event = decode_attachment_event(record.body.encode())
    declared, refused = named_in(event, paths)
    occurred_at = event.occurred_at or record.kafka_position.at or _NEVER
    names = distinct_names(declared)
    tasks = [_arrival(record, event, one, destinations, names[one.url], occurred_at=occurred_at) for one in declared]
    return tasks + [_refused_arrival(record, event, one, destinations, occurred_at) for one in refused]


def distinct_names(declared: Sequence[DeclaredAttachment]) -> dict[str, str]:
    """Return a file name for each address, no two of one event alike."""
    by_url = {one.url: one for one in reversed(declared)}
    named = [(chosen_file_name(one.file_name, None, one.url), url) for url, one in by_url.items()]
    return dict(zip(by_url, distinct_file_names(named), strict=True))


def _arrival(  # noqa: PLR0913 - a task is made of all of them
    record: EventRecord,
    event: AttachmentEvent,
    declared: DeclaredAttachment,
    destinations: Destinations,
    file_name: str,
    *,
    occurred_at: datetime,
) -> TaskArrival:
    task = DownloadTask(
        trace_id=event.trace_id,
        domain=event.domain,
        attachment_url=declared.url,
        destination_path=destinations.path(
            domain=event.domain,
            trace_id=event.trace_id,
            file_name=file_name,
            occurred_at=occurred_at,
            attachment_url=declared.url,
            event_type=event.event_type,
        ),
        event_type=event.event_type,
        occurred_at=event.occurred_at,
        expected_size=declared.size_bytes,
        checksum=declared.checksum,
        file_name=declared.file_name,
        content_type=declared.content_type,
    )
    key = attachment_key(event.trace_id, declared.url)
    return TaskArrival(key, task, encode(task).decode(), record.kafka_position, event_key=record.event_key)


def _refused_arrival(
    record: EventRecord,
    event: AttachmentEvent,
    refused: RefusedAttachment,
    destinations: Destinations,
    occurred_at: datetime,
) -> TaskArrival:
    declared = DeclaredAttachment(url=refused.url)
    file_name = chosen_file_name(None, None, refused.url)
    arrival = _arrival(record, event, declared, destinations, file_name, occurred_at=occurred_at)
    task = msgspec.structs.replace(arrival.task, refused=refused.reason[:MAX_TEXT_LENGTH])
    key = refused_attachment_key(event.trace_id, refused.url, refused.entry)
    return arrival._replace(attachment_key=key, task=task, raw=encode(task).decode())


def _attachments_in(value: Any) -> Iterator[DeclaredAttachment]:  # noqa: ANN401 - whatever a payload holds
    if isinstance(value, list):
        for one in value:
            yield from _attachments_in(one)
        return
    try:
        found = msgspec.convert(value, str | DeclaredAttachment)
    except msgspec.ValidationError:
        return
    yield DeclaredAttachment(url=found) if isinstance(found, str) else found


def _compile_path(text: str) -> jsonpath.CompoundJSONPath | jsonpath.JSONPath:
    try:
        return jsonpath.compile(text)
    except jsonpath.JSONPathError as error:
        raise SettingsError(f"INGEST_ATTACHMENT_URL_PATHS: {text!r} is not a JSONPath: {error}.") from None
