"""`/metrics` as Prometheus reads it, over restarts and with parts away."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_strictly
from prometheus_client.parser import text_string_to_metric_families as parse

from ingest_project import operations as counting
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.tables import files
from ingest_project.operations.metrics import exposition
from ingest_project.operations.monitor import Monitor
from ingest_project.platform.database import open_engine, writing
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project_tests.operations.seeding import busy_hour, file_row, put
from ingest_project_tests.services.kafka import FaultyBroker

CONTRACT = {
    "poller_jobs",
    "poller_files_published",
    "poller_active_jobs",
    "ingest_files",
    "ingest_rows",
    "ingest_quarantined_files",
    "ingest_quarantined_rows",
    "ingest_downloads",
    "ingest_dead_letters",
    "ingest_uploaded_bytes",
    "ingest_consumer_lag_messages",
    "ingest_event_to_stored_seconds",
}


def looked(settings: Settings) -> dict[str, Metric]:
    """Every metric after one poll of each part."""
    return {metric.name: metric for metric in parse(text_of(settings))}


def text_of(settings: Settings) -> str:
    monitor = Monitor(settings)
    text = exposition(monitor.poll_now()).decode()
    monitor.stop()
    return text


def value_of(metrics: dict[str, Metric], sample: str, **labels: str) -> float:
    """Of the one sample with these labels."""
    name = sample if sample in metrics else re.sub("_(total|count|sum|bucket)$", "", sample)
    found = [one.value for one in metrics[name].samples if one.name == sample and one.labels == labels]
    assert len(found) == 1, f"{sample}{labels}: {metrics[name].samples}"
    return found[0]


def test_every_metric_of_the_contract_is_there_and_right(
    settings_of: Callable[..., Settings], database_url: str, embedded_broker: FaultyBroker
) -> None:
    busy_hour(open_engine(database_url), datetime.now(UTC), pace=0.1)
    settings = settings_of(database_url, embedded_broker.bootstrap_servers)
    embedded_broker.create_topic("file-event-queue", 2)
    embedded_broker.create_topic("downloads.dlq", 1)
    writer = TopicWriter(settings.kafka)
    writer.send_all("file-event-queue", [ProducerRecord(b"{}") for _ in range(5)])
    writer.send_all("downloads.dlq", [ProducerRecord(b"{}") for _ in range(3)])
    writer.close()

    metrics = looked(settings)
    assert metrics.keys() >= CONTRACT
    lag = metrics["ingest_consumer_lag_messages"].samples
    assert sum(sample.value for sample in lag if sample.labels["topic"] == "file-event-queue") == 5
    assert value_of(metrics, "ingest_dead_letters_total", topic="downloads.dlq") == 3
    assert value_of(metrics, "poller_active_jobs") == 1
    assert value_of(metrics, "poller_files_published_total", source_type="sftp") == 8 * 40
    assert value_of(metrics, "ingest_unfinished_entries", kind="file", state="pending") == 640
    assert value_of(metrics, "ingest_stream_failed_attempts", topic="sales_events", partition="0") == 0
    assert value_of(metrics, "ingest_downloads_waiting", attempt="3") == 12
    ingested = value_of(metrics, "ingest_files_total", outcome="ingested")
    assert value_of(metrics, "ingest_event_to_stored_seconds_count", pipeline="files") == ingested > 100


def test_promtool_accepts_the_metrics_text(settings_of: Callable[..., Settings], sqlite_url: str) -> None:
    busy_hour(open_engine(sqlite_url), datetime.now(UTC), pace=0.1)
    text = text_of(settings_of(sqlite_url))
    # The older format has neither end nor units; for the rest the newer one's parser is the stricter.
    names = re.findall(r"^# TYPE (\S+) counter$", text, re.MULTILINE)
    as_openmetrics = re.sub(r"^(# \w+ \S+)_total ", r"\1 ", text, flags=re.MULTILINE) + "# EOF\n"
    families = list(parse_strictly(as_openmetrics))  # type: ignore[no-untyped-call]  # it has no types  # type: ignore[no-untyped-call]
    assert names
    assert all(name.endswith("_total") for name in names)
    for family in families:
        assert family.documentation, family.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", family.name)
        if family.type == "gauge":
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        assert len(family.samples) < 300, f"{family.name} has too many series"


def test_counters_go_on_after_a_restart_and_after_retention(
    settings_of: Callable[..., Settings], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "SETTLE", timedelta(0))
    engine = open_engine(database_url)
    settings = settings_of(database_url)
    put(engine, files, [file_row(f"f{n}", "ingested", datetime.now(UTC)) for n in range(3)])
    assert value_of(looked(settings), "ingest_files_total", outcome="ingested") == 3
    with writing(engine) as connection:
        connection.execute(sa.delete(files))
    put(engine, files, [file_row("g", "ingested", datetime.now(UTC))])
    assert value_of(looked(settings), "ingest_files_total", outcome="ingested") == 4
    engine.dispose()


def test_counters_are_there_before_anything_happened(settings_of: Callable[..., Settings], sqlite_url: str) -> None:
    metrics = looked(settings_of(sqlite_url))
    assert value_of(metrics, "ingest_files_total", outcome="quarantined") == 0
    assert value_of(metrics, "poller_jobs_total", status="failed") == 0


@pytest.mark.parametrize("away", ["database", "broker"])
def test_a_part_that_is_away_says_so_and_leaves_the_others(
    settings_of: Callable[..., Settings], sqlite_url: str, embedded_broker: FaultyBroker, away: str
) -> None:
    if away == "broker":
        embedded_broker.go_down()
    nowhere = "postgresql://nobody@127.0.0.1:9/none"
    database = nowhere if away == "database" else sqlite_url
    metrics = looked(settings_of(database, embedded_broker.bootstrap_servers))
    up = {sample.labels["part"]: sample.value for sample in metrics["ingest_part_up"].samples}
    assert up["warehouse"] == (away != "database")
    assert up["broker"] == (away != "broker")
    assert ("ingest_files" in metrics) == (away != "database")
    assert ("ingest_dead_letters" in metrics) == (away != "broker")
