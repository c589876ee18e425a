"""A clock that runs ahead and is set back delays nothing, and is logged."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from ingest_project.attachments.queue import EVENTHOUSE_SENSOR
from ingest_project.core.settings import ConfiguredSource, Settings
from ingest_project.file_ingest.tables import files
from ingest_project.operations import SystemResources
from ingest_project.operations.daemon import repair, repair_records, sensors_with_work
from ingest_project.platform.dagster import daemon
from ingest_project.platform.dagster.daemon import is_ahead
from ingest_project.platform.database import writing
from ingest_project.polling.definitions import standing_job
from ingest_project.streams.hours import HOURLY_SENSOR
from ingest_project_tests.journeys.system import System, readings

NOW = datetime.now(UTC)
AHEAD = NOW + timedelta(hours=3)


def instigator(name: str, data: SensorInstigatorData | ScheduleInstigatorData) -> InstigatorState:
    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="m"), location_name="here")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    kind = InstigatorType.SENSOR if isinstance(data, SensorInstigatorData) else InstigatorType.SCHEDULE
    return InstigatorState(origin, kind, InstigatorStatus.RUNNING, data)


def enter_tick(instance: DagsterInstance, state: InstigatorState, at: datetime) -> None:
    instance.create_tick(
        TickData(
            instigator_origin_id=state.instigator_origin_id,
            instigator_name=state.instigator_name,
            instigator_type=state.instigator_type,
            status=TickStatus.SUCCESS,
            timestamp=at.timestamp(),
            selector_id=state.selector_id,
            run_ids=[],
            run_keys=[],
        )
    )


def test_sensors_and_schedules_whose_last_tick_lies_in_the_future_go_on_from_now(any_instance: DagsterInstance) -> None:
    sensor = instigator("sensor", SensorInstigatorData(AHEAD.timestamp(), "key", 1, "cursor", AHEAD.timestamp()))
    right = instigator("right", SensorInstigatorData(NOW.timestamp() - 3, None, 1, "other"))
    often = instigator("often", ScheduleInstigatorData("*/5 * * * *", 1.0, AHEAD.timestamp()))
    ticked = instigator("ticked", ScheduleInstigatorData("*/5 * * * *", 1.0, 2.0))
    for state in (sensor, right, often, ticked):
        any_instance.add_instigator_state(state)
    enter_tick(any_instance, ticked, AHEAD)
    enter_tick(any_instance, sensor, AHEAD)

    assert repair(any_instance, SystemResources(Settings()), NOW) == ["often", "sensor", "ticked"]
    assert repair(any_instance, SystemResources(Settings()), NOW) == []

    states = {state.instigator_name: state for state in any_instance.all_instigator_state()}
    assert not any(is_ahead(state, NOW.timestamp()) for state in states.values())
    data = states["sensor"].instigator_data
    assert isinstance(data, SensorInstigatorData)
    assert (data.cursor, data.last_run_key, data.last_tick_timestamp) == ("cursor", "key", NOW.timestamp())
    assert states["right"].instigator_data == right.instigator_data
    for state in (sensor, ticked):
        (tick,) = any_instance.get_ticks(state.instigator_origin_id, state.selector_id)
        assert (tick.status, tick.timestamp) == (TickStatus.SUCCESS, NOW.timestamp())


def test_work_that_was_entered_while_the_clock_was_ahead_is_done_now(system: System) -> None:
    system.send_files(system.write("a.csv", readings()))
    system.requests()
    with writing(system.services.engine) as connection:
        connection.execute(sa.update(files).values(state="pending", updated_at=AHEAD, next_attempt_at=AHEAD))
    assert system.requests() == [], "it is due in three hours"
    sensor = instigator("file_event_queue_sensor", SensorInstigatorData(AHEAD.timestamp()))
    system.instance.add_instigator_state(sensor)
    repair(system.instance, system.services, datetime.now(UTC))
    assert len(system.requests()) == 1


def test_a_scheduled_poll_whose_interval_lies_in_the_future_runs_again(system: System) -> None:
    source = ConfiguredSource(
        source_config={"source_type": "local", "path": str(system.folder)}, file_pattern="*", every_seconds=60
    )
    queue, finished = system.services.polling_jobs, []
    for now in (AHEAD, NOW, NOW + timedelta(seconds=120)):
        job = standing_job("standing", source, 60, now)
        finished.append(queue.begin_intervals([job], now))
        queue.begin_intervals([job], now)
        queue.fail([job.job_key], "done with", "Test", now)
    assert [len(keys) for keys in finished] == [1, 1, 1]
    assert queue.begin_intervals([standing_job("standing", source, 60, NOW)], NOW + timedelta(seconds=120)) == ()


def test_sensors_that_read_no_topic_are_woken_by_their_work_alone(system: System) -> None:
    assert sensors_with_work(system.services) == set()
    system.services.user_activity.hours.touch([NOW - timedelta(hours=2)], NOW)
    assert sensors_with_work(system.services) == {HOURLY_SENSOR}
    attachments = system.settings.attachments.model_copy(update={"event_source": "eventhouse"})
    services = SystemResources(system.settings.model_copy(update={"attachments": attachments}))
    assert sensors_with_work(services) == {HOURLY_SENSOR, EVENTHOUSE_SENSOR}
    services.engine.dispose()


class BegunAnewError(Exception):
    """In place of the program that starts once more."""


def test_the_daemon_restarts_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    right, looks = time.time, itertools.count()
    monkeypatch.setattr(daemon, "CHECK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(time, "time", lambda: right() - (3_600 if next(looks) > 20 else 0))

    def begin_anew() -> None:
        raise BegunAnewError

    with pytest.raises(BegunAnewError):
        daemon.watch_clock(list, begin_anew)
    assert next(looks) > 20


TICKING = """
import dagster as dg
from pathlib import Path

@dg.sensor(minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def ticking():
    with Path({ticks!r}).open("a") as file:
        file.write("tick\\n")
    return dg.SkipReason("nothing")

defs = dg.Definitions(sensors=[ticking])
"""


@pytest.mark.long
def test_a_sensor_of_a_real_daemon_ticks_again_after_its_last_tick_was_in_the_future(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, code = tmp_path / "ticks", tmp_path / "ticking_code.py"
    ticks.write_text("")
    code.write_text(TICKING.format(ticks=str(ticks)))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    environ = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    command = [sys.executable, "-m", "ingest_project.operations.daemon", "run", "-f", str(code)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for_more(ticks, 1)
        with DagsterInstance.get() as instance:
            (state,) = instance.all_instigator_state()
            data = state.instigator_data
            assert isinstance(data, SensorInstigatorData)
            ahead = time.time() + 3 * 3_600
            instance.update_instigator_state(
                state.with_data(data._replace(last_tick_timestamp=ahead, last_tick_start_timestamp=ahead))
            )
        time.sleep(3)
        wait_for_more(ticks, len(ticks.read_text().splitlines()) + 1)
        assert b"clock_was_set_back" in (tmp_path / "log").read_bytes()
    finally:
        process.terminate()
        process.wait(60)


def wait_for_more(ticks: Path, number: int) -> None:
    give_up_at = time.monotonic() + 120
    while len(ticks.read_text().splitlines()) < number:
        assert time.monotonic() < give_up_at, ticks.read_text()
        time.sleep(0.5)


def test_a_repair_that_fails_does_not_end_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "none"))
    assert repair_records() == []
