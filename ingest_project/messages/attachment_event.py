"""AttachmentEvent: something happened in a business domain, and files belong to it (topic `events.raw`)."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the fields' types when it runs
from typing import Any

import msgspec

from ingest_project.errors import UnreadableMessage
from ingest_project.messages.decoding import decode, require_names

MAX_ATTACHMENTS = 10_000


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


class AttachmentEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event with zero or more attachments.

    Args:
        trace_id: the sender's name for what happened; the same file of the same trace is one attachment.
        domain: decides where files are stored.
        attachments: an address alone, or with what is known of the file.
        payload: the event's own content; a domain's JSON path may find more addresses in it.
    """

    trace_id: str
    domain: str
    event_type: str = ""
    occurred_at: datetime | None = None
    attachments: list[str | DeclaredAttachment] = []
    payload: Any = None

    def declared(self) -> list[DeclaredAttachment]:
        """Every declared attachment in one form."""
        return [DeclaredAttachment(url=one) if isinstance(one, str) else one for one in self.attachments]


def decode_attachment_event(raw: bytes | None) -> AttachmentEvent:
    """One message of `events.raw`.

    Raises:
        UnreadableMessage: not an attachment event.
    """
    event = decode(raw, AttachmentEvent)
    require_names(event, "trace_id", "domain")
    if len(event.attachments) > MAX_ATTACHMENTS:
        raise UnreadableMessage(f"Not an AttachmentEvent: more than {MAX_ATTACHMENTS} attachments.")
    return event
