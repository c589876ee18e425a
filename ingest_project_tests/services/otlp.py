"""An OpenTelemetry collector: receives spans over OTLP/HTTP as protobuf."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ingest_project.core.settings import current_settings
from ingest_project.platform import spans, tracing
from ingest_project_tests.services.receiver import Receiver


@dataclass(frozen=True)
class Span:
    """One span as it was received; ids are hexadecimal, `parent` is empty for a root."""

    name: str
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    failed: bool
    reason: str
    began: int
    ended: int


@dataclass
class Collector(Receiver):
    """The server.

    Attributes:
        spans: that were received, in order.
        resource: attributes of the process that sent last.
    """

    spans: list[Span] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)

    def take(self, body: bytes) -> None:
        """Store the spans of a request, unless it is refused."""
        if self.status == 200:
            self.receive(ExportTraceServiceRequest.FromString(body))

    def receive(self, request: ExportTraceServiceRequest) -> None:
        """Store the spans of a request."""
        for resource in request.resource_spans:
            self.resource = _values(resource.resource.attributes)
            self.spans += [
                Span(
                    name=one.name,
                    trace=one.trace_id.hex(),
                    id=one.span_id.hex(),
                    parent=one.parent_span_id.hex(),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in one.links),
                    attributes=_values(one.attributes),
                    failed=one.status.code == 2,
                    reason=one.status.message,
                    began=one.start_time_unix_nano,
                    ended=one.end_time_unix_nano,
                )
                for scope in resource.scope_spans
                for one in scope.spans
            ]

    def named(self, name: str) -> list[Span]:
        """Return the spans whose name ends with this text."""
        return [span for span in self.spans if span.name.endswith(name)]

    def of(self, trace: str) -> list[Span]:
        """Return the spans of a trace."""
        return [span for span in self.spans if span.trace == trace]

    def tree(self, trace: str) -> dict[str, str]:
        """Return the names of a trace's spans, each with its parent's; `remote` for a parent elsewhere."""
        names = {span.id: span.name for span in self.of(trace)}
        return {span.name: names.get(span.parent, "remote" if span.parent else "") for span in self.of(trace)}


def _values(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 - protobuf
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def forget() -> None:
    """Make this process read its settings and set up tracing again."""
    current_settings.cache_clear()
    tracing.is_on.cache_clear()
    spans._provider.cache_clear()
    spans._tracer.cache_clear()


def publish_in_a_worker(collector_url: str) -> None:
    """Record a span as a run worker does; called in one, which imports this module and not that of the test."""
    # The process that it is forked from may have begun before this test.
    os.environ["INGEST_TRACES_ENDPOINT"] = collector_url
    forget()
    tracing.publish("topic", None)


@pytest.fixture
def tracing_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set the address of the collector, for this process."""

    def set_up(url: str) -> None:
        monkeypatch.setenv("INGEST_TRACES_ENDPOINT", url)
        forget()

    yield set_up
    monkeypatch.undo()
    forget()


@pytest.fixture
def collector(tracing_to: Callable[[str], None]) -> Iterator[Collector]:
    """A collector, to which this process exports."""
    with Collector() as server:
        tracing_to(server.url)
        yield server
