"""The context of a trace as text: `traceparent` of W3C Trace Context and after a space its `tracestate`, if it has one.

It is read from the headers of a message, stored with the entry of the work queue, and written to every message about
the item.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ingest_project.contracts import TRACEPARENT
from ingest_project.platform.kafka.consumer import Headers

TRACESTATE = "tracestate"
# W3C Trace Context: version 00, ids that are not all zeros; the state's length is what a vendor has to pass on.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x21-\x7e]{1,512}")
OTEL_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")

Item = tuple[str, str | None, Mapping[str, Any]]
"""Key, stored context and attributes."""


def context_in(headers: Headers) -> str | None:
    """Return the context in a message's headers; None without a valid one."""
    found = {name.lower(): value for name, value in headers if value and name.lower() in {TRACEPARENT, TRACESTATE}}
    parent = found.get(TRACEPARENT, b"").decode("ascii", "replace").strip()
    if not _TRACEPARENT.fullmatch(parent):
        return None
    state = re.sub(r"\s", "", found.get(TRACESTATE, b"").decode("ascii", "replace"))
    return f"{parent} {state}" if _TRACESTATE.fullmatch(state) else parent


def headers_of(context: str | None) -> Headers:
    """Return the headers that carry a context; none for None."""
    if context is None:
        return ()
    parent, _, state = context.partition(" ")
    return ((TRACEPARENT, parent.encode()), *(((TRACESTATE, state.encode()),) if state else ()))


def trace_ids_of(text: str) -> tuple[str, ...]:
    """Return what may be on record of a trace: the text, and the forms of its id where it names one of OpenTelemetry.

    Args:
        text: a trace id of the project, of OpenTelemetry, or a `traceparent`.
    """
    parent = text.strip().lower()
    hexadecimal = parent.split("-")[1] if _TRACEPARENT.fullmatch(parent) else parent.replace("-", "")
    if not OTEL_TRACE_ID.fullmatch(hexadecimal):
        return (text,)
    parts = (hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[16:20], hexadecimal[20:])
    return tuple(dict.fromkeys((text, hexadecimal, "-".join(parts))))


def context_prefix(text: str) -> str | None:
    """Return how the stored contexts of a trace begin; None where the text names no trace of OpenTelemetry.

    Args:
        text: see `trace_ids_of`.
    """
    ids = [one for one in trace_ids_of(text) if OTEL_TRACE_ID.fullmatch(one)]
    return f"00-{ids[0]}-" if ids else None
