"""The daemon: Dagster's own, which looks for sensors more often."""

from __future__ import annotations

import sys

import pytest
from dagster._daemon import backfill, controller, sensor

from ingest_project.operations.daemon import main
from ingest_project.platform.dagster.daemon import BACKFILLS_EVERY_SECONDS, CHECK_EVERY_SECONDS


@pytest.mark.parametrize("command", ["run", "liveness-check"])
def test_it_takes_dagsters_commands_and_looks_for_sensors_each_second(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sensor, "MIN_INTERVAL_LOOP_TIME", sensor.MIN_INTERVAL_LOOP_TIME)
    monkeypatch.setattr(controller, "DEFAULT_DAEMON_INTERVAL_SECONDS", controller.DEFAULT_DAEMON_INTERVAL_SECONDS)
    monkeypatch.setattr(sys, "argv", ["daemon", command, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert f"ingest_project.operations.daemon {command}" in capsys.readouterr().out
    assert sensor.MIN_INTERVAL_LOOP_TIME == CHECK_EVERY_SECONDS
    assert controller.DEFAULT_DAEMON_INTERVAL_SECONDS == BACKFILLS_EVERY_SECONDS


def test_the_installed_dagster_waits_for_that_long() -> None:
    assert "MIN_INTERVAL_LOOP_TIME" in sensor.execute_sensor_iteration_loop.__code__.co_names
    assert "DEFAULT_DAEMON_INTERVAL_SECONDS" in backfill.execute_backfill_iteration_loop.__code__.co_names
