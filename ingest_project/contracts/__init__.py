"""The contract of every topic: one module per message, decoded strictly, encoded canonically.

Here: decode the bytes of a message or reject it with one clear reason; read its trace id from the headers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from ingest_project.core.errors import UnreadableMessageError

MAX_MESSAGE_BYTES = 1024**2
MAX_NAME_LENGTH = 200
# Limits of free-form fields, such as `metadata`.
MAX_DETAIL_BYTES = 64 * 1024
MAX_DETAIL_DEPTH = 32
MAX_REASON_LENGTH = 300
MAX_TRACE_LENGTH = 200
TRACE_HEADER = "trace-id"
TRACEPARENT = "traceparent"
# version - trace id - parent id - flags (W3C Trace Context); a trace id of zeros is none.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
# As msgspec words it, e.g. "Expected `int | null`, got `str` - at `$.a.b`".
_MISMATCH = re.compile(r"Expected `([a-z |]+)`(.*?)(?:, got `(\w+)`)?(?: - at `(\$.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `([^`]+)`(?: - at `(\$.*)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`(?: - at `(\$.*)`)?", re.DOTALL)
_TOO_LARGE = re.compile(r"(?:Number|Integer value) out of range(?: - at `(\$.*)`)?")
_NO_TIME = re.compile(r"Invalid RFC3339 encoded (datetime|date|time)(?: - at `(\$.*)`)?")
_LIKE = {
    "datetime": "a time like 2026-01-15T10:30:45Z",
    "date": "a date like 2026-01-15",
    "time": "a time like 10:30:45",
}
# Of which one half alone is no character.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a decimal number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "datetime": "a time",
    "date": "a date",
}

Message = TypeVar("Message", bound=msgspec.Struct)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as names and values, names that occur twice included."""


# Numbers stay text: they may have more digits than Python converts.
_pairs = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=str, parse_float=str)


def decode(raw: bytes | None, message_type: type[Message]) -> Message:
    """Decode one message strictly: types are not coerced, required fields must be there, extra fields are ignored.

    A field that may be left out may be null as well, which means the same. No object may have a name twice.

    Raises:
        UnreadableMessageError: empty, larger than MAX_MESSAGE_BYTES, not JSON, or not of this shape; names the field.
    """
    text = require_readable_size(raw)
    try:
        try:
            found = msgspec.json.decode(text, type=message_type)
        except msgspec.ValidationError:
            without = _without_nulls(text, message_type)
            if without == text:
                raise
            found = msgspec.json.decode(without, type=message_type)
    except msgspec.ValidationError as error:
        raise UnreadableMessageError(f"Not a {message_type.__name__}: {_shortened(plainly(error))}.") from error
    except (ValueError, OverflowError, RecursionError) as error:
        # msgspec's errors about JSON, and Python's about numbers.
        raise not_json(text, error) from error
    require_single_names(text)
    return found


def require_single_names(raw: bytes) -> None:
    """Reject JSON with an object that has a name twice: parsers differ in which value they take.

    Raises:
        UnreadableMessageError: a name occurs twice, or it is no JSON; names the field.
    """
    if _has_single_names(raw):
        return
    try:
        rest = [("", _pairs.decode(raw.decode("utf-8-sig")))]
    except (ValueError, RecursionError) as error:
        raise not_json(raw, error) from error
    while rest:
        path, value = rest.pop()
        if isinstance(value, _Pairs):
            names = Counter(name for name, _ in value)
            if len(names) < len(value):
                name, times = names.most_common(1)[0]
                raise UnreadableMessageError(f"{path}{name[:MAX_NAME_LENGTH]} occurs {times} times.")
            rest += [(f"{path}{name}."[:MAX_NAME_LENGTH], one) for name, one in value if isinstance(one, list)]
        elif isinstance(value, list):
            rest += [(path, one) for one in value if isinstance(one, list)]


def _has_single_names(raw: bytes) -> bool:
    """Return True if no object of a JSON text has a name twice; False at times where none has.

    Of a name that occurs again only the last one is written again, so that a colon is missing. Only an escape can
    become another one.
    """
    if b"\\u003" in raw:
        return False
    try:
        return raw.count(b":") == msgspec.json.encode(msgspec.json.decode(raw)).count(b":")
    except (ValueError, OverflowError, RecursionError):
        return False


def require_readable_size(raw: bytes | None) -> bytes:
    """Return the message.

    Raises:
        UnreadableMessageError: it is empty, or larger than MAX_MESSAGE_BYTES.
    """
    if not raw:
        raise UnreadableMessageError("The message is empty.")
    if len(raw) > MAX_MESSAGE_BYTES:
        raise UnreadableMessageError(f"The message has {len(raw)} bytes; at most {MAX_MESSAGE_BYTES} are read.")
    return raw


def require_names(message: msgspec.Struct, *fields: str) -> None:
    """Reject a message without these names: they become parts of keys, paths and pages.

    Raises:
        UnreadableMessageError: one is blank, longer than MAX_NAME_LENGTH, or not printable; names the field.
    """
    for field in fields:
        text = getattr(message, field)
        if not text.strip() or len(text) > MAX_NAME_LENGTH or not text.isprintable():
            raise UnreadableMessageError(
                f"Not a {type(message).__name__}: {field} must be 1 to {MAX_NAME_LENGTH} printable characters."
            )


def require_texts(message: msgspec.Struct, longest: Mapping[str, int]) -> None:
    """Reject a message with a text that is too long or cannot be stored.

    Args:
        message: decoded.
        longest: largest number of bytes in UTF-8, by field.

    Raises:
        UnreadableMessageError: a text is longer, or has a NUL character; names the field.
    """
    for field, limit in longest.items():
        text = getattr(message, field)
        if text is None:
            continue
        if len(text.encode()) > limit:
            raise UnreadableMessageError(f"Not a {type(message).__name__}: {field} is longer than {limit} bytes.")
        if "\x00" in text:
            raise UnreadableMessageError(f"Not a {type(message).__name__}: {field} contains a NUL character.")


def require_details(message: msgspec.Struct, *fields: str) -> None:
    """Reject a message whose free-form fields are too large, nested too deeply or cannot be stored.

    Raises:
        UnreadableMessageError: more than MAX_DETAIL_BYTES, deeper than MAX_DETAIL_DEPTH, or a NUL character; names the
            field.
    """
    for field in fields:
        named = f"Not a {type(message).__name__}: {field}"
        value = getattr(message, field)
        if not value:
            continue
        if _depth(value) > MAX_DETAIL_DEPTH:
            raise UnreadableMessageError(f"{named} is nested more than {MAX_DETAIL_DEPTH} levels deep.")
        text = msgspec.json.encode(value)
        if len(text) > MAX_DETAIL_BYTES:
            raise UnreadableMessageError(f"{named} has {len(text)} bytes; at most {MAX_DETAIL_BYTES} are kept.")
        # The escape of NUL; behind another backslash it is no escape.
        if b"\\u0000" in text.replace(b"\\\\", b""):
            raise UnreadableMessageError(f"{named} contains a NUL character.")


def without_null_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping without its null values."""
    return {name: value for name, value in values.items() if value is not None}


def utc(moment: datetime | None, message_type: type[msgspec.Struct], field: str) -> datetime | None:
    """Return a time in UTC; one without a zone is UTC.

    Raises:
        UnreadableMessageError: in UTC it lies outside the calendar, e.g. 0001-01-01T00:00:00+14:00; names the field.
    """
    if moment is None:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise UnreadableMessageError(
            f"Not a {message_type.__name__}: {field} lies outside the years 1 to 9999."
        ) from error


def encode(message: msgspec.Struct) -> bytes:
    """Return the message as JSON, UTF-8, fields in the order of the contract."""
    return msgspec.json.encode(message)


def trace_id_in(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """Return the trace id in a message's headers; None without a valid one."""
    texts = {name.lower(): (value or b"").decode("utf-8", "replace").strip() for name, value in headers}
    own = texts.get(TRACE_HEADER, "")
    if own and len(own) <= MAX_TRACE_LENGTH and own.isprintable():
        return own
    found = _TRACEPARENT.fullmatch(texts.get(TRACEPARENT, ""))
    return found[1] if found else None


def plainly(error: Exception) -> str:
    """Return why a message does not fit, in words: msgspec has Python's names of types."""
    text = str(error)
    found = ((say, match) for pattern, say in _WORDS if (match := pattern.fullmatch(text)))
    return next((say(match) for say, match in found), text)


def not_json(raw: bytes, error: Exception) -> UnreadableMessageError:
    """Return the error that explains why bytes cannot be read as JSON.

    Args:
        raw: the message.
        error: the error that reading it raised.
    """
    if isinstance(error, RecursionError):
        return UnreadableMessageError("Not JSON that can be read: nested too deeply.")
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        return UnreadableMessageError(f"Not UTF-8: {wrong.reason} at byte {wrong.start}.")
    why = plainly(error)
    if _SURROGATE.search(raw) and any(said in why for said in ("truncated", "escape")):
        why = "a text has half of a surrogate pair"
    return UnreadableMessageError(f"Not JSON that can be read: {why[:200]}.")


def _mismatch(found: re.Match[str]) -> str:
    expected, further, got, path = found.groups()
    kinds = dict.fromkeys(_KINDS.get(kind, kind) for kind in expected.split(" | ") if kind != "null")
    if "float" in expected:
        kinds.pop(_KINDS["int"], None)
    actual = f", is {_KINDS.get(got, got)}" if got else ""
    return f"{path or 'the message'} must be {' or '.join(kinds) or 'null'}{further}{actual}"


def _field(found: re.Match[str]) -> str:
    return f"{f'{found[2]}.' if found[2] else ''}{found[1]}"


_WORDS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (_MISMATCH, _mismatch),
    (_MISSING, lambda found: f"{_field(found)} is missing"),
    (_UNKNOWN, lambda found: f"the field {_field(found)} is unknown"),
    (_NO_TIME, lambda found: f"{found[2] or 'the message'} must be {_LIKE[found[1]]}"),
    (_TOO_LARGE, lambda found: f"{found[1] or 'a number'} is too large to be read"),
)


def _shortened(text: str) -> str:
    """Return a reason without the middle of a long value that it quotes; the position of the value is at the end."""
    if len(text) <= MAX_REASON_LENGTH:
        return text
    half = MAX_REASON_LENGTH // 2
    return f"{text[:half]} … {text[-half:]}"


def _without_nulls(text: bytes, message_type: type[msgspec.Struct]) -> bytes:
    """Return the message without its optional fields that are null; unchanged without any."""
    fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    optional = {field.encode_name for field in msgspec.structs.fields(message_type) if not field.required}
    nulls = [name for name, value in fields.items() if name in optional and bytes(value) == b"null"]
    if not nulls:
        return text
    return msgspec.json.encode({name: value for name, value in fields.items() if name not in nulls})


def _depth(value: object) -> int:
    """Return the nesting depth of objects and lists, counted up to one level too deep; 0 for anything else."""
    level, depth = [value], 0
    while depth <= MAX_DETAIL_DEPTH:
        nested = [one for one in level if isinstance(one, dict | list)]
        if not nested:
            break
        depth += 1
        level = [part for one in nested for part in (one.values() if isinstance(one, dict) else one)]
    return depth
