"""What `spans` exports by: identity of this process, sampling, and the export of spans over OTLP/HTTP.

The standard variables of OpenTelemetry hold wherever a setting of this project does not say otherwise.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings

logger = get_logger(__name__)

SIGNAL_PATH = "/v1/traces"
# A batch may have more items than the library's default, 128; the others are counted as dropped.
MAX_LINKS = 2_048
MAX_WAITING_SPANS = 16_384
EXPORT_EVERY_MILLISECONDS = 1_000.0


def create_provider(settings: Settings, wanted_trace_id: Callable[[], int | None]) -> TracerProvider:
    """Create the provider of this process's spans.

    Args:
        settings: where spans go, and the share of traces that are recorded.
        wanted_trace_id: returns the id of the trace that the next root span begins; None for any.
    """
    provider = TracerProvider(
        sampler=_sampler(settings.traces.sample_ratio),
        resource=_resource(settings.environment),
        id_generator=_Ids(wanted_trace_id),
        span_limits=SpanLimits(max_links=int(os.environ.get("OTEL_SPAN_LINK_COUNT_LIMIT") or MAX_LINKS)),
        # It would wait for a collector that is away; `spans.flush` has a bound.
        shutdown_on_exit=False,
    )
    provider.add_span_processor(_Processor(_exporter(settings)))
    # Its messages repeat with every export; `_Processor` logs once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return provider


class _Ids(RandomIdGenerator):
    """Random ids, except where the trace of a root span was chosen."""

    def __init__(self, wanted_trace_id: Callable[[], int | None]) -> None:
        self._wanted = wanted_trace_id

    def generate_trace_id(self) -> int:
        """Return the chosen id, or a new one."""
        return self._wanted() or super().generate_trace_id()

    def is_trace_id_random(self) -> bool:
        """Return False: a message's sender may have chosen it."""
        return False


class _Processor(BatchSpanProcessor):
    """Exports spans in the background; drops and counts those for which the bounded queue has no room."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._lock = threading.Lock()
        self._limit = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or MAX_WAITING_SPANS)
        self._waiting = self._dropped = 0
        delay = None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else EXPORT_EVERY_MILLISECONDS
        super().__init__(_Counting(exporter, self._exported), self._limit, delay)
        os.register_at_fork(after_in_child=self._begin_empty)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that ended; drop it where the queue is full."""
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
        # As the queue itself does: what waits is the parent's to export.
        self._lock = threading.Lock()
        self._waiting = self._dropped = 0


class _Counting(SpanExporter):
    """Reports how many spans were handed to the collector or given up, and logs when failures begin and end."""

    def __init__(self, exporter: SpanExporter, exported: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._report = exported
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans; what the collector does not accept is lost."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever it is, the work goes on
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


def _sampler(ratio: float) -> Sampler | None:
    """Return the sampler; None for all, which leaves it to OTEL_TRACES_SAMPLER."""
    return None if ratio >= 1 else ParentBased(TraceIdRatioBased(ratio))


def _resource(environment: str) -> Resource:
    own = {
        "service.name": "ingest_project",
        "service.version": version("ingest-project"),
        "deployment.environment.name": environment,
    }
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})
