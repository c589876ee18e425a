"""The trace that a message belongs to, as its headers say: ours, or W3C's `traceparent`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TRACE_HEADER = "trace-id"
TRACEPARENT = "traceparent"
MAX_TRACE_LENGTH = 200

# version - trace id - parent id - flags (W3C Trace Context); a trace id of zeros is none.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_id_in(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """The trace id in a message's headers; None where there is none that can be used."""
    texts = {name.lower(): (value or b"").decode("utf-8", "replace").strip() for name, value in headers}
    own = texts.get(TRACE_HEADER, "")
    if own and len(own) <= MAX_TRACE_LENGTH and own.isprintable():
        return own
    found = _TRACEPARENT.fullmatch(texts.get(TRACEPARENT, ""))
    return found[1] if found else None
