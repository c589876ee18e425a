"""Propagate traces from a polling job or message to its stored rows, through topics, work queues and processes.

The context of a trace is text: W3C Trace Context's `traceparent` and, after a space, its `tracestate` if it has one. It
is read from a message's headers, stored with the work queue's entry, and written to every message about the item, even
if no spans are exported, so that a sender's trace continues downstream.

If an OTLP collector is configured, OpenTelemetry records spans (`spans`, which is not imported otherwise). An item's
batch run is another process than the tick that consumed its message, and works on many items at a time: the run has one
span with a link to each item, and each item's steps are spans in the item's own trace. A run whose items all belong to
one trace is part of that trace.

Tracing never delays or fails the work. Spans wait in a bounded queue for a thread that exports them; spans that do not
fit are counted and dropped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import msgspec

from ingest_project.contracts import TRACE_HEADER, TRACEPARENT, trace_id_in
from ingest_project.core.settings import current_settings
from ingest_project.platform.kafka.consumer import ConsumerRecord, Headers

TRACESTATE = "tracestate"
# W3C Trace Context: version 00, ids that are not all zeros, and the length of a state that every vendor must pass on.
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
    """Return the headers for a context; none for None."""
    if context is None:
        return ()
    parent, _, state = context.partition(" ")
    return ((TRACEPARENT, parent.encode()), *(((TRACESTATE, state.encode()),) if state else ()))


def trace_ids_of(text: str) -> tuple[str, ...]:
    """Return the ids under which a trace may be recorded: the text, and all forms of an OpenTelemetry trace id.

    Args:
        text: the project's trace id, an OpenTelemetry trace id, or a `traceparent`.
    """
    parent = text.strip().lower()
    hexadecimal = parent.split("-")[1] if _TRACEPARENT.fullmatch(parent) else parent.replace("-", "")
    if not OTEL_TRACE_ID.fullmatch(hexadecimal):
        return (text,)
    parts = (hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[16:20], hexadecimal[20:])
    return tuple(dict.fromkeys((text, hexadecimal, "-".join(parts))))


def context_prefix(text: str) -> str | None:
    """Return the prefix of a trace's stored contexts; None if the text is not an OpenTelemetry trace id.

    Args:
        text: see `trace_ids_of`.
    """
    ids = [one for one in trace_ids_of(text) if OTEL_TRACE_ID.fullmatch(one)]
    return f"00-{ids[0]}-" if ids else None


_NOTHING: AbstractContextManager[None] = nullcontext()
# Contexts of the current run's items by key, used if no spans are recorded.
_contexts: ContextVar[Mapping[str, str] | None] = ContextVar("contexts", default=None)


@cache
def is_on() -> bool:
    """Return True if spans are exported."""
    environ = os.environ
    standard = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and bool(current_settings().traces.endpoint or standard)


def message_headers(trace_id: str | None, key: str) -> Headers:
    """Return the headers, trace id and context, of a message about one of the current run's items."""
    own = ((TRACE_HEADER, trace_id.encode()),) if trace_id else ()
    return (*own, *headers_of(context_of(key)))


def context_of(key: str) -> str | None:
    """Return the context of one of the current run's items: that of its span, or the stored one without a span."""
    if not is_on():
        return (_contexts.get() or {}).get(key)
    from ingest_project.platform import spans  # loads OpenTelemetry, here and below

    return spans.context_of(key)


def log_fields(key: str) -> dict[str, str]:
    """Return the trace and span of an item as fields of log lines; none if spans are not exported."""
    if not is_on():
        return {}
    from ingest_project.platform import spans

    return spans.log_fields(key)


def publish(topic: str, trace_id: str | None) -> Headers:
    """Return the headers of a message that begins a trace; if spans are exported, its publication is the first span.

    Args:
        topic: topic of the message.
        trace_id: the project's trace id of the message, if it has one.
    """
    own = ((TRACE_HEADER, trace_id.encode()),) if trace_id else ()
    if not is_on():
        return own
    from ingest_project.platform import spans

    return (*own, *headers_of(spans.publish(topic, trace_id)))


def receive(message: ConsumerRecord, trace_id: str | None, error: Exception | None = None) -> str | None:
    """Record that a message was consumed, and return the context to store with its entry.

    A message without a context begins a trace, with the project's trace id if OpenTelemetry accepts that.

    Args:
        message: the message.
        trace_id: the project's trace id of the message, if it has one.
        error: why the message was refused.
    """
    context = context_in(message.headers)
    if not is_on():
        return context
    from ingest_project.platform import spans

    return spans.receive(message, context, trace_id or trace_id_in(message.headers), error)


def refused(message: ConsumerRecord, error: Exception) -> ConsumerRecord:
    """Record that a message was refused; return it with a context in its headers."""
    context = receive(message, trace_id_in(message.headers), error)
    if context is None or context_in(message.headers) is not None:
        return message
    return msgspec.structs.replace(message, headers=(*message.headers, *headers_of(context)))


def tick(name: str) -> AbstractContextManager[list[str]]:
    """Record a tick that did something, with links to the messages that it consumed.

    Yields:
        a list to which the caller adds the names of its requests.
    """
    if not is_on():
        return nullcontext([])
    from ingest_project.platform import spans

    return spans.tick(name)


def run(job: str, run_id: str) -> AbstractContextManager[None]:
    """Record a run. Its span begins with its first items, see `items`."""
    if not is_on():
        return _NOTHING
    from ingest_project.platform import spans

    return spans.run(job, run_id)


def fail_run(error_class: str, reason: str) -> None:
    """Mark the current run as failed if no exception leaves it."""
    if is_on():
        from ingest_project.platform import spans

        spans.fail_run(error_class, reason)


def items(name: str, worked_on: Iterable[Item]) -> AbstractContextManager[None]:
    """Give each item a span in its own trace, until `finish` or the end of the block; the run links to it.

    Args:
        name: name of the spans.
        worked_on: the items.
    """
    if not is_on():
        return _passing_on({key: context for key, context, _ in worked_on if context})
    from ingest_project.platform import spans

    return spans.items(name, worked_on)


@contextmanager
def _passing_on(contexts: Mapping[str, str]) -> Iterator[None]:
    token = _contexts.set(contexts)
    try:
        yield
    finally:
        _contexts.reset(token)


def finish(key: str, error: tuple[str, str] | None = None, **attributes: Any) -> None:  # noqa: ANN401 - of a span
    """End the span of an item.

    Args:
        key: key of the item.
        error: class and reason of its failure, if it failed.
        attributes: attributes of the result.
    """
    if is_on():
        from ingest_project.platform import spans

        spans.finish(key, error, **attributes)


def step(name: str, keys: Iterable[str], *, of_run: bool = False) -> AbstractContextManager[None]:
    """Record a step as a span below that of each item; ignore items that do not belong to the current run.

    Args:
        name: name of the step, e.g. `store`.
        keys: keys of the items.
        of_run: also record it below the run's span.
    """
    if not is_on():
        return _NOTHING
    from ingest_project.platform import spans

    return spans.step(name, keys, of_run=of_run)


def add_messages(messages: Sequence[ConsumerRecord]) -> Sequence[str]:
    """Start spans for a bounded number of a stream's messages with a context; return their keys.

    A message without a context is part of the run's trace.
    """
    if not is_on():
        return ()
    from ingest_project.platform import spans

    return spans.add_messages(messages)


def finish_messages(keys: Iterable[str]) -> None:
    """End and discard the spans of stored messages: a run of a stream may store millions."""
    if is_on():
        from ingest_project.platform import spans

        spans.finish_messages(keys)
