"""AttachmentEvent: something happened in a business domain, and files belong to it (topic `events.raw`).

What an event says of one file costs the others nothing: an entry that cannot be an attachment is set apart with the
reason.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from ingest_project.contracts.decoding import decode, require_names, utc
from ingest_project.contracts.download import LARGEST_SIZE, MAX_TEXT_LENGTH, MAX_URL_LENGTH, require_domain
from ingest_project.core.errors import UnreadableMessageError

MAX_ATTACHMENTS = 10_000
SHOWN_LENGTH = 200


class DeclaredAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """A file as the event declares it.

    Args:
        url: where it is.
        file_name: what to call it; None: the server or the URL says.
        content_type: what it should be, e.g. `image/jpeg`; a download that is something else is refused.
        size_bytes: how long it should be.
        checksum: `sha256:...`, `md5:...` or bare hexadecimal digits.
    """

    url: str
    file_name: str | None = None
    content_type: str | None = None
    size_bytes: int | None = None
    checksum: str | None = None


class RefusedAttachment(NamedTuple):
    """What an event names and what cannot be an attachment.

    Args:
        url: its address as far as it has one, else the beginning of what the event says; never empty.
        entry: all that the event says of it, as JSON.
        reason: what is wrong, naming the place in the event.
    """

    url: str
    entry: str
    reason: str


class AttachmentEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event with zero or more attachments.

    Args:
        trace_id: the sender's name for what happened; the same file of the same trace is one attachment.
        domain: decides where files are stored.
        attachments: an address alone, or with what is known of the file; anything else is set apart by `sorted_out`.
        payload: the event's own content; a domain's JSON path may find more addresses in it.
    """

    trace_id: str
    domain: str
    event_type: str = ""
    occurred_at: datetime | None = None
    attachments: list[Any] = []
    payload: Any = None

    def sorted_out(self) -> tuple[list[DeclaredAttachment], list[RefusedAttachment]]:
        """Every entry in one form, and those that cannot be attachments."""
        declared: list[DeclaredAttachment] = []
        refused: list[RefusedAttachment] = []
        for place, entry in enumerate(self.attachments):
            found = declared_or_refused(entry, f"attachments[{place}]")
            if isinstance(found, RefusedAttachment):
                refused.append(found)
            else:
                declared.append(found)
        return declared, refused

    def declared(self) -> list[DeclaredAttachment]:
        """Every attachment in one form."""
        return self.sorted_out()[0]


def declared_or_refused(entry: Any, place: str) -> DeclaredAttachment | RefusedAttachment:  # noqa: ANN401 - any JSON
    """One entry of an event, or why it cannot be an attachment.

    Args:
        entry: as the event has it.
        place: where in the event, for the reason.
    """
    try:
        return _declared(entry)
    except msgspec.ValidationError as error:
        text = msgspec.json.encode(entry).decode()
        url = entry.get("url") if isinstance(entry, dict) else entry
        shown = url[:MAX_URL_LENGTH] if isinstance(url, str) and url.strip() else text[:SHOWN_LENGTH]
        return RefusedAttachment(shown, text, f"{place} cannot be an attachment: {error}.")


def decode_attachment_event(raw: bytes | None) -> AttachmentEvent:
    """One message of `events.raw`.

    Raises:
        UnreadableMessageError: not an attachment event.
    """
    event = decode(raw, AttachmentEvent)
    require_names(event, "trace_id", "domain")
    require_domain(event, event.domain)
    if len(event.event_type) > MAX_TEXT_LENGTH:
        raise UnreadableMessageError(f"Not an AttachmentEvent: event_type is longer than {MAX_TEXT_LENGTH} characters.")
    if len(event.attachments) > MAX_ATTACHMENTS:
        raise UnreadableMessageError(f"Not an AttachmentEvent: more than {MAX_ATTACHMENTS} attachments.")
    return msgspec.structs.replace(event, occurred_at=utc(event.occurred_at, AttachmentEvent, "occurred_at"))


def _declared(entry: object) -> DeclaredAttachment:
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
    if declared.size_bytes is not None and not 0 <= declared.size_bytes <= LARGEST_SIZE:
        raise msgspec.ValidationError(f"size_bytes must be between 0 and {LARGEST_SIZE}")
    for field in ("file_name", "content_type", "checksum"):
        if len(getattr(declared, field) or "") > MAX_TEXT_LENGTH:
            raise msgspec.ValidationError(f"{field} is longer than {MAX_TEXT_LENGTH} characters")
