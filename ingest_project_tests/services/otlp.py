"""A collector of OpenTelemetry: takes spans over OTLP/HTTP, as protobuf."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ingest_project.core.settings import current_settings
from ingest_project.platform import tracing


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
class Collector:
    """The server.

    Attributes:
        spans: that were received, in order.
        requests: headers of each request.
        resource: attributes of the process that sent last.
        status: of the answers.
        delay_seconds: before each answer.
    """

    spans: list[Span] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    delay_seconds: float = 0.0

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(collector.delay_seconds)
                collector.requests.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                if collector.status == 200:
                    collector.receive(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address, as a setting takes it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def receive(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of a request."""
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
        """The spans whose name ends so."""
        return [span for span in self.spans if span.name.endswith(name)]

    def of(self, trace: str) -> list[Span]:
        """The spans of a trace."""
        return [span for span in self.spans if span.trace == trace]

    def tree(self, trace: str) -> dict[str, str]:
        """Names of the spans of a trace, each with its parent's; `remote` for one that others sent."""
        names = {span.id: span.name for span in self.of(trace)}
        return {span.name: names.get(span.parent, "remote" if span.parent else "") for span in self.of(trace)}


def _values(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 - protobuf
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def forget() -> None:
    """Have this process read its settings and set tracing up again."""
    current_settings.cache_clear()
    tracing._provider.cache_clear()
    tracing._tracer.cache_clear()


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
