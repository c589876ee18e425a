"""A watch reports incidents by real channels, over restarts, warehouse outages and faults of channels."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from dagster import DagsterInstance

from ingest_project.core.settings import Settings
from ingest_project.file_ingest.tables import files
from ingest_project.operations import SystemResources
from ingest_project.operations.alerts import AlertDeliveryError, require_usable, watch
from ingest_project.operations.alerts.facts import DagsterFailures, FileFacts
from ingest_project.operations.alerts.incidents import alert_leases
from ingest_project.operations.alerts.watch import AlertWatch
from ingest_project.operations.snapshot import DagsterState, Sample, SystemSnapshot, WarehouseState, take_snapshot
from ingest_project.operations.topics import BrokerState
from ingest_project.platform.dagster.records import FailedRun, RunsInFlight
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.database import open_engine, writing
from ingest_project.platform.runtime import Disk
from ingest_project_tests.operations.conftest import running
from ingest_project_tests.operations.seeding import file_row
from ingest_project_tests.services.alert_receivers import Listener, MailServer
from ingest_project_tests.services.kafka import FaultyBroker
from ingest_project_tests.services.raw_server import RawServer

NOBODY = "postgresql://somebody:canary@127.0.0.1:9/none"
Watch = Callable[..., AlertWatch]


@pytest.fixture
def made(listener: Listener, tmp_path: Path) -> Iterator[Watch]:
    """Make watches that send to the listener; all are closed in the end."""
    watches: list[AlertWatch] = []

    def make(database_url: str = "", **alerts: Any) -> AlertWatch:  # noqa: ANN401 - settings
        tree = {
            "state_dir": tmp_path,
            "warehouse": {"database_url": database_url, "connect_timeout_seconds": 1},
            "alerts": {"webhook_url": listener.url, "resolve_after_seconds": 0, **alerts},
            "retries": {"delay_seconds": 0},
        }
        watches.append(AlertWatch(Settings.model_validate(tree)))
        return watches[-1]

    yield make
    for one in watches:
        one.close()


def step(one: AlertWatch, *jobs: str, away: bool = False) -> bool:
    """Assess a system in which these jobs fail, and deliver."""
    now = datetime.now(UTC)
    dagster = DagsterState(heartbeats={"SENSOR": now}, runs=RunsInFlight(0, 0))
    failures = DagsterFailures(runs=tuple(FailedRun(job, "r", now) for job in jobs))
    snapshot = SystemSnapshot(
        settings=one.settings,
        at=now,
        broker=Sample(BrokerState(()), now),
        warehouse=Sample(problem="timed out") if away else Sample(WarehouseState(work={}), now),
        dagster=Sample(dagster, now),
        disk=Sample(Disk(Path("/"), 2, 1), now),
        failures=Sample(failures, now),
        file_facts=Sample(FileFacts(), now),
    )
    leads = one.step(snapshot)
    if leads:
        one.deliver()
    return leads


def test_an_incident_survives_a_restart_and_two_monitors_send_it_once(
    made: Watch, database_url: str, listener: Listener
) -> None:
    first, second = made(database_url), made(database_url)
    assert step(first, "a")
    assert not step(second, "a")
    first.close()
    assert step(second, "a")
    assert step(second)
    assert statuses(listener) == ["firing job/a", "resolved job/a"]


def test_a_warehouse_that_is_away_is_reported_and_so_is_what_begins_meanwhile(
    made: Watch, sqlite_url: str, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = [{"condition": "part_away", "after": 0}]
    one = made(sqlite_url, rules=rules)
    step(one, "before")
    # The same monitor, whose warehouse does not answer any more.
    reachable = one.stores.__dict__.pop("warehouse")
    unreachable = one.settings.model_copy(update={"warehouse": made(NOBODY).settings.warehouse})
    monkeypatch.setattr(one.stores, "_settings", unreachable)
    step(one, "before", "meanwhile", away=True)
    step(one, "before", "meanwhile", away=True)
    restarted = made(NOBODY, rules=rules)
    one.close()
    step(restarted, "meanwhile", away=True)
    assert [incident.name for incident in restarted.stores.read().incidents] == ["part_away/warehouse", "job/meanwhile"]
    restarted.close()
    # The lease of the monitor that ended meanwhile would expire after a while.
    with writing(reachable) as connection:
        connection.execute(alert_leases.delete())
    again = made(sqlite_url, rules=rules)
    step(again, "meanwhile")
    step(again)
    assert statuses(listener) == [
        "firing job/before",
        "firing part_away/warehouse",
        "firing job/meanwhile",
        "resolved part_away/warehouse",
        "resolved job/before",
        "resolved job/meanwhile",
    ]
    assert "canary" not in str(listener.messages)
    reachable.dispose()


def test_a_channel_that_hangs_or_refuses_holds_up_no_other(
    made: Watch, sqlite_url: str, listener: Listener, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DELIVERY_SECONDS", 2.0)
    with RawServer(hang) as hanging:
        urls = [
            f"json://127.0.0.1:{hanging.port}/canary",
            f"mailto://127.0.0.1:{mail_server.port}?from=a@example.com&to=b@example.com&mode=insecure",
        ]
        one = made(sqlite_url, urls=urls)
        # As a monitor does when it starts: Apprise is loaded.
        require_usable(one.settings)
        listener.status = 500
        with pytest.raises(AlertDeliveryError, match="webhook did not accept the alerts: it answered 500"):
            step(one, "a")
        assert mail_server.messages[0]["Subject"] == "[development] The last run of a failed."
        one.start_deliveries()
        problems = {channel.channel: channel.reason for channel in one.stores.read().failing_channels}
        assert problems["urls.1.json"] == "it did not finish within 2 s"
        assert "canary" not in str(problems)
    services = SystemResources(one.settings)
    status = take_snapshot(services, DagsterRecords(one.settings))
    assert any(
        "alert channel webhook does not accept messages (1 wait): it answered 500" in one for one in status.problems
    )
    services.engine.dispose()


def test_a_monitor_reports_what_breaks_and_what_is_repaired(
    settings_of: Callable[..., Settings],
    listener: Listener,
    sqlite_url: str,
    embedded_broker: FaultyBroker,
    dagster_instance: DagsterInstance,
) -> None:
    settings = settings_of(sqlite_url, embedded_broker.bootstrap_servers)
    url = dagster_instance.event_log_storage.postgres_url  # type: ignore[attr-defined]
    tree = {
        "webhook_url": listener.url,
        "resolve_after_seconds": 0,
        "every_seconds": 1,
        "rules": [{"condition": "daemon_silent", "enabled": False}],
    }
    settings = settings.model_copy(
        update={
            "alerts": type(settings.alerts).model_validate(tree),
            "dagster": settings.dagster.model_copy(update={"postgres_url": type(settings.warehouse.database_url)(url)}),
        }
    )
    engine = open_engine(sqlite_url)
    with running(settings) as address:
        with writing(engine) as connection:
            row = file_row("bad.csv~1", "quarantined", datetime.now(UTC), reason="no header")
            connection.execute(files.insert().values(row))
        wait_for(lambda: statuses(listener) == ["firing quarantine/sensor_readings"])
        wait_for(lambda: 'ingest_open_incidents{condition="quarantine"} 1.0' in page(f"{address}/metrics"))
        (shown,) = json.loads(page(f"{address}/dashboard.json"))["incidents"]
        assert shown["examples"][0].startswith("bad.csv~1: no header http")
        with writing(engine) as connection:
            connection.execute(files.delete())
        wait_for(lambda: statuses(listener)[1:] == ["resolved quarantine/sensor_readings"])
    engine.dispose()


def hang(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def page(url: str) -> str:
    with urlopen(url) as answer:  # noqa: S310 - the monitor of a test
        return str(answer.read(), "utf-8")


def statuses(listener: Listener) -> list[str]:
    return [f"{alert['status']} {alert['incident']}" for message in listener.messages for alert in message["alerts"]]


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
