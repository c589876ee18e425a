"""The pollers of the monitor, and `/readyz`: a line for everything that ingestion needs."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._core.scheduler.instigation import SensorInstigatorData, TickData, TickStatus
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from ingest_project.core.settings import Settings
from ingest_project.operations import snapshot
from ingest_project.operations.alerts.conditions import assess
from ingest_project.operations.alerts.incidents import History
from ingest_project.operations.monitor import Line, Monitor, Poller, daemon_line, readiness, sensors_line, topics_line
from ingest_project.operations.snapshot import DagsterState, Sample
from ingest_project.operations.topics import BrokerState, Movement, TopicLag
from ingest_project.platform.dagster.records import FailingTicks, RunsInFlight, SensorOnRecord
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project_tests.cli.test_status import save_cursor
from ingest_project_tests.services.kafka import FaultyBroker

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


def lines_of(monitor: Monitor) -> dict[str, Line]:
    lines = {line.name: line for line in readiness(monitor.poll_now())}
    monitor.stop()
    return lines


def test_with_all_services_every_line_is_ok(
    settings_of: Callable[..., Settings],
    sqlite_url: str,
    embedded_broker: FaultyBroker,
    dagster_instance: DagsterInstance,
) -> None:
    now = datetime.now(UTC).timestamp()
    dagster_instance.add_daemon_heartbeat(DaemonHeartbeat(now, "SENSOR", "daemon"))
    save_cursor(dagster_instance, "file_events_sensor", Positions("", {0: 1}).to_cursor(), at=now)
    lines = lines_of(Monitor(on_record(settings_of(sqlite_url, embedded_broker.bootstrap_servers), dagster_instance)))
    assert [name for name, line in lines.items() if not line.ok] == [], lines
    assert list(lines) == ["broker", "warehouse", "dagster storage", "daemon", "sensors", "topics", "disk"]


def test_a_stream_that_is_declared_while_the_monitor_runs_is_seen_with_its_earlier_dead_letters(
    settings_of: Callable[..., Settings],
    sqlite_url: str,
    embedded_broker: FaultyBroker,
    tmp_path: Path,
    dagster_instance: DagsterInstance,
) -> None:
    settings = on_record(settings_of(sqlite_url, embedded_broker.bootstrap_servers), dagster_instance)
    settings = settings.model_copy(update={"declarations": tmp_path / "declared"})
    monitor = Monitor(settings)
    try:
        assert "orders" not in {one.topic for one in monitor.poll_now().topics}
        monitor.services.writer.send_all("orders.dlq", [ProducerRecord(b"{}") for _ in range(2)])
        folder = settings.declarations / "orders"
        folder.mkdir(parents=True)
        columns = {"columns": [{"name": "id", "type": "text"}], "topic": "orders"}
        declared = {"type": "ingest_project.TopicStream", "attributes": columns}
        (folder / "defs.yaml").write_text(json.dumps(declared))
        seen = monitor.poll_now()
    finally:
        monitor.stop()
    assert "orders" in {one.topic for one in seen.topics}
    # The history of a series begins with what it was when it was first seen.
    history = History({"dead/orders.dlq": [(seen.at, 2.0)]})
    letters = [one for one in assess(seen, history).findings if one.condition == "dead_letters"]
    assert [(one.name, one.value) for one in letters] == [("dead_letters/orders.dlq", 2)]


def test_each_part_that_is_away_is_down_alone(
    settings_of: Callable[..., Settings], sqlite_url: str, embedded_broker: FaultyBroker
) -> None:
    embedded_broker.go_down()
    lines = lines_of(Monitor(settings_of(sqlite_url, embedded_broker.bootstrap_servers)))
    assert lines["warehouse"].ok
    assert not lines["broker"].ok
    assert embedded_broker.bootstrap_servers in lines["broker"].detail
    nothing_there = "postgresql://somebody:canary@127.0.0.1:9/none"
    lines = lines_of(Monitor(settings_of(nothing_there)))
    assert not lines["warehouse"].ok
    assert "canary" not in str(lines)
    assert not lines["dagster storage"].ok


def test_a_daemon_without_a_heartbeat_is_down() -> None:
    assert daemon_line(seen(beat=NOW - timedelta(seconds=30)), NOW).ok
    assert not daemon_line(seen(beat=NOW - timedelta(minutes=5)), NOW).ok
    assert not daemon_line(seen(), NOW).ok
    assert not daemon_line(Sample(problem="away"), NOW).ok


def test_a_sensor_that_stopped_ticking_is_named_and_one_a_person_stopped_is_no_trouble() -> None:
    ticking = SensorOnRecord("ticking", None, NOW - timedelta(seconds=9), stopped=False)
    silent = SensorOnRecord("silent", None, NOW - timedelta(minutes=9), stopped=False)
    stopped = SensorOnRecord("stopped", None, NOW - timedelta(days=9), stopped=True)
    assert sensors_line(seen(ticking, stopped), NOW).ok
    line = sensors_line(seen(ticking, silent), NOW)
    assert not line.ok
    assert "silent for 540 s" in line.detail
    assert not sensors_line(seen(), NOW).ok


def test_a_sensor_whose_last_ticks_failed_is_named_with_the_reason() -> None:
    ticking = SensorOnRecord("ticking", None, NOW, stopped=False)
    failing = SensorOnRecord("failing", None, NOW, stopped=False)
    found = seen(ticking, failing, failing={"failing": FailingTicks(7, "OverflowError: date value out of range")})
    line = sensors_line(found, NOW)
    assert not line.ok
    assert line.detail == "1 of 2 tick; failing failed 7 times in a row: OverflowError: date value out of range"


def test_failing_ticks_are_found_in_dagsters_records_until_one_ends_well(
    settings_of: Callable[..., Settings], sqlite_url: str, any_instance: DagsterInstance
) -> None:
    save_cursor(any_instance, "file_events_sensor", Positions("", {0: 1}).to_cursor(), at=1.0)
    (state,) = any_instance.all_instigator_state()
    cause = SerializableErrorInfo("ValueError: the real reason\n", [], "ValueError")
    error = SerializableErrorInfo("SensorExecutionError: Error occurred", [], "SensorExecutionError", cause=cause)
    records = DagsterRecords(on_record(settings_of(sqlite_url), any_instance))
    for number, status in enumerate((TickStatus.SUCCESS, TickStatus.FAILURE, TickStatus.STARTED)):
        any_instance.create_tick(
            TickData(
                instigator_origin_id=state.instigator_origin_id,
                instigator_name=state.instigator_name,
                instigator_type=state.instigator_type,
                status=status,
                timestamp=100.0 + number,
                selector_id=state.selector_id,
                error=error if status is TickStatus.FAILURE else None,
                consecutive_failure_count=4 if status is TickStatus.FAILURE else 0,
                run_ids=[],
                run_keys=[],
            )
        )
    assert records.failing() == {"file_events_sensor": FailingTicks(4, "ValueError: the real reason")}
    data = SensorInstigatorData(last_tick_timestamp=103.0, last_tick_success_timestamp=103.0)
    any_instance.update_instigator_state(state.with_data(data))
    assert records.failing() == {}


def test_times_in_the_future_are_reported_and_not_treated_as_now() -> None:
    ahead = SensorOnRecord("ahead", None, NOW + timedelta(hours=3), stopped=False)
    line = sensors_line(seen(ahead), NOW)
    assert not line.ok
    assert "last tick in the future, a clock was set back" in line.detail
    assert "ahead for 10800 s" in line.detail
    assert not daemon_line(seen(beat=NOW + timedelta(hours=3)), NOW).ok
    assert daemon_line(seen(beat=NOW + timedelta(seconds=2)), NOW).ok


def lag(waiting: int, position: int, topic: str = "stuck", sensor: str = "s") -> TopicLag:
    return TopicLag(
        topic=topic, sensor=sensor, waiting=waiting, partitions={0: 0, 1: waiting}, next_offsets={0: 5, 1: position}
    )


def test_a_topic_that_does_not_move_although_it_has_messages_is_named() -> None:
    movement = Movement()
    assert movement.stalled([lag(3, 7), lag(3, 0, "moving")], 0.0) == ()
    stalled = movement.stalled([lag(4, 7), lag(3, 1, "moving")], 300.0)
    assert [(one.topic, one.partitions, one.waiting, one.seconds) for one in stalled] == [("stuck", (1,), 4, 300.0)]
    line = topics_line(Sample(BrokerState((lag(4, 7),), stalled, ())), seen())
    assert not line.ok
    assert line.detail == "stuck has stood still for 300 s with 4 waiting (partition 1), read by s"
    stopped = seen(SensorOnRecord("s", None, NOW, stopped=True))
    assert topics_line(Sample(BrokerState((lag(4, 7),), stalled, ())), stopped).ok, "a person has stopped it"
    assert movement.stalled([lag(0, 11)], 600.0) == ()
    movement.stalled([lag(3, 7), lag(1, 9, sensor="other")], 700.0)
    assert [one.sensor for one in movement.stalled([lag(3, 7), lag(1, 10, sensor="other")], 800.0)] == ["s"]


def test_a_poll_that_hangs_is_noticed(settings_of: Callable[..., Settings], sqlite_url: str) -> None:
    monitor = Monitor(settings_of(sqlite_url))
    monitor.warehouse.poll_now()
    assert readiness(monitor.snapshot())[1].ok
    late = readiness(replace(monitor.snapshot(), at=datetime.now(UTC) + timedelta(seconds=60)))[1]
    assert not late.ok
    assert "has not answered for 60 s" in late.detail
    monitor.stop()


def test_a_slow_first_poll_does_not_block_later_requests(settings_of: Callable[..., Settings], sqlite_url: str) -> None:
    monitor = Monitor(settings_of(sqlite_url))
    answered = threading.Event()
    monitor._pollers = (Poller("slow", lambda: answered.wait(60), 60.0),)
    monitor.start()
    waited = []
    for _ in range(2):
        began = time.monotonic()
        monitor.wait_for_first(1.0)
        waited.append(time.monotonic() - began)
    answered.set()
    monitor.stop()
    assert waited[0] > 0.9
    assert waited[1] < 0.9


def test_a_defect_in_one_poll_is_reported_and_the_last_value_kept() -> None:
    answers = iter([1])
    part = Poller("part", lambda: next(answers), 1.0)
    part.poll_now()
    first = part.sample.present
    part.poll_now()
    assert (first, part.sample.present) == (1, None)
    assert part.sample.value == 1
    assert part.sample.problem == "StopIteration: "


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_is_reported_and_one_whose_log_fails_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> int:
        raise SystemExit

    ended = Poller("part", end, 0.01)
    ended.start()
    ended.join(10)
    assert ended.sample.present is None
    assert "its thread has ended" in (ended.sample.problem or "")

    def failing(*_: object, **__: object) -> None:
        raise FileNotFoundError("no such log")

    monkeypatch.setattr(snapshot.logger, "exception", failing)
    numbers = itertools.count()

    def count_and_fail() -> int:
        raise ValueError(next(numbers))

    going_on = Poller("part", count_and_fail, 0.01)
    going_on.start()
    while next(numbers) < 5:
        time.sleep(0.01)
    assert "no such log" in (going_on.sample.problem or "")
    going_on.request_stop()
    going_on.join(10)


def seen(
    *sensors: SensorOnRecord, beat: datetime | None = None, failing: Mapping[str, FailingTicks] | None = None
) -> Sample[DagsterState]:
    beats = {"SENSOR": beat} if beat else {}
    by_name = {sensor.name: sensor for sensor in sensors}
    return Sample(DagsterState(sensors=by_name, heartbeats=beats, runs=RunsInFlight(0, 0), failing=failing or {}), NOW)


def on_record(settings: Settings, instance: DagsterInstance) -> Settings:
    """Settings that lead to the instance's storage as well."""
    del instance
    from ingest_project.core.settings import current_settings  # as the instance's fixture left them

    return settings.model_copy(update={"dagster": current_settings().dagster})
