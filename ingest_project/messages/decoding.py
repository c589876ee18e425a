"""Bytes from a topic to a typed message, or one clear reason why not."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from ingest_project.errors import UnreadableMessage

MAX_MESSAGE_BYTES = 1024**2
MAX_NAME_LENGTH = 200

Message = TypeVar("Message", bound=msgspec.Struct)


def decode(raw: bytes | None, message_type: type[Message]) -> Message:
    """Decode one message strictly: types are not coerced, required fields must be there, extra fields are ignored.

    Raises:
        UnreadableMessage: empty, larger than MAX_MESSAGE_BYTES, not JSON, or not of this shape; names the field.
    """
    if not raw:
        raise UnreadableMessage("The message is empty.")
    if len(raw) > MAX_MESSAGE_BYTES:
        raise UnreadableMessage(f"The message has {len(raw)} bytes; at most {MAX_MESSAGE_BYTES} are read.")
    try:
        return msgspec.json.decode(raw, type=message_type)
    except msgspec.ValidationError as error:
        raise UnreadableMessage(f"Not a {message_type.__name__}: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableMessage(f"Not JSON: {error}.") from error
    except RecursionError as error:
        raise UnreadableMessage("Not JSON that can be read: nested too deeply.") from error


def require_names(message: msgspec.Struct, *fields: str) -> None:
    """Refuse a message without these names: they become parts of keys, paths and pages.

    Raises:
        UnreadableMessage: one is blank, longer than MAX_NAME_LENGTH, or not printable; names the field.
    """
    for field in fields:
        text = getattr(message, field)
        if not text.strip() or len(text) > MAX_NAME_LENGTH or not text.isprintable():
            raise UnreadableMessage(
                f"Not a {type(message).__name__}: {field} must be 1 to {MAX_NAME_LENGTH} printable characters."
            )


def encode(message: msgspec.Struct) -> bytes:
    """The message as JSON, UTF-8, fields in the order of the contract."""
    return msgspec.json.encode(message)
