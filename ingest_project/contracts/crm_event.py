"""OpportunityEvent and ProjectEvent: a record changed in a CRM (topic `sales_events`).

The fields of a message decide which of the two it is: each kind has fields of its own, and a message is of a kind when
it has all of them. An `event_id` that begins with `opp_` or `proj_` must not contradict. A record replaces the stored
one as a whole, so a missing field could be a loss: a field may be null, but it must be present.

Numbers are taken from the JSON text as decimals, never through a float. Fields the contract does not know are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal, TypeVar

import msgspec

from ingest_project.contracts import require_readable_size
from ingest_project.core.errors import UnreadableMessageError

MAX_ID_LENGTH = 200
# Enough for any amount of money; without a bound 1e999999 would become a million digits.
MAX_WHOLE_DIGITS = 30
MAX_FRACTION_DIGITS = 20

UTF8_BOM = b"\xef\xbb\xbf"
# The escape of NUL; behind another backslash it is not an escape.
_NUL_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4})?")
_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANYTHING = msgspec.json.Decoder()


OwnValue = str | Decimal | date | None
Value = TypeVar("Value")


class CrmKind(StrEnum):
    """The kind of record that a message is about."""

    OPPORTUNITY = "opportunity"
    PROJECT = "project"


# Each kind's own fields and how their values are read.
OWN_FIELDS: Mapping[CrmKind, Mapping[str, Literal["text", "number", "date"]]] = {
    CrmKind.OPPORTUNITY: {"stage": "text", "amount": "number", "probability": "number", "expected_close_date": "date"},
    CrmKind.PROJECT: {"status": "text", "start_date": "date", "end_date": "date", "budget": "number"},
}
COMMON_FIELDS = ("event_id", "name", "account_id", "owner_id", "meta_data")
_OWN_NAMES = {kind: frozenset(names) for kind, names in OWN_FIELDS.items()}
_KNOWN_NAMES = {kind: names.union(COMMON_FIELDS) for kind, names in _OWN_NAMES.items()}
ID_PREFIXES = {"opp_": CrmKind.OPPORTUNITY, "proj_": CrmKind.PROJECT}
# Names that must not occur twice in an object.
_UNAMBIGUOUS = (*COMMON_FIELDS, *(name for names in OWN_FIELDS.values() for name in names))
_UNAMBIGUOUS_META = ("last_modified", "source", "tags", "notes")
_QUOTED = re.compile(f'"({"|".join((*_UNAMBIGUOUS, *_UNAMBIGUOUS_META))})"'.encode())


class CrmEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One version of one record.

    Args:
        own: the fields of its kind: text, exact decimals, dates; None for null.
        source: of `meta_data`, like `tags` and `notes`; None if missing.
        tags: a JSON list as text.
        meta_data: the whole object, the JSON text as it was sent.
        other_fields: fields that the contract does not know, a JSON object as text; None without any.
        last_modified: the version, UTC.
        content_sha256: of the message.
    """

    kind: CrmKind
    event_id: str
    name: str
    own: dict[str, OwnValue]
    account_id: str | None
    owner_id: str | None
    source: str | None
    tags: str | None
    notes: str | None
    meta_data: str
    other_fields: str | None
    last_modified: datetime
    content_sha256: str


def decode_crm_event(raw: bytes | None) -> CrmEvent:
    """Decode a message of `sales_events`.

    Raises:
        UnreadableMessageError: neither an opportunity nor a project, or a field of it has an invalid value.
    """
    raw = require_readable_size(raw)
    plain = _decode_plain(raw)
    return decode_any_crm_event(raw) if plain is None else plain


class _Meta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    last_modified: datetime
    source: str | msgspec.UnsetType | None = msgspec.UNSET
    tags: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    notes: str | msgspec.UnsetType | None = msgspec.UNSET


class _Plain(msgspec.Struct, gc=False, forbid_unknown_fields=True, kw_only=True):
    event_id: str
    name: str
    account_id: str | None
    owner_id: str | None
    meta_data: msgspec.Raw


class _PlainOpportunity(_Plain, kw_only=True, gc=False, forbid_unknown_fields=True):
    stage: str
    amount: Decimal | None
    probability: Decimal | None
    expected_close_date: date | None


class _PlainProject(_Plain, kw_only=True, gc=False, forbid_unknown_fields=True):
    status: str
    start_date: date | None
    end_date: date | None
    budget: Decimal | None


_decode_opportunity = msgspec.json.Decoder(_PlainOpportunity).decode
_decode_project = msgspec.json.Decoder(_PlainProject).decode
_decode_meta = msgspec.json.Decoder(_Meta).decode
MAX_PLAIN_DIGITS = 18
_PREFIXES = {kind: prefix for prefix, kind in ID_PREFIXES.items()}
# The first bytes, in which most messages have their id.
_START = 40


def _decode_plain(raw: bytes) -> CrmEvent | None:
    """Decode a message that has the fields of one kind and no others, each once, as most have; None for any other.

    What it returns is what `decode_any_crm_event` returns, in half of the time.
    """
    has_escapes = b"\\" in raw
    if has_escapes and (b"\\\\" in raw or b"\\u0000" in raw):
        return None
    is_opportunity = b'"opp_' in raw[:_START] or (b'"proj_' not in raw[:_START] and b'"stage"' in raw)
    try:
        event = _decode_opportunity(raw) if is_opportunity else _decode_project(raw)
        meta = _decode_meta(event.meta_data)
        modified = meta.last_modified
        modified = modified.replace(tzinfo=UTC) if modified.tzinfo is None else modified.astimezone(UTC)
        kind, own = _plain_own(event)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
        return None
    other = CrmKind.PROJECT if is_opportunity else CrmKind.OPPORTUNITY
    is_id = event.event_id and not event.event_id.isspace() and len(event.event_id) <= MAX_ID_LENGTH
    if not is_id or not event.name or event.event_id.startswith(_PREFIXES[other]):
        return None
    optional = (meta.source, meta.tags, meta.notes)
    source, tags, notes = _given(meta.source), _given(meta.tags), _given(meta.notes)
    texts = [event.event_id, event.name, event.account_id, event.owner_id, source, notes, *(tags or ()), modified]
    texts += [value for value in own.values() if not isinstance(value, Decimal)]
    names = len(COMMON_FIELDS) + len(own) + 1 + len(optional) - optional.count(msgspec.UNSET)
    # With more quotes than these have, a name is there twice, of which msgspec takes the last.
    quotes = 2 * (names + len(texts) - texts.count(None))
    if raw.count(b'"') - (raw.count(b'\\"') if has_escapes else 0) != quotes:
        return None
    return CrmEvent(
        kind=kind,
        event_id=event.event_id,
        name=event.name,
        own=own,
        account_id=event.account_id,
        owner_id=event.owner_id,
        source=source,
        tags=None if tags is None else msgspec.json.encode(tags).decode(),
        notes=notes,
        meta_data=bytes(event.meta_data).decode(),
        other_fields=None,
        last_modified=modified,
        content_sha256=hashlib.sha256(raw).hexdigest(),
    )


def _plain_own(event: _PlainOpportunity | _PlainProject) -> tuple[CrmKind, dict[str, OwnValue]]:
    """Return the fields of the kind of an event.

    Raises:
        ValueError: a number is written otherwise than most are.
    """
    if isinstance(event, _PlainProject):
        dates: dict[str, OwnValue] = {"start_date": event.start_date, "end_date": event.end_date}
        return CrmKind.PROJECT, {"status": event.status, **dates, "budget": _plain_number(event.budget)}
    return CrmKind.OPPORTUNITY, {
        "stage": event.stage,
        "amount": _plain_number(event.amount),
        "probability": _plain_number(event.probability),
        "expected_close_date": event.expected_close_date,
    }


def _given(value: Value | msgspec.UnsetType) -> Value | None:
    return None if isinstance(value, msgspec.UnsetType) else value


def _plain_number(number: Decimal | None) -> Decimal | None:
    """Return a number as it was written.

    Raises:
        ValueError: it has an exponent or many digits.
    """
    if number is None:
        return None
    if not -MAX_PLAIN_DIGITS <= int(number.as_tuple().exponent) <= 0 or number.adjusted() >= MAX_PLAIN_DIGITS:
        raise ValueError
    return number or number.copy_abs()


def decode_any_crm_event(raw: bytes) -> CrmEvent:
    """Decode a message of `sales_events` of a size that is read; see `decode_crm_event`."""
    text = _utf8(raw)
    fields, values = _fields_of(text)
    kind = kind_of(values)
    _reject_ambiguous(text)
    name = _text(values, "name")
    if not name:
        raise UnreadableMessageError("name must not be empty.")
    others = {name: value for name, value in fields.items() if name not in _KNOWN_NAMES[kind]}
    meta = values["meta_data"]
    if not isinstance(meta, dict):
        raise UnreadableMessageError(f"meta_data must be an object, not {_named(meta)}.")
    return CrmEvent(
        kind=kind,
        event_id=str(values["event_id"]),
        name=name,
        own={name: _own_value(fields, values, name, shape) for name, shape in OWN_FIELDS[kind].items()},
        account_id=_text(values, "account_id"),
        owner_id=_text(values, "owner_id"),
        source=_text(meta, "source", "meta_data."),
        tags=_tags(meta),
        notes=_text(meta, "notes", "meta_data."),
        meta_data=bytes(fields["meta_data"]).decode(),
        other_fields=msgspec.json.encode(others).decode() if others else None,
        last_modified=_last_modified(meta),
        content_sha256=hashlib.sha256(text).hexdigest(),
    )


def kind_of(values: Mapping[str, object]) -> CrmKind:
    """Return the kind of a message by its fields and the prefix of its id.

    Raises:
        UnreadableMessageError: it is neither, or fields and id contradict each other.
    """
    event_id = _event_id(values)
    by_prefix = next((kind for prefix, kind in ID_PREFIXES.items() if event_id.startswith(prefix)), None)
    complete = [kind for kind, names in _OWN_NAMES.items() if names <= values.keys()]
    if by_prefix in complete or (by_prefix is None and len(complete) == 1):
        kind = by_prefix or complete[0]
    elif by_prefix is not None and complete:
        raise UnreadableMessageError(f"It has the fields of {_a(complete[0])} and the event_id of {_a(by_prefix)}.")
    elif len(complete) > 1:
        raise UnreadableMessageError(
            "It has all fields of an opportunity and all of a project, and its event_id does not decide."
        )
    else:
        raise UnreadableMessageError(f"Neither an opportunity nor a project: {_nearest_miss(values, by_prefix)}.")
    if not _KNOWN_NAMES[kind] <= values.keys():
        missing = [name for name in COMMON_FIELDS if name not in values]
        raise UnreadableMessageError(f"It is {_a(kind)} without {', '.join(missing)}.")
    return kind


def _utf8(raw: bytes) -> bytes:
    """Return the message without byte order mark and without escapes of NUL, which PostgreSQL cannot store."""
    raw = raw.removeprefix(UTF8_BOM)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UnreadableMessageError(f"Not UTF-8: {error.reason} at byte {error.start}.") from error
    return _NUL_ESCAPE.sub(r"\1\\ufffd", text).encode() if "\\u0000" in text else raw


def _fields_of(text: bytes) -> tuple[dict[str, msgspec.Raw], dict[str, Any]]:
    """Return the top-level fields twice: as text, and decoded, which also proves that the text is JSON."""
    try:
        values = _ANYTHING.decode(text)
        if not isinstance(values, dict):
            raise UnreadableMessageError(f"Not a JSON object but {_named(values)}.")
        return _RAW_FIELDS.decode(text), values
    except RecursionError as error:
        raise UnreadableMessageError("Not JSON that can be read: nested too deeply.") from error
    except ValueError as error:  # msgspec's errors, and Python's about numbers with too many digits
        # A number beyond a float and 64 bits is valid JSON; msgspec does not report its position.
        what = "A number is too large to be read" if "out of range" in str(error) else "Not JSON"
        raise UnreadableMessageError(f"{what}: {str(error)[:200]}.") from error


def _event_id(values: Mapping[str, object]) -> str:
    event_id = values.get("event_id")
    if not isinstance(event_id, str) or not event_id.strip():
        raise UnreadableMessageError("event_id must be a text that is not empty.")
    if len(event_id) > MAX_ID_LENGTH:
        raise UnreadableMessageError(f"event_id has {len(event_id)} characters; at most {MAX_ID_LENGTH} are allowed.")
    return event_id


def _nearest_miss(values: Mapping[str, object], by_prefix: CrmKind | None) -> str:
    missing = {kind: [name for name in names if name not in values] for kind, names in OWN_FIELDS.items()}
    kind = by_prefix or min(missing, key=lambda kind: len(missing[kind]))
    if len(missing[kind]) == len(OWN_FIELDS[kind]) and by_prefix is None:
        return "it has none of their fields"
    return f"for {_a(kind)} it lacks {', '.join(missing[kind])}"


def _reject_ambiguous(text: bytes) -> None:
    """Reject two values under one name: JSON parsers differ in which one they use."""
    found = _QUOTED.findall(text)
    if len(found) == len(set(found)) and b"\\u" not in text:
        return
    pairs = _PAIRS.decode(text.decode())
    _reject_duplicates(pairs, _UNAMBIGUOUS, "")
    for name, value in pairs:
        if name == "meta_data" and isinstance(value, _Pairs):
            _reject_duplicates(value, _UNAMBIGUOUS_META, "meta_data.")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as names and values, names that occur twice included."""


# Numbers stay text: they may have more digits than Python converts.
_PAIRS = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=str, parse_float=str)


def _reject_duplicates(pairs: _Pairs, names: Collection[str], prefix: str) -> None:
    found = [name for name, _ in pairs]
    if len(found) == len(set(found)):
        return
    for name in names:
        if found.count(name) > 1:
            raise UnreadableMessageError(f"{prefix}{name} occurs {found.count(name)} times.")


def _text(values: Mapping[str, Any], name: str, prefix: str = "") -> str | None:
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise UnreadableMessageError(f"{prefix}{name} must be a text, not {_named(value)}.")
    return value


def _own_value(
    fields: Mapping[str, msgspec.Raw], values: Mapping[str, Any], name: str, shape: Literal["text", "number", "date"]
) -> OwnValue:
    if shape == "number":
        return _number(bytes(fields[name]).strip(), name)
    text = _text(values, name)
    if shape == "date":
        return None if text is None else _date(text, name)
    if text is None:
        raise UnreadableMessageError(f"{name} must not be null.")
    return text


def _tags(meta: Mapping[str, Any]) -> str | None:
    tags = meta.get("tags")
    if tags is None:
        return None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UnreadableMessageError("meta_data.tags must be a list of texts.")
    return msgspec.json.encode(tags).decode()


def _number(text: bytes, name: str) -> Decimal | None:
    """Return the number as it was written, without its exponent."""
    if text == b"null":
        return None
    if not _NUMBER.fullmatch(text):
        raise UnreadableMessageError(f"{name} must be a number, not {text[:40].decode(errors='replace')}.")
    number = Decimal(text.decode())
    exponent = int(number.as_tuple().exponent)
    if -exponent > MAX_FRACTION_DIGITS or (number and number.adjusted() >= MAX_WHOLE_DIGITS):
        limits = f"{MAX_WHOLE_DIGITS} digits before and {MAX_FRACTION_DIGITS} after the point"
        raise UnreadableMessageError(f"{name} has more than {limits}.")
    if not number:
        return number.copy_abs() if exponent <= 0 else Decimal(0)
    return number if exponent <= 0 else Decimal(format(number, "f"))


def _date(text: str, name: str) -> date:
    try:
        return msgspec.convert(text, date)
    except msgspec.ValidationError:
        raise UnreadableMessageError(f"{name} must be a date like 2024-06-30, not {text[:40]!r}.") from None


def _last_modified(meta: Mapping[str, Any]) -> datetime:
    """Return the version; a time without zone is UTC, as everywhere in this system."""
    text = meta.get("last_modified")
    if not isinstance(text, str):
        raise UnreadableMessageError("meta_data.last_modified must be a time: without it no version is older or newer.")
    try:
        moment = msgspec.convert(text, datetime)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        raise UnreadableMessageError(
            f"meta_data.last_modified must be a time like 2024-03-24T20:40:35Z, not {text[:40]!r}."
        ) from None


def _a(kind: CrmKind) -> str:
    return f"an {kind}" if kind is CrmKind.OPPORTUNITY else f"a {kind}"


def _named(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
