"""The daemon: Dagster's own, which looks for sensors more often."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import dagster as dg
import psycopg2
import pytest
from dagster._core.execution.asset_backfill import _get_next_latest_storage_id
from dagster._daemon import backfill, controller, sensor

from ingest_project.operations.daemon import main
from ingest_project.platform.dagster.daemon import BACKFILLS_EVERY_SECONDS, CHECK_EVERY_SECONDS


@pytest.fixture
def start_daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Start one of its commands, which explains itself and ends; what it set is as before after the test."""
    monkeypatch.setattr(sensor, "MIN_INTERVAL_LOOP_TIME", sensor.MIN_INTERVAL_LOOP_TIME)
    monkeypatch.setattr(controller, "DEFAULT_DAEMON_INTERVAL_SECONDS", controller.DEFAULT_DAEMON_INTERVAL_SECONDS)

    def start(command: str) -> None:
        monkeypatch.setattr(sys, "argv", ["daemon", command, "--help"])
        with pytest.raises(SystemExit, match="0"):
            main()

    with mock.patch.dict(os.environ):
        yield start


@pytest.mark.parametrize("command", ["run", "liveness-check"])
def test_it_takes_dagsters_commands_and_looks_for_sensors_each_second(
    command: str, start_daemon: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    start_daemon(command)
    assert f"ingest_project.operations.daemon {command}" in capsys.readouterr().out
    assert sensor.MIN_INTERVAL_LOOP_TIME == CHECK_EVERY_SECONDS
    assert controller.DEFAULT_DAEMON_INTERVAL_SECONDS == BACKFILLS_EVERY_SECONDS


def test_a_backfill_looks_again_for_events_that_are_committed_after_those_with_higher_numbers(
    dagster_instance: dg.DagsterInstance, dagster_postgres_url: str, start_daemon: Callable[[str], None]
) -> None:
    start_daemon("run")
    queryer: Any = SimpleNamespace(instance=dagster_instance)
    with contextlib.closing(psycopg2.connect(dagster_postgres_url)) as another, another.cursor() as uncommitted:
        uncommitted.execute("INSERT INTO event_logs (run_id, event) VALUES ('r', '') RETURNING id")
        ((late,),) = uncommitted.fetchall()
        dagster_instance.report_runless_asset_event(dg.AssetMaterialization("a"))
        assert (dagster_instance.event_log_storage.get_maximum_record_id() or 0) > late
        assert _get_next_latest_storage_id(queryer) < late, "where the backfill reads on"


def test_the_installed_dagster_waits_for_that_long() -> None:
    assert "MIN_INTERVAL_LOOP_TIME" in sensor.execute_sensor_iteration_loop.__code__.co_names
    assert "DEFAULT_DAEMON_INTERVAL_SECONDS" in backfill.execute_backfill_iteration_loop.__code__.co_names
