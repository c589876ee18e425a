"""One trace from the polling job or message to its stored rows."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from ingest_project.platform import spans, tracing
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.tracing import context_in, context_prefix, headers_of, trace_ids_of
from ingest_project_tests.attachments.system import AttachmentSystem
from ingest_project_tests.journeys.system import POLLING, System, readings
from ingest_project_tests.services.http_server import HttpServer
from ingest_project_tests.services.loaded_definitions import LoadedDefinitions
from ingest_project_tests.services.otlp import Collector, publish_in_a_worker
from ingest_project_tests.streams.crm.messages import opportunity
from ingest_project_tests.streams.crm.system import CrmSystem
from ingest_project_tests.streams.user_activity.events import encoded, event
from ingest_project_tests.streams.user_activity.system import ActivitySystem
from ingest_project_tests.tracing.system import recorded

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# Seconds, on a machine that has much else to do.
WAIT = 30
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def send(system: System, topic: str, message: Mapping[str, Any] | bytes, traceparent: str | None = TRACEPARENT) -> None:
    value = message if isinstance(message, bytes) else msgspec.json.encode(message)
    headers = (("traceparent", traceparent.encode()), ("tracestate", b"vendor=1")) if traceparent else ()
    system.services.writer.send_all(topic, [ProducerRecord(value, headers=headers)])


def job_of(system: System, **more: object) -> dict[str, object]:
    source = {"source_type": "local", "path": str(system.folder)}
    return {"job_id": "traced", "source_config": source, "file_pattern": "*.csv", **more}


def test_a_polling_job_its_files_and_their_rows_are_one_trace(system: System, collector: Collector) -> None:
    recorded(system)
    for number in range(3):
        system.write(f"f{number}.csv", readings(4, device=f"device-{number}"))
    topics = system.settings.topics
    send(system, topics.polling_queue, job_of(system))
    system.drive()
    spans.flush(WAIT)
    assert {span.trace for span in collector.spans} == {TRACE}
    tree = collector.tree(TRACE)
    polled, announced = f"{topics.polling_queue} process", f"{topics.file_event_queue} process"
    assert tree[polled] == "remote"
    assert tree["poll source"] == polled
    assert {name: tree[name] for name in ("list", "publish")} == {"list": "poll source", "publish": "poll source"}
    assert tree[announced] == "poll source"
    assert tree["ingest file"] == announced
    assert {tree[name] for name in ("read", "validate", "store")} == {"ingest file"}
    files = collector.named("ingest file")
    assert {span.attributes["ingest.rows_accepted"] for span in files} == {4}
    (run,) = collector.named("run file_batch")
    consumed = {(TRACE, span.id) for span in collector.named(announced)}
    assert set(run.links) == consumed
    assert {(link, span.attributes["dagster.run_id"]) for span in files for link in span.links} == {
        ((TRACE, run.id), run.attributes["dagster.run_id"])
    }
    assert collector.resource["service.name"] == "ingest_project"
    event = system.on_topic(topics.file_event_queue)[0]
    assert event.header("tracestate") == b"vendor=1"


def test_a_batch_of_several_traces_has_one_run_that_links_to_each(system: System, collector: Collector) -> None:
    recorded(system)
    names, topic = ("a", "b", "c"), system.settings.topics.file_event_queue
    for name in names:
        path = system.write(f"{name}.csv", readings(3, device=name))
        send(system, topic, {"file_path": str(path), "file_name": path.name}, f"00-{name * 32}-{PARENT}-01")
    (request,) = system.requests()
    system.execute("file_batch", request)
    spans.flush(WAIT)
    (run,) = collector.named("run file_batch")
    assert run.trace not in {name * 32 for name in names}
    assert {trace for trace, _ in run.links} == {name * 32 for name in names}
    for name in names:
        tree = collector.tree(name * 32)
        assert tree.keys() == {f"{topic} process", "ingest file", "read", "validate", "store", "report"}
        assert {tree[step] for step in ("read", "validate", "store", "report")} == {"ingest file"}
    # The tick, too, consumed messages of several traces.
    (tick,) = collector.named("tick file_event_queue_sensor")
    assert {trace for trace, _ in tick.links} == {name * 32 for name in names}


def test_a_message_without_a_context_begins_a_trace_under_its_own_trace_id(
    system: System, collector: Collector
) -> None:
    path, topic = system.write("own.csv", readings(2)), system.settings.topics.file_event_queue
    own = "550e8400-e29b-41d4-a716-446655440000"
    send(system, topic, {"file_path": str(path), "file_name": path.name, "trace_id": own}, None)
    send(system, topic, {"file_path": "in/none.csv", "file_name": "none.csv"}, "no context")
    system.tick()
    spans.flush(WAIT)
    (consumed,) = [one for one in collector.named(" process") if one.attributes.get("ingest.trace_id") == own]
    assert (consumed.trace, consumed.parent) == (own.replace("-", ""), "")
    assert system.file("own.csv").kafka_position.context == f"00-{consumed.trace}-{consumed.id}-01"
    assert trace_ids_of(f"00-{consumed.trace}-{consumed.id}-01")[1:] == (consumed.trace, own)


def test_a_dead_letter_keeps_its_trace_and_shows_the_reason(system: System, collector: Collector) -> None:
    topics = system.settings.topics
    send(system, topics.polling_queue, b"{not json")
    send(system, topics.polling_queue, b"[]", None)
    system.tick(POLLING)
    spans.flush(WAIT)
    sent, begun = sorted(collector.named(f"{topics.polling_queue} process"), key=lambda span: span.trace != TRACE)
    assert (sent.trace, sent.parent) == (TRACE, PARENT)
    assert sent.failed
    assert "Not JSON" in sent.reason
    assert sent.attributes["error.type"] == "UnreadableMessageError"
    letters = system.on_topic(topics.polling_queue_dlq)
    kept, other = sorted(letters, key=lambda one: one.header("traceparent") != TRACEPARENT.encode())
    assert kept.header("traceparent") == TRACEPARENT.encode()
    assert other.header("traceparent") == f"00-{begun.trace}-{begun.id}-01".encode()


def test_an_attachment_is_one_trace_over_its_retries(
    attachment_system: AttachmentSystem, http_server: HttpServer, collector: Collector
) -> None:
    system = recorded(attachment_system)
    url = http_server.url("/flaky/report.pdf?failures=1&user=secret")
    event = {"trace_id": "claim-1", "domain": "claims", "event_type": "received", "attachments": [url]}
    send(system, system.settings.topics.events_raw, event)
    system.drive_to_the_end()
    spans.flush(WAIT)
    assert {span.trace for span in collector.spans} == {TRACE}
    attempts = sorted(collector.named("ingest attachment"), key=lambda span: span.attributes["ingest.attempt"])
    assert [(one.attributes["ingest.attempt"], one.failed) for one in attempts] == [(1, True), (2, False)]
    consumed = next(one for one in collector.spans if one.name == f"{system.settings.topics.events_raw} process")
    assert {one.parent for one in attempts} == {consumed.id}
    steps = {span.name for span in collector.spans if span.parent == attempts[1].id}
    assert steps >= {"download", "upload", "publish", "report", "commit"}
    (extracted,) = collector.named("extract attachments")
    topics = system.settings.topics
    parents = {
        topic: _parents(system.on_topic(topic)) for topic in (topics.downloads_pending, *topics.downloads_retry[:1])
    }
    assert parents == {topics.downloads_pending: {extracted.id}, topics.downloads_retry_5m: {attempts[0].id}}
    assert _parents(system.on_topic(topics.downloads_results)) == {one.id for one in attempts}
    assert _parents(system.on_topic(topics.downloads_cached)) == {attempts[1].id}
    assert "secret" not in str(collector.spans)


def _parents(messages: list[ConsumerRecord]) -> set[str]:
    return {(one.header("traceparent") or b"---").decode().split("-")[2] for one in messages}


def test_without_an_exporter_the_senders_trace_is_passed_on(system: System) -> None:
    system.write("f.csv", readings(2))
    topics = system.settings.topics
    send(system, topics.polling_queue, job_of(system))
    system.drive()
    (event,) = system.on_topic(topics.file_event_queue)
    assert (event.header("traceparent"), event.header("tracestate")) == (TRACEPARENT.encode(), b"vendor=1")
    assert system.file("f.csv").kafka_position.context == f"{TRACEPARENT} vendor=1"
    # Under either form of its id, an operator finds the entries.
    assert context_prefix(TRACEPARENT) == f"00-{TRACE}-"


@pytest.mark.parametrize("fault", ["away", "slow"])
def test_a_collector_that_is_away_or_slow_neither_fails_nor_delays_the_work(
    system: System, tracing_to: Callable[[str], None], fault: str
) -> None:
    with Collector() as server:
        server.delay_seconds = 5.0 if fault == "slow" else 0.0
        tracing_to("http://127.0.0.1:9" if fault == "away" else server.url)
        path = system.write("f.csv", readings(2))
        send(system, system.settings.topics.file_event_queue, {"file_path": str(path), "file_name": path.name})
        system.drive()
        assert system.states() == {"f.csv": "ingested"}
        began = time.monotonic()
        spans.flush()
        assert time.monotonic() - began < spans.FLUSH_SECONDS + 1
        # The export is given up in the background; nothing here waits for it.


def test_headers_that_are_no_context_begin_a_new_one() -> None:
    valid = (("Traceparent", TRACEPARENT.encode()), ("tracestate", b"a=1, b=2"))
    assert context_in(valid) == f"{TRACEPARENT} a=1,b=2"
    assert headers_of(context_in(valid)) == (("traceparent", TRACEPARENT.encode()), ("tracestate", b"a=1,b=2"))
    for value in (
        b"",
        None,
        b"00-" + b"0" * 32 + b"-" + PARENT.encode() + b"-01",
        b"x" * 10_000,
        b"\xff",
        b"01-a-b-00",
    ):
        assert context_in((("traceparent", value), ("tracestate", b"a=1"))) is None
    assert context_in((("traceparent", TRACEPARENT.encode()), ("tracestate", b"x" * 10_000))) == TRACEPARENT


def test_a_stream_message_is_traced_to_its_row_and_the_others_with_their_run(
    activity: ActivitySystem, collector: Collector
) -> None:
    recorded(activity)
    activity.put(event("one"), event("two"))
    send(activity, activity.topic, encoded(event("three")))
    activity.drive()
    spans.flush(WAIT)
    (consumed,) = collector.named(f"{activity.topic} process")
    assert (consumed.trace, consumed.parent) == (TRACE, PARENT)
    assert [span.name for span in collector.spans if span.parent == consumed.id] == ["decode", "append"]
    runs = {span.id: span for span in collector.named("run user_activity_batch")}
    (link,) = consumed.links
    run = runs[link[1]]
    assert (TRACE, PARENT) in run.links
    assert consumed.attributes["dagster.run_id"] == run.attributes["dagster.run_id"]


def test_a_crm_message_is_traced_to_its_row(crm: CrmSystem, collector: Collector) -> None:
    recorded(crm)
    send(crm, crm.topic, msgspec.json.encode(opportunity()))
    crm.drive()
    spans.flush(WAIT)
    (consumed,) = collector.named(f"{crm.topic} process")
    assert (consumed.trace, consumed.parent) == (TRACE, PARENT)
    assert [span.name for span in collector.spans if span.parent == consumed.id] == ["decode", "upsert"]


def test_a_run_that_fails_says_so(system: System, collector: Collector) -> None:
    recorded(system)
    topics = system.settings.topics
    source = {"source_type": "local", "path": str(system.folder / "missing")}
    send(system, topics.polling_queue, job_of(system) | {"source_config": source})
    (request,) = system.requests(POLLING)
    assert not system.execute("polling_batch", request).success
    spans.flush(WAIT)
    (run,), (job,) = collector.named("run polling_batch"), collector.named("poll source")
    assert run.failed
    assert job.failed
    assert "missing" in job.reason


def test_opentelemetrys_own_variables_hold(monkeypatch: pytest.MonkeyPatch, tracing_to: Callable[[str], None]) -> None:
    with Collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=one")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "our-ingest")
        tracing_to("")
        headers = dict(tracing.publish("topic", None))
        spans.flush(WAIT)
        (span,) = server.spans
        assert (headers["traceparent"] or b"").decode() == f"00-{span.trace}-{span.id}-01"
        assert server.resource["service.name"] == "our-ingest"
        assert (server.requests[0]["x-tenant"], server.requests[0]["path"]) == ("one", "/v1/traces")
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        tracing_to("")
        assert not tracing.is_on()


def test_a_share_of_the_traces_is_recorded_and_the_senders_decision_kept(
    monkeypatch: pytest.MonkeyPatch, tracing_to: Callable[[str], None]
) -> None:
    with Collector() as server:
        monkeypatch.setenv("INGEST_TRACES_SAMPLE_RATIO", "0")
        monkeypatch.setenv("INGEST_TRACES_HEADERS", "api-key=hidden, x-more=1")
        tracing_to(server.url)
        own = dict(tracing.publish("topic", None))
        assert (own["traceparent"] or b"").endswith(b"-00")
        message = ConsumerRecord("topic", 0, 1, None, None, b"x", (("traceparent", TRACEPARENT.encode()),))
        context = tracing.receive(message, None)
        spans.flush(WAIT)
        (span,) = server.spans
        assert context == f"00-{TRACE}-{span.id}-01"
        assert (server.requests[0]["api-key"], server.requests[0]["x-more"]) == ("hidden", "1")


def test_spans_that_do_not_fit_are_dropped_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, tracing_to: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Collector() as server:
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
        server.delay_seconds = 0.5
        tracing_to(server.url)
        logger = logging.getLogger("ingest_project.platform.spans")
        monkeypatch.setattr(logger, "propagate", True)
        with caplog.at_level("WARNING"):
            for _ in range(100):
                tracing.publish("topic", None)
        spans.flush(WAIT)
        assert 10 <= len(server.spans) < 100
        assert sum("spans_dropped" in str(record.msg) for record in caplog.records) == 1


def test_a_run_worker_exports_its_last_spans_before_it_ends(collector: Collector) -> None:
    # As Dagster's code server starts them, see `platform.dagster.code_server`.
    worker = multiprocessing.get_context("forkserver").Process(target=publish_in_a_worker, args=[collector.url])
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert [span.name for span in collector.spans] == ["topic send"]


def test_without_an_exporter_no_tracing_library_is_imported(loaded_definitions: LoadedDefinitions) -> None:
    assert loaded_definitions.imported("dagster", "opentelemetry", "openlineage") == {"dagster"}
