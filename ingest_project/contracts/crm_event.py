"""OpportunityEvent and ProjectEvent: a record changed in a CRM (topic `sales_events`).

The fields of a message decide which of the two it is: each kind has fields of its own, and a message is of a kind when
it has all of them. An `event_id` that begins with `opp_` or `proj_` must not contradict. A record replaces the stored
one as a whole, so a missing field could be a loss: a field may be null, but it must be present.

Numbers are taken from the JSON text as decimals, never through a float. Fields the contract does not know are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ingest_project.contracts import not_json, plainly, require_readable_size
from ingest_project.contracts.single_names import SingleNames
from ingest_project.core.errors import UnreadableMessageError

MAX_ID_LENGTH = 200
# Enough for any amount of money; without a bound 1e999999 would become a million digits.
MAX_WHOLE_DIGITS = 30
MAX_FRACTION_DIGITS = 20

UTF8_BOM = b"\xef\xbb\xbf"
# The escape of NUL; behind another backslash it is not an escape.
_NUL_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?")


class CrmKind(StrEnum):
    """The kind of record that a message is about."""

    OPPORTUNITY = "opportunity"
    PROJECT = "project"


class CrmEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """One version of one record; its class is its kind. Numbers are the JSON texts that were sent.

    A field with a default may be left out, which means null; it does not tell the kinds apart.

    Args:
        meta_data: the whole object, the JSON text as it was sent.
    """

    event_id: str
    name: str
    account_id: str | None
    owner_id: str | None
    meta_data: Raw


class Opportunity(CrmEvent, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """One version of an opportunity."""

    stage: str
    amount: Raw
    probability: Raw
    expected_close_date: date | None


class Project(CrmEvent, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """One version of a project."""

    status: str
    start_date: date | None
    end_date: date | None
    budget: Raw


class Meta(msgspec.Struct, frozen=True, gc=False):
    """The fields of `meta_data` that get columns of their own.

    Args:
        last_modified: the version; a time without zone is UTC.
    """

    last_modified: str
    source: str | UnsetType | None = UNSET
    tags: list[str] | UnsetType | None = UNSET
    notes: str | UnsetType | None = UNSET


class _OnlyMeta(Meta, frozen=True, gc=False, forbid_unknown_fields=True):
    pass


EVENTS: Mapping[CrmKind, type[CrmEvent]] = {CrmKind.OPPORTUNITY: Opportunity, CrmKind.PROJECT: Project}
FIELDS = {kind: msgspec.structs.fields(event) for kind, event in EVENTS.items()}
COMMON_FIELDS = tuple(field.name for field in msgspec.structs.fields(CrmEvent) if field.required)
META_FIELDS = Meta.__struct_fields__
# Required fields that only one kind has: they distinguish the kinds.
OWN_FIELDS = {
    kind: tuple(field.name for field in fields if field.required and field.name not in COMMON_FIELDS)
    for kind, fields in FIELDS.items()
}
# Optional fields with their defaults.
OPTIONAL_FIELDS = {
    kind: {field.name: field.default for field in fields if not field.required} for kind, fields in FIELDS.items()
}
NUMBERS = {CrmKind.OPPORTUNITY: ("amount", "probability"), CrmKind.PROJECT: ("budget",)}
ID_PREFIXES = {CrmKind.OPPORTUNITY: "opp_", CrmKind.PROJECT: "proj_"}
NAMES = SingleNames()

# Decoders of events that have the fields of one kind, and no others.
DECODERS = {kind: msgspec.json.Decoder(event).decode for kind, event in EVENTS.items()}
decode_known_meta = msgspec.json.Decoder(_OnlyMeta).decode
_meta = msgspec.json.Decoder(Meta)
_fields = msgspec.json.Decoder(dict[str, Raw])
_anything = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


def needs_change(raw: bytes) -> bool:
    """Return whether a message may have what `storable` leaves out."""
    return b"\\u0000" in raw or raw.startswith(UTF8_BOM)


def storable(raw: bytes) -> bytes:
    """Return a message without byte order mark and without escapes of NUL, which PostgreSQL cannot store."""
    raw = raw.removeprefix(UTF8_BOM)
    return _NUL_ESCAPE.sub(rb"\1\\ufffd", raw) if b"\\u0000" in raw else raw


def decode_crm_event(raw: bytes | None) -> tuple[CrmEvent, bytes | None]:
    """Decode a message of `sales_events`, except its numbers and `meta_data`.

    Returns:
        the event, and a JSON object with the fields that the contract does not know; None without any.

    Raises:
        UnreadableMessageError: neither an opportunity nor a project, or a field of it has an invalid value.
    """
    fields, values = _fields_of(storable(require_readable_size(raw)))
    kind = kind_of(values)
    others = {name: fields.pop(name) for name in sorted(fields.keys() - EVENTS[kind].__struct_fields__)}
    try:
        event = DECODERS[kind](_encoder.encode(fields))
    except msgspec.ValidationError as error:
        raise UnreadableMessageError(f"Not {_a(kind)}: {plainly(error)}.") from error
    return event, _encoder.encode(others) if others else None


def require_names(event: CrmEvent) -> None:
    """Check the id and the name of an event.

    Raises:
        UnreadableMessageError: one is empty or too long, or the id is that of the other kind.
    """
    kind = CrmKind.OPPORTUNITY if isinstance(event, Opportunity) else CrmKind.PROJECT
    by_id = _kind_by_id(_event_id({"event_id": event.event_id}))
    if by_id is not None and by_id is not kind:
        raise UnreadableMessageError(_contradiction(kind, by_id))
    if not event.name:
        raise UnreadableMessageError("name must not be empty.")


def has_sound_names(events: Sequence[CrmEvent]) -> bool:
    """Return whether `require_names` takes each of many events of one kind."""
    ids, names = [event.event_id for event in events], [event.name for event in events]
    other = ID_PREFIXES[CrmKind.PROJECT if events and isinstance(events[0], Opportunity) else CrmKind.OPPORTUNITY]
    return (
        all(ids)
        and all(names)
        and max(map(len, ids), default=0) <= MAX_ID_LENGTH
        and not any(one.isspace() or one.startswith(other) for one in ids)
    )


def decode_meta(raw: Raw) -> Meta:
    """Decode `meta_data`, which may have fields that the contract does not know.

    Raises:
        ValueError: it is not an object with these fields.
    """
    try:
        _anything.decode(raw)
        return _meta.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(plainly(error)[:200].replace("the message", "it")) from error


def number_of(text: str) -> Decimal:
    """Return the number as it was written, without its exponent.

    Raises:
        ValueError: it is no number, or has too many digits.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"must be a number, not {text[:40]}")
    number = Decimal(text)
    exponent = int(number.as_tuple().exponent)
    if -exponent > MAX_FRACTION_DIGITS or (number and number.adjusted() >= MAX_WHOLE_DIGITS):
        raise ValueError(f"has more than {MAX_WHOLE_DIGITS} digits before and {MAX_FRACTION_DIGITS} after the point")
    if not number:
        return number.copy_abs() if exponent <= 0 else Decimal(0)
    return number if exponent <= 0 else Decimal(format(number, "f"))


def kind_of(values: Mapping[str, object]) -> CrmKind:
    """Return the kind of a message by its fields and the prefix of its id.

    Raises:
        UnreadableMessageError: it is neither, or fields and id contradict each other.
    """
    by_id = _kind_by_id(_event_id(values))
    complete = [kind for kind, names in OWN_FIELDS.items() if values.keys() >= set(names)]
    if by_id in complete or (by_id is None and len(complete) == 1):
        kind = by_id or complete[0]
    elif by_id is not None and complete:
        raise UnreadableMessageError(_contradiction(complete[0], by_id))
    elif len(complete) > 1:
        raise UnreadableMessageError(
            "It has all fields of an opportunity and all of a project, and its event_id does not decide."
        )
    else:
        raise UnreadableMessageError(f"Neither an opportunity nor a project: {_nearest_miss(values, by_id)}.")
    if missing := [name for name in COMMON_FIELDS if name not in values]:
        raise UnreadableMessageError(f"It is {_a(kind)} without {', '.join(missing)}.")
    return kind


def _kind_by_id(event_id: str) -> CrmKind | None:
    return next((kind for kind, prefix in ID_PREFIXES.items() if event_id.startswith(prefix)), None)


def _fields_of(text: bytes) -> tuple[dict[str, Raw], dict[str, Any]]:
    """Return the top-level fields twice: as text, and decoded, which also proves that the text is JSON."""
    try:
        values = _anything.decode(text)
        if not isinstance(values, dict):
            raise UnreadableMessageError(f"Not a JSON object but {_json_kind(values)}.")
        return _fields.decode(text), values
    except (ValueError, RecursionError) as error:  # msgspec's errors, and Python's about numbers with too many digits
        raise not_json(text, error) from error


def _event_id(values: Mapping[str, object]) -> str:
    event_id = values.get("event_id")
    if not isinstance(event_id, str) or not event_id.strip():
        raise UnreadableMessageError("event_id must be a text that is not empty.")
    if len(event_id) > MAX_ID_LENGTH:
        raise UnreadableMessageError(f"event_id has {len(event_id)} characters; at most {MAX_ID_LENGTH} are allowed.")
    return event_id


def _nearest_miss(values: Mapping[str, object], by_id: CrmKind | None) -> str:
    missing = {kind: [name for name in names if name not in values] for kind, names in OWN_FIELDS.items()}
    kind = by_id or min(missing, key=lambda kind: len(missing[kind]))
    if len(missing[kind]) == len(OWN_FIELDS[kind]) and by_id is None:
        return "it has none of their fields"
    return f"for {_a(kind)} it lacks {', '.join(missing[kind])}"


def _contradiction(by_fields: CrmKind, by_id: CrmKind) -> str:
    return f"It has the fields of {_a(by_fields)} and the event_id of {_a(by_id)}."


def _a(kind: CrmKind) -> str:
    return f"an {kind}" if kind is CrmKind.OPPORTUNITY else f"a {kind}"


def _json_kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
