"""Record and export OpenTelemetry spans: the part of `tracing` that is loaded only if a collector is configured.

A run or tick has one span, with a link to each item; each item's steps are spans in the item's own trace.

OpenTelemetry's standard variables apply unless a setting of this project overrides them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from multiprocessing.util import Finalize
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ingest_project.contracts import TRACEPARENT, trace_id_in
from ingest_project.core.logging import bound, get_logger
from ingest_project.core.settings import Settings, current_settings
from ingest_project.platform.errors import error_class_of, reason_of
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.tracing import OTEL_TRACE_ID, TRACESTATE, Item, context_in

logger = get_logger(__name__)

SIGNAL_PATH = "/v1/traces"
# A batch may have more items than the library's default, 128; links beyond the limit are counted as dropped.
MAX_LINKS = 2_048
MAX_WAITING_SPANS = 16_384
EXPORT_EVERY_MILLISECONDS = 1_000.0


def create_provider(settings: Settings, wanted_trace_id: Callable[[], int | None]) -> TracerProvider:
    """Create the provider of this process's spans.

    Args:
        settings: settings with the collector and the sampling ratio.
        wanted_trace_id: returns the trace id for the next root span; None for a random one.
    """
    provider = TracerProvider(
        # Without a sampler, OTEL_TRACES_SAMPLER chooses.
        sampler=None if (ratio := settings.traces.sample_ratio) >= 1 else ParentBased(TraceIdRatioBased(ratio)),
        resource=_resource(settings.environment),
        id_generator=_Ids(wanted_trace_id),
        span_limits=SpanLimits(max_links=int(os.environ.get("OTEL_SPAN_LINK_COUNT_LIMIT") or MAX_LINKS)),
        # The shutdown would wait for an unavailable collector; `spans.flush` has a bound.
        shutdown_on_exit=False,
    )
    provider.add_span_processor(_Processor(_exporter(settings)))
    # The library repeats its messages with every export; `_Processor` and `_Counting` log once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return provider


class _Ids(RandomIdGenerator):
    """Generates random ids, unless a trace id was chosen for the root span."""

    def __init__(self, wanted_trace_id: Callable[[], int | None]) -> None:
        self._wanted = wanted_trace_id

    def generate_trace_id(self) -> int:
        """Return the chosen id, or a new one."""
        return self._wanted() or super().generate_trace_id()

    def is_trace_id_random(self) -> bool:
        """Return False: a message's sender may have chosen it."""
        return False


class _Processor(BatchSpanProcessor):
    """Exports spans in the background; drops and counts spans that do not fit into the bounded queue."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._lock = threading.Lock()
        self._limit = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or MAX_WAITING_SPANS)
        self._waiting = self._dropped = 0
        delay = None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else EXPORT_EVERY_MILLISECONDS
        super().__init__(_Counting(exporter, self._exported), self._limit, delay)
        os.register_at_fork(after_in_child=self._begin_empty)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that ended; drop it if the queue is full."""
        if not span.context or not span.context.trace_flags.sampled:
            return
        with self._lock:
            is_full = self._waiting >= self._limit
            self._waiting += not is_full
            self._dropped += is_full
            is_first = is_full and self._dropped == 1
        if is_first:
            logger.warning("spans_dropped", reason="The collector does not accept spans as fast as they are recorded.")
        elif not is_full:
            super().on_end(span)

    def _exported(self, spans: int) -> None:
        with self._lock:
            self._waiting -= spans
            dropped = self._dropped if self._waiting < self._limit // 2 else 0
            self._dropped -= dropped
        if dropped:
            logger.warning("spans_were_dropped", spans=dropped)

    def _begin_empty(self) -> None:
        # Start empty, like the queue itself: the parent process exports the waiting spans.
        self._lock = threading.Lock()
        self._waiting = self._dropped = 0


class _Counting(SpanExporter):
    """Reports how many spans were exported or given up, and logs when failures begin and end."""

    def __init__(self, exporter: SpanExporter, exported: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._report = exported
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans; spans that the collector does not accept are lost."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever it is, the work continues
            result, reason = SpanExportResult.FAILURE, type(error).__name__
        else:
            reason = "The collector is away, or refuses them."
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                logger.info("spans_exported_again", lost=self._lost)
            self._lost = 0
        else:
            if not self._lost:
                logger.warning("spans_not_exported", reason=reason)
            self._lost += len(spans)
        self._report(len(spans))
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def _exporter(settings: Settings) -> OTLPSpanExporter:
    endpoint, headers = settings.traces.endpoint, settings.traces.headers
    if endpoint and urlsplit(endpoint).path in {"", "/"}:
        endpoint = endpoint.rstrip("/") + SIGNAL_PATH
    pairs = (pair.partition("=") for pair in (headers.get_secret_value() if headers else "").split(",") if pair)
    return OTLPSpanExporter(
        endpoint=endpoint or None, headers={name.strip(): value.strip() for name, _, value in pairs} or None
    )


def _resource(environment: str) -> Resource:
    own = {
        "service.name": "ingest_project",
        "service.version": version("ingest-project"),
        "deployment.environment.name": environment,
    }
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


# Maximum number of a stream batch's traced messages that get their own spans.
MAX_TRACED_MESSAGES = 1_000
# Seconds that a process waits at its end for its last spans to be exported.
FLUSH_SECONDS = 2.0
_NOTHING: AbstractContextManager[None] = nullcontext()

# Spans of the items of the current run, by key.
_spans: ContextVar[dict[str, Span] | None] = ContextVar("spans", default=None)
_work: ContextVar[_Work | None] = ContextVar("work", default=None)
# Trace id for the next root span.
_wanted_trace_id: ContextVar[int | None] = ContextVar("wanted_trace_id", default=None)


def context_of(key: str) -> str | None:
    """Return the context of the span of one of the current run's items."""
    span = (_spans.get() or {}).get(key)
    return None if span is None else _text_of(span)


def log_fields(key: str) -> dict[str, str]:
    """Return the trace and span of an item as fields of log lines."""
    span = (_spans.get() or {}).get(key)
    return {} if span is None else _log_fields(span)


def publish(topic: str, trace_id: str | None) -> str:
    """Record the publication of a message that begins a trace; return its context."""
    span = _message_span(topic, "send", SpanKind.PRODUCER, None, trace_id)
    span.end()
    return _text_of(span)


def receive(message: ConsumerRecord, context: str | None, trace_id: str | None, error: Exception | None) -> str:
    """Record that a message was consumed, or refused because of an error; return the context for its entry."""
    span = _received(message, context, trace_id)
    if error is not None:
        _fail(span, error_class_of(error), reason_of(error))
    span.end()
    if (work := _work.get()) is not None:
        work.linked.append(_text_of(span))
    return _text_of(span)


@contextmanager
def tick(name: str) -> Iterator[list[str]]:
    """Record a tick that did something; yield the list to which the caller adds its requests."""
    requested: list[str] = []
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
    """Record a run. Its span begins with its first items, see `items`."""
    with _working(_Work(f"run {job}", {"dagster.job": job, "dagster.run_id": run_id})) as work:
        try:
            yield
        except BaseException as error:
            work.fail(error)
            raise
        finally:
            work.end()


def fail_run(error_class: str, reason: str) -> None:
    """Mark the current run as failed if no exception leaves it."""
    if (work := _work.get()) is not None:
        work.error = error_class, reason


@contextmanager
def items(name: str, worked_on: Iterable[Item]) -> Iterator[None]:
    """Give each item a span in its own trace, until `finish` or the end of the block; the run links to it."""
    outer = _work.get()
    with nullcontext(outer) if outer else _working(_Work("run", {})) as work:
        opened, fields = _opened(name, work, list(worked_on))
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
    """End the span of an item."""
    spans = _spans.get()
    if not spans or (span := spans.get(key)) is None or not span.is_recording():
        return
    span.set_attributes({f"ingest.{name}": value for name, value in attributes.items() if value is not None})
    if error is not None:
        _fail(span, *error)
    span.end()


def step(name: str, keys: Iterable[str], *, of_run: bool = False) -> AbstractContextManager[None]:
    """Record a step of some items, and with `of_run` also one below the run's span."""
    spans = _spans.get()
    return _NOTHING if spans is None else _step(name, spans, keys, of_run=of_run)


def add_messages(messages: Sequence[ConsumerRecord]) -> Sequence[str]:
    """Start spans for a bounded number of a stream's messages with a context; return their keys."""
    spans, work = _spans.get(), _work.get()
    if spans is None or work is None:
        return ()
    found: dict[str, tuple[ConsumerRecord, str]] = {}
    for message in messages:
        if len(found) < MAX_TRACED_MESSAGES and (context := context_in(message.headers)):
            found[f"{message.topic}[{message.partition}]@{message.offset}"] = message, context
    others = [None] if len(found) < len(messages) else []
    run_span = work.begin([*(context for _, context in found.values()), *others])
    for key, (message, context) in found.items():
        spans[key] = _received(message, context, trace_id_in(message.headers), links=[_text_of(run_span)])
        spans[key].set_attributes(work.attributes)
    return list(found)


def finish_messages(keys: Iterable[str]) -> None:
    """End and discard the spans of stored messages: a run of a stream may store millions."""
    for key in keys:
        finish(key)
        (_spans.get() or {}).pop(key, None)


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Export the waiting spans, for a bounded time."""
    _flush(_provider(), seconds)


def _flush(provider: TracerProvider, seconds: float) -> None:
    # The SDK does not implement its own timeout yet.
    exporting = threading.Thread(target=provider.force_flush, daemon=True)
    exporting.start()
    exporting.join(seconds)


@dataclass
class _Work:
    """The span of a run or tick, created once its items are known; if all belong to one trace, it joins that trace.

    Args:
        linked: contexts of the items to which a tick links at its end.
    """

    name: str
    attributes: dict[str, Any]
    linked: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None
    began: int = field(default_factory=time.time_ns)
    span: Span | None = None

    def begin(self, contexts: Sequence[str | None]) -> Span:
        """Begin the span, or add links if it has begun already.

        Args:
            contexts: contexts of the items; None for an item without one.
        """
        links = _links([context for context in contexts if context])
        if self.span is None:
            traces = {context and context.split("-")[1] for context in contexts}
            parent = _otel_context(contexts[0] if len(traces) == 1 else None)
            self.span = _tracer().start_span(
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


def _opened(name: str, work: _Work, worked_on: Sequence[Item]) -> tuple[dict[str, Span], dict[str, str]]:
    """Begin the spans of items; return them, and the run's trace as fields of log lines."""
    if not worked_on:
        return {}, {}
    run_span = work.begin([context for _, context, _ in worked_on])
    links = _links([_text_of(run_span)])
    spans = {}
    for key, context, known in worked_on:
        attributes = {"ingest.item": key, **work.attributes, **_plain(known)}
        spans[key] = _tracer().start_span(name, _otel_context(context), attributes=attributes, links=links)
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
    parents = [span for key in keys if (span := spans.get(key)) is not None]
    if of_run and (work := _work.get()) is not None:
        parents.append(work.begin([]))
    fields = _log_fields(parents[0]) if len(parents) == 1 else {}
    opened = [_tracer().start_span(name, set_span_in_context(parent)) for parent in parents]
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


def _received(message: ConsumerRecord, context: str | None, trace_id: str | None, links: Sequence[str] = ()) -> Span:
    span = _message_span(message.topic, "process", SpanKind.CONSUMER, context, trace_id, links)
    span.set_attribute("messaging.destination.partition.id", str(message.partition))
    span.set_attribute("messaging.kafka.offset", message.offset)
    return span


def _message_span(  # noqa: PLR0913, PLR0917 - the parts of a span
    topic: str, operation: str, kind: SpanKind, context: str | None, trace_id: str | None, links: Sequence[str] = ()
) -> Span:
    attributes = {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
        **({"ingest.trace_id": trace_id} if trace_id else {}),
    }
    own = (trace_id or "").lower().replace("-", "")
    token = _wanted_trace_id.set(int(own, 16) if OTEL_TRACE_ID.fullmatch(own) else None)
    try:
        return _tracer().start_span(
            f"{topic} {operation}", _otel_context(context), kind=kind, attributes=attributes, links=_links(links)
        )
    finally:
        _wanted_trace_id.reset(token)


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"ingest.{name}": value for name, value in attributes.items() if value is not None}


def _fail(span: Span, error_class: str, reason: str) -> None:
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
    """Convert a context to OpenTelemetry's type; None becomes an empty one, which begins a trace."""
    if context is None:
        return Context()
    parent, _, state = context.partition(" ")
    return TraceContextTextMapPropagator().extract({TRACEPARENT: parent, TRACESTATE: state}, Context())


def _links(contexts: Sequence[str]) -> list[Link]:
    return [Link(get_current_span(_otel_context(one)).get_span_context()) for one in dict.fromkeys(contexts)]


@cache
def _tracer() -> Tracer:
    return _provider().get_tracer("ingest_project")


@cache
def _provider() -> TracerProvider:
    """Set up OpenTelemetry once per process."""
    provider = create_provider(current_settings(), _wanted_trace_id.get)
    # Run workers are children of multiprocessing, which end without running Python's atexit handlers.
    Finalize(None, _flush, (provider, FLUSH_SECONDS), exitpriority=10)
    return provider
