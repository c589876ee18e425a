"""EnrichedEvent: an action of a user (topic `user-activity-events`).

Types are strict: a number is not accepted as text. Fields that the contract does not know are not an error: they are
kept apart as JSON, so that a producer may add one before the contract has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ingest_project.contracts import not_json, plainly, require_readable_size
from ingest_project.contracts.single_names import SingleNames
from ingest_project.core.errors import UnreadableMessageError

MAX_NAME_LENGTH = 200
MAX_ID_LENGTH = 512
NO_JSON = Raw(b"")


class ClientInfo(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The user's browser, as it reports itself."""

    user_agent: str | UnsetType | None = UNSET
    screen_resolution: str | UnsetType | None = UNSET
    language: str | UnsetType | None = UNSET


class ServiceInfo(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The service that sent the event."""

    service_name: str | UnsetType | None = UNSET
    service_version: str | UnsetType | None = UNSET
    environment: str | UnsetType | None = UNSET


class ProcessingInfo(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The time that enriching the event took; both times are ISO 8601 as they were sent."""

    received_at: str | UnsetType | None = UNSET
    processed_at: str | UnsetType | None = UNSET
    processing_ms: float | UnsetType | None = UNSET


class EnrichedEvent(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One event. Times stay texts: parsing a whole column of them is many times faster. UNSET is a field without value.

    Args:
        event_id: identifies the event, also when it is delivered again.
        event_type: the action, e.g. `page_view`.
        timestamp: when it happened, ISO 8601; without zone it is UTC.
        event_data: a JSON object as it was sent, since its shape depends on the type; empty bytes without one.
    """

    event_id: str
    event_type: str
    timestamp: str
    request_id: str | UnsetType | None = UNSET
    user_id: str | UnsetType | None = UNSET
    session_id: str | UnsetType | None = UNSET
    page_url: str | UnsetType | None = UNSET
    event_data: Raw = NO_JSON
    client_info: ClientInfo | UnsetType | None = UNSET
    service_info: ServiceInfo | UnsetType | None = UNSET
    processing_info: ProcessingInfo | UnsetType | None = UNSET


KNOWN_FIELDS = frozenset(EnrichedEvent.__struct_fields__)
KNOWN_NESTED_FIELDS = {
    "client_info": frozenset(ClientInfo.__struct_fields__),
    "service_info": frozenset(ServiceInfo.__struct_fields__),
    "processing_info": frozenset(ProcessingInfo.__struct_fields__),
}
NAMES = SingleNames(KNOWN_NESTED_FIELDS)
MAX_CACHED_TYPES = 10_000

_encoder = msgspec.json.Encoder()
# Raises a msgspec error for a field that the contract does not know.
decode_known_fields = msgspec.json.Decoder(EnrichedEvent).decode
_fields = msgspec.json.Decoder(dict[str, Raw])
# Cache of checked types: most events have one of a few types.
_checked_types: set[str] = set()


def decode_enriched_event(raw: bytes | None) -> tuple[EnrichedEvent, bytes | None]:
    """Decode a message of `user-activity-events`, except its times and the content of `event_data`.

    Returns:
        the event, and a JSON object with the fields that the contract does not know; None without any.

    Raises:
        UnreadableMessageError: not an event; names the field.
    """
    raw = require_readable_size(raw)
    rescued = None
    try:
        event = decode_known_fields(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        event, rescued = _decode_with_unknown_fields(raw)
    check_names(event)
    return event, rescued


def check_names(event: EnrichedEvent) -> None:
    """Check the type and the id of an event.

    Raises:
        UnreadableMessageError: one of them is blank, too long or cannot be printed.
    """
    if event.event_type not in _checked_types:
        _check_type(event.event_type)
    if not 0 < len(event.event_id) <= MAX_ID_LENGTH or event.event_id.isspace():
        raise UnreadableMessageError(f"Not an EnrichedEvent: event_id must have 1 to {MAX_ID_LENGTH} characters.")


def have_sound_names(events: Sequence[EnrichedEvent]) -> bool:
    """Return whether `check_names` takes each of many events. False at times for sound ones, of types not seen yet."""
    ids = list(map(attrgetter("event_id"), events))
    return (
        _checked_types.issuperset(map(attrgetter("event_type"), events))
        and all(ids)
        and max(map(len, ids), default=0) <= MAX_ID_LENGTH
        and not any(map(str.isspace, ids))
    )


def _decode_with_unknown_fields(raw: bytes) -> tuple[EnrichedEvent, bytes | None]:
    """Return the event without the fields that the contract does not know, and these fields as JSON."""
    try:
        known = _fields.decode(raw)
        unknown = _pop_unknown(known, KNOWN_FIELDS)
        for name, fields in KNOWN_NESTED_FIELDS.items():
            if bytes(known.get(name, NO_JSON)).startswith(b"{"):
                inside = _fields.decode(known[name])
                if more := _pop_unknown(inside, fields):
                    known[name] = Raw(_encoder.encode(inside))
                    unknown[name] = Raw(_encoder.encode(more))
        event = decode_known_fields(_encoder.encode(known))
        return event, _encoder.encode(unknown) if unknown else None
    except msgspec.ValidationError as error:
        raise UnreadableMessageError(f"Not an EnrichedEvent: {plainly(error)}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(raw, error) from error


def _pop_unknown(fields: dict[str, Raw], known: frozenset[str]) -> dict[str, Raw]:
    return {name: fields.pop(name) for name in sorted(fields.keys() - known)}


def _check_type(event_type: str) -> None:
    if not event_type.strip() or len(event_type) > MAX_NAME_LENGTH or not event_type.isprintable():
        raise UnreadableMessageError(
            f"Not an EnrichedEvent: event_type must be 1 to {MAX_NAME_LENGTH} printable characters."
        )
    if len(_checked_types) < MAX_CACHED_TYPES:
        _checked_types.add(event_type)
