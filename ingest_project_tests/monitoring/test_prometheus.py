"""A real Prometheus scrapes a real monitor, evaluates every rule, and finds every series of the dashboards."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
import sqlalchemy as sa
import yaml
from dagster import DagsterInstance
from dagster._daemon.types import DaemonHeartbeat
from deltalake import write_deltalake
from pydantic import SecretStr

from ingest_project.core.settings import KafkaSettings, MonitorSettings, Settings, WarehouseSettings, current_settings
from ingest_project.devstack import free_port
from ingest_project.file_ingest.tables import file_statistics, files
from ingest_project.operations import RunningTotals
from ingest_project.operations.metrics import ALL_METRICS
from ingest_project.platform.capability import EVENT_TO_STORED, PROCESSING
from ingest_project.platform.database import open_engine, writing
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.streams.positions import sink_positions
from ingest_project_tests.cli.test_status import save_cursor
from ingest_project_tests.monitoring.__main__ import ROOT
from ingest_project_tests.monitoring.conftest import Programs
from ingest_project_tests.monitoring.test_files import NAME, expressions
from ingest_project_tests.operations.conftest import running
from ingest_project_tests.operations.seeding import busy_hour, file_row, put
from ingest_project_tests.services.kafka import FaultyBroker

TOKEN = "0123456789abcdef-of-the-tests"  # noqa: S105 - of this test's own monitor
SECONDS = 60.0
# Without samples as long as all is well.
ONLY_IN_TROUBLE = {"ingest_alert_messages_failing"}


@pytest.fixture
def monitor(
    tmp_path: Path, postgres_url: str, embedded_broker: FaultyBroker, dagster_instance: DagsterInstance
) -> Iterator[str]:
    """The monitor of a system in which everything has happened once."""
    now = datetime.now(UTC)
    _fill(open_engine(postgres_url), now)
    settings = Settings(
        state_dir=tmp_path,
        kafka=KafkaSettings(bootstrap_servers=embedded_broker.bootstrap_servers),
        warehouse=WarehouseSettings(database_url=SecretStr(postgres_url)),
        monitor=MonitorSettings(refresh_seconds=0.5, token=SecretStr(TOKEN)),
        dagster=current_settings().dagster,
    )
    for topic in ("file-event-queue", "downloads.dlq", "sales_events"):
        embedded_broker.create_topic(topic, 1)
    writer = TopicWriter(settings.kafka)
    writer.send_all("downloads.dlq", [ProducerRecord(b"{}")])
    writer.close()
    save_cursor(dagster_instance, "file_event_queue_sensor", Positions("", {}).to_cursor(), at=now.timestamp())
    dagster_instance.add_daemon_heartbeat(DaemonHeartbeat(now.timestamp(), "SENSOR", "daemon"))
    write_deltalake(settings.state_dir / "delta" / "user_activity_events", pa.table({"event_id": ["e1"]}))
    with running(settings) as site:
        yield site


def _fill(engine: sa.Engine, now: datetime) -> None:
    busy_hour(engine, now, pace=0.1)
    ended = now - timedelta(minutes=2)
    put(engine, files, [file_row("drifted", "ingested", ended, drifted=True, started_at=ended)])
    row: dict[str, Any] = {"dataset": "sensor_readings", "source": "local:/data", "arrived_at": ended, "rows_read": 1}
    row |= {"rows_quarantined": 0, "null_counts": {}, "sample_order": 1}
    put(engine, file_statistics, [row | {"file_key": "first"}])
    seconds = {f"{one.bucket}/5": 1.0 for one in (EVENT_TO_STORED, PROCESSING)} | {EVENT_TO_STORED.sum: 4.0}
    with writing(engine) as connection:
        connection.execute(sa.update(sink_positions).values(seconds=seconds))
    # Before the monitor does: a rate misses the first value of a series.
    while RunningTotals(engine).count(now):
        pass
    engine.dispose()


@pytest.fixture
def server(monitor: str, prometheus: Programs, tmp_path: Path) -> Iterator[str]:
    """Prometheus with the committed rules, and the committed configuration but for addresses and intervals."""
    folder = ROOT / "deploy" / "prometheus"
    configuration = yaml.safe_load((folder / "prometheus.yml").read_text("utf-8"))
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(folder / "rules.yml")]
    (tmp_path / "token").write_text(TOKEN, "utf-8")
    (job,) = configuration["scrape_configs"]
    job["authorization"]["credentials_file"] = str(tmp_path / "token")
    job["static_configs"] = [{"targets": [monitor.removeprefix("http://")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration), "utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(prometheus.prometheus),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def asked(server: str, path: str, **query: str) -> Any:  # noqa: ANN401 - JSON
    """What Prometheus answers; None while it starts."""
    try:
        answer = requests.get(f"{server}/api/v1/{path}", params=query, timeout=10)
    except requests.ConnectionError:
        return None
    return answer.json().get("data") if answer.ok else None


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.2)


def test_every_rule_is_evaluated_and_every_series_of_rules_and_dashboards_exists(
    server: str, monitor: str, prometheus: Programs
) -> None:
    def evaluated() -> bool:
        found = asked(server, "rules")
        rules = [rule for group in (found or {}).get("groups", []) for rule in group["rules"]]
        assert all(rule["health"] in {"ok", "unknown"} for rule in rules), rules
        return bool(rules) and all(rule["health"] == "ok" for rule in rules)

    def scraped() -> bool:
        found = asked(server, "query", query="up{job='ingest'}")
        return bool(found and found["result"] and found["result"][0]["value"][1] == "1")

    names = {name for _, expr in expressions() for name in NAME.findall(expr)}
    assert {sample for metric in ALL_METRICS for sample in metric.samples} >= names

    def missing() -> set[str]:
        return names - ONLY_IN_TROUBLE - set(asked(server, "label/__name__/values") or [])

    wait_for(evaluated, "Prometheus has not evaluated all rules")
    wait_for(scraped, "Prometheus has not scraped the monitor")
    wait_for(lambda: not missing(), f"no series: {missing()}")
    for where, expr in expressions():
        found = asked(server, "query", query=re.sub(r"\$__rate_interval", "1m", expr))
        assert found is not None, f"{where}: {expr}"
    quiet = {"IngestMonitorAway", "IngestPartAway", "IngestDaemonSilent", "IngestClockSetBack"}
    # A scrape that took too long on a busy machine makes one pending, for a moment.
    alerts = asked(server, "alerts")["alerts"]
    firing = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
    assert not quiet & firing

    text = requests.get(f"{monitor}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10).content
    done = subprocess.run([prometheus.promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
