"""Traces: one from the polling job or message to its stored rows, through topics, work queues and processes.

A context is a text, `traceparent` of W3C Trace Context and after a space its `tracestate`, where there is one. It is
read from the headers of a message, stored with the entry of the work queue, and written to every message about the
item, also where nothing is exported: a trace of the sender passes through.

Where an OTLP collector is set, OpenTelemetry records spans. The batch run that works on an item is another process than
the tick that consumed its message, and works on many items at a time: the run has one span with a link to each item,
and each item's steps are spans in the item's own trace. A run over items of a single trace is part of that trace.

Nothing here delays or fails the work. Spans wait in a bounded queue for a thread that exports them; what does not fit
is counted and dropped. Where no collector is set, OpenTelemetry is not imported.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import msgspec

from ingest_project.contracts import TRACE_HEADER, TRACEPARENT, trace_id_in
from ingest_project.core.logging import bound, get_logger
from ingest_project.core.settings import current_settings
from ingest_project.platform.errors import error_class_of, reason_of
from ingest_project.platform.kafka.consumer import ConsumerRecord, Headers

if TYPE_CHECKING:
    # OpenTelemetry is imported by processes that export spans, and by no other.
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span, SpanKind, Tracer

logger = get_logger(__name__)

TRACESTATE = "tracestate"
# W3C Trace Context: version 00, ids that are not all zeros; the state's length is what a vendor has to pass on.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x21-\x7e]{1,512}")
_OTEL_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
# Of the messages of one batch of a stream that have a trace, those with spans of their own.
MAX_TRACED_MESSAGES = 1_000
# How long the end of a process waits for its last spans to be exported.
FLUSH_SECONDS = 2.0
_NOTHING: AbstractContextManager[None] = nullcontext()

# Contexts or spans of the items that this run works on, by key.
_contexts: ContextVar[Mapping[str, str] | None] = ContextVar("contexts", default=None)
_spans: ContextVar[dict[str, Span] | None] = ContextVar("spans", default=None)
_work: ContextVar[_Work | None] = ContextVar("work", default=None)
# The id of the next root span's trace.
_wanted_trace_id: ContextVar[int | None] = ContextVar("wanted_trace_id", default=None)


def is_on() -> bool:
    """Return whether spans are exported."""
    return _tracer() is not None


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


def message_headers(trace_id: str | None, key: str) -> Headers:
    """Return the headers of a message about an item that this run works on: trace id and context."""
    own = ((TRACE_HEADER, trace_id.encode()),) if trace_id else ()
    return (*own, *headers_of(context_of(key)))


def context_of(key: str) -> str | None:
    """Return the context of an item that this run works on: of its span, or the stored one where none is recorded."""
    span = (_spans.get() or {}).get(key)
    return _text_of(span) if span is not None else (_contexts.get() or {}).get(key)


def log_fields(key: str) -> dict[str, str]:
    """Return the trace and span of an item as fields of log lines; nothing while spans are not exported."""
    span = (_spans.get() or {}).get(key)
    return {} if span is None else _log_fields(span)


def trace_ids_of(text: str) -> tuple[str, ...]:
    """Return what may be on record of a trace: the text, and the forms of its id where it names one of OpenTelemetry.

    Args:
        text: a trace id of the project, of OpenTelemetry, or a `traceparent`.
    """
    parent = text.strip().lower()
    hexadecimal = parent.split("-")[1] if _TRACEPARENT.fullmatch(parent) else parent.replace("-", "")
    if not _OTEL_TRACE_ID.fullmatch(hexadecimal):
        return (text,)
    parts = (hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[16:20], hexadecimal[20:])
    return tuple(dict.fromkeys((text, hexadecimal, "-".join(parts))))


def context_prefix(text: str) -> str | None:
    """Return how the stored contexts of a trace begin; None where the text names no trace of OpenTelemetry.

    Args:
        text: see `trace_ids_of`.
    """
    ids = [one for one in trace_ids_of(text) if _OTEL_TRACE_ID.fullmatch(one)]
    return f"00-{ids[0]}-" if ids else None


def publish(topic: str, trace_id: str | None) -> Headers:
    """Return the headers of a message that begins a trace; where spans are exported, its publication is the first.

    Args:
        topic: that it is for.
        trace_id: the project's own, where it has one.
    """
    own = ((TRACE_HEADER, trace_id.encode()),) if trace_id else ()
    if (tracer := _tracer()) is None:
        return own
    from opentelemetry.trace import SpanKind  # see the beginning

    span = _message_span(tracer, topic, "send", SpanKind.PRODUCER, None, trace_id)
    span.end()
    return (*own, *headers_of(_text_of(span)))


def receive(message: ConsumerRecord, trace_id: str | None, error: Exception | None = None) -> str | None:
    """Record that a message was consumed, and return the context to store with what is made of it.

    A message without a context begins a trace: under the project's own trace id, if that is one of OpenTelemetry too.

    Args:
        message: as it was read.
        trace_id: the project's own, where the message has one.
        error: why the message was refused.
    """
    tracer, context = _tracer(), context_in(message.headers)
    if tracer is None:
        return context
    span = _received(tracer, message, context, trace_id or trace_id_in(message.headers))
    if error is not None:
        _fail(span, error_class_of(error), reason_of(error))
    span.end()
    if (work := _work.get()) is not None:
        work.linked.append(_text_of(span))
    return _text_of(span)


def refused(message: ConsumerRecord, error: Exception) -> ConsumerRecord:
    """Record that a message was refused; return it with the context in its headers, if it had none."""
    context = receive(message, trace_id_in(message.headers), error)
    if context is None or context_in(message.headers) is not None:
        return message
    return msgspec.structs.replace(message, headers=(*message.headers, *headers_of(context)))


@contextmanager
def tick(name: str) -> Iterator[list[str]]:
    """Record a tick that did something, with links to the messages that it consumed.

    Yields:
        a list that the caller adds the names of what it requested to.
    """
    requested: list[str] = []
    if not is_on():
        yield requested
        return
    with _working(_Work(f"tick {name}", {"dagster.sensor": name})) as work:
        try:
            yield requested
        except Exception as error:
            work.fail(error)
            raise
        finally:
            if work.linked or requested or work.error:
                work.attributes |= {"ingest.messages": len(work.linked), "ingest.runs_requested": len(requested)}
                work.end()


@contextmanager
def run(job: str, run_id: str) -> Iterator[None]:
    """Record a run. Its span begins with the first items that it works on, see `items`."""
    if not is_on():
        yield
        return
    with _working(_Work(f"run {job}", {"dagster.job": job, "dagster.run_id": run_id})) as work:
        try:
            yield
        except BaseException as error:
            work.fail(error)
            raise
        finally:
            work.end()


def fail_run(error_class: str, reason: str) -> None:
    """Mark the present run as failed, where no exception leaves it."""
    if (work := _work.get()) is not None:
        work.error = error_class, reason


Item = tuple[str, str | None, Mapping[str, Any]]
"""Key, stored context and attributes."""


@contextmanager
def items(name: str, worked_on: Iterable[Item]) -> Iterator[None]:
    """Work on items: each gets a span in its own trace, until `finish` or the end of the block; the run links to it.

    Args:
        name: of the spans.
        worked_on: the items.
    """
    tracer = _tracer()
    if tracer is None:
        contexts = _contexts.set({key: context for key, context, _ in worked_on if context})
        try:
            yield
        finally:
            _contexts.reset(contexts)
        return
    outer = _work.get()
    with nullcontext(outer) if outer else _working(_Work("run", {})) as work:
        opened, fields = _opened(tracer, name, work, list(worked_on))
        token = _spans.set(opened)
        try:
            with bound(**fields):
                yield
        except Exception as error:
            for key in opened:
                finish(key, (error_class_of(error), reason_of(error)))
            raise
        finally:
            for key in opened:
                finish(key)
            _spans.reset(token)
            if outer is None:
                work.end()


def finish(key: str, error: tuple[str, str] | None = None, **attributes: Any) -> None:  # noqa: ANN401 - of a span
    """End the span of an item.

    Args:
        key: of the item.
        error: class and reason, where it failed.
        attributes: of the result.
    """
    spans = _spans.get()
    if not spans or (span := spans.get(key)) is None or not span.is_recording():
        return
    span.set_attributes({f"ingest.{name}": value for name, value in attributes.items() if value is not None})
    if error is not None:
        _fail(span, *error)
    span.end()


def step(name: str, keys: Iterable[str], *, of_run: bool = False) -> AbstractContextManager[None]:
    """Record a step of some items: a span below that of each; of items that this run does not work on, nothing.

    Args:
        name: of the step, e.g. `store`.
        keys: of the items.
        of_run: record it below the run's span as well.
    """
    spans = _spans.get()
    return _NOTHING if spans is None else _step(name, spans, keys, of_run=of_run)


def add_messages(messages: Sequence[ConsumerRecord]) -> Sequence[str]:
    """Work on the messages of a stream that have a context as items, a bounded number; returns their keys.

    A message without one is part of the run's trace.
    """
    tracer, spans, work = _tracer(), _spans.get(), _work.get()
    if tracer is None or spans is None or work is None:
        return ()
    found: dict[str, tuple[ConsumerRecord, str]] = {}
    for message in messages:
        if len(found) < MAX_TRACED_MESSAGES and (context := context_in(message.headers)):
            found[f"{message.topic}[{message.partition}]@{message.offset}"] = message, context
    others = [None] if len(found) < len(messages) else []
    run_span = work.begin([*(context for _, context in found.values()), *others])
    for key, (message, context) in found.items():
        spans[key] = _received(tracer, message, context, trace_id_in(message.headers), links=[_text_of(run_span)])
        spans[key].set_attributes(work.attributes)
    return list(found)


def finish_messages(keys: Iterable[str]) -> None:
    """End the spans of messages that are stored, and forget them: a run of a stream may store millions."""
    for key in keys:
        finish(key)
        (_spans.get() or {}).pop(key, None)


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Export the spans that wait, for a bounded time."""
    if (provider := _provider()) is not None:
        # The SDK's own bound is not in force yet.
        exporting = threading.Thread(target=provider.force_flush, daemon=True)
        exporting.start()
        exporting.join(seconds)


@dataclass
class _Work:
    """The span of a run or tick, which begins once its items are known: of a single trace, it is part of it.

    Args:
        linked: contexts of the items that a tick links to at its end.
    """

    name: str
    attributes: dict[str, Any]
    linked: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None
    began: int = field(default_factory=time.time_ns)
    span: Span | None = None

    def begin(self, contexts: Sequence[str | None]) -> Span:
        """Begin the span, or add links to the one that has begun.

        Args:
            contexts: of the items; None for one without a context.
        """
        links = _links([context for context in contexts if context])
        if self.span is None:
            traces = {context and context.split("-")[1] for context in contexts}
            parent = _otel_context(contexts[0] if len(traces) == 1 else None)
            self.span = _present_tracer().start_span(
                self.name, parent, attributes=self.attributes, links=links, start_time=self.began
            )
        else:
            for link in links:
                self.span.add_link(link.context)
        return self.span

    def fail(self, error: BaseException) -> None:
        """Note the error that ended it."""
        self.error = error_class_of(error), reason_of(error)

    def end(self) -> None:
        """End the span."""
        span = self.begin(self.linked)
        span.set_attributes(self.attributes)
        if self.error:
            _fail(span, *self.error)
        span.end()


def _opened(
    tracer: Tracer, name: str, work: _Work, worked_on: Sequence[Item]
) -> tuple[dict[str, Span], dict[str, str]]:
    """Begin the spans of items; return them, and the run's trace as fields of log lines."""
    if not worked_on:
        return {}, {}
    run_span = work.begin([context for _, context, _ in worked_on])
    links = _links([_text_of(run_span)])
    spans = {}
    for key, context, known in worked_on:
        attributes = {"ingest.item": key, **work.attributes, **_plain(known)}
        spans[key] = tracer.start_span(name, _otel_context(context), attributes=attributes, links=links)
    return spans, _log_fields(run_span)


@contextmanager
def _working(work: _Work) -> Iterator[_Work]:
    token = _work.set(work)
    try:
        yield work
    finally:
        _work.reset(token)


@contextmanager
def _step(name: str, spans: Mapping[str, Span], keys: Iterable[str], *, of_run: bool) -> Iterator[None]:
    from opentelemetry.trace import set_span_in_context  # see the beginning

    parents = [span for key in keys if (span := spans.get(key)) is not None]
    if of_run and (work := _work.get()) is not None:
        parents.append(work.begin([]))
    fields = _log_fields(parents[0]) if len(parents) == 1 else {}
    opened = [_present_tracer().start_span(name, set_span_in_context(parent)) for parent in parents]
    try:
        with bound(**fields):
            yield
    except Exception as error:
        for span in opened:
            _fail(span, error_class_of(error), reason_of(error))
        raise
    finally:
        for span in opened:
            span.end()


def _received(
    tracer: Tracer, message: ConsumerRecord, context: str | None, trace_id: str | None, links: Sequence[str] = ()
) -> Span:
    from opentelemetry.trace import SpanKind

    span = _message_span(tracer, message.topic, "process", SpanKind.CONSUMER, context, trace_id, links)
    span.set_attribute("messaging.destination.partition.id", str(message.partition))
    span.set_attribute("messaging.kafka.offset", message.offset)
    return span


def _message_span(  # noqa: PLR0913, PLR0917 - the parts of a span
    tracer: Tracer,
    topic: str,
    operation: str,
    kind: SpanKind,
    context: str | None,
    trace_id: str | None,
    links: Sequence[str] = (),
) -> Span:
    attributes = {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
        **({"ingest.trace_id": trace_id} if trace_id else {}),
    }
    own = (trace_id or "").lower().replace("-", "")
    token = _wanted_trace_id.set(int(own, 16) if _OTEL_TRACE_ID.fullmatch(own) else None)
    try:
        return tracer.start_span(
            f"{topic} {operation}", _otel_context(context), kind=kind, attributes=attributes, links=_links(links)
        )
    finally:
        _wanted_trace_id.reset(token)


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"ingest.{name}": value for name, value in attributes.items() if value is not None}


def _fail(span: Span, error_class: str, reason: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error_class)
    span.set_status(StatusCode.ERROR, reason)


def _log_fields(span: Span) -> dict[str, str]:
    context = span.get_span_context()
    return {"otel_trace_id": f"{context.trace_id:032x}", "otel_span_id": f"{context.span_id:016x}"}


def _text_of(span: Span) -> str:
    context = span.get_span_context()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return f"{parent} {context.trace_state.to_header()}".rstrip()


def _otel_context(context: str | None) -> Context:
    """Return the context as OpenTelemetry has it; an empty one, which begins a trace, for None."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if context is None:
        return Context()
    parent, _, state = context.partition(" ")
    return TraceContextTextMapPropagator().extract({TRACEPARENT: parent, TRACESTATE: state}, Context())


def _links(contexts: Sequence[str]) -> list[Link]:
    from opentelemetry.trace import Link, get_current_span

    return [Link(get_current_span(_otel_context(one)).get_span_context()) for one in dict.fromkeys(contexts)]


@cache
def _tracer() -> Tracer | None:
    provider = _provider()
    return None if provider is None else provider.get_tracer("ingest_project")


def _present_tracer() -> Tracer:
    tracer = _tracer()
    assert tracer is not None, "only called where spans are recorded"  # noqa: S101 - for the type checker
    return tracer


@cache
def _provider() -> TracerProvider | None:
    """Set OpenTelemetry up, once a process; None where no collector is set."""
    settings = current_settings()
    environ = os.environ
    standard = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not (settings.traces.endpoint or standard):
        return None
    from ingest_project.platform.span_export import create_provider  # imports OpenTelemetry

    provider = create_provider(settings, _wanted_trace_id.get)
    # Run workers are children of multiprocessing, which end without Python's own handlers at exit.
    Finalize(None, flush, exitpriority=10)
    return provider
