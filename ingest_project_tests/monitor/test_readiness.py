"""`/readyz`: a line for everything that must be there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from dagster._daemon.types import DaemonHeartbeat

from ingest_project.kafka.positions import Positions
from ingest_project.monitor.dagster_records import RunsInFlight, SensorOnRecord
from ingest_project.monitor.orchestration import DagsterSeen
from ingest_project.monitor.parts import Part, Seen
from ingest_project.monitor.readiness import daemon_line, readiness, sensors_line
from ingest_project.monitor.system import System
from ingest_project_tests.cli.test_status import save_cursor

if TYPE_CHECKING:
    from collections.abc import Callable

    from dagster import DagsterInstance

    from ingest_project.kafka.embedded import EmbeddedBroker
    from ingest_project.monitor.readiness import Line
    from ingest_project.settings import Settings

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


def lines_of(system: System) -> dict[str, Line]:
    for part in system.parts:
        part.look_now()
    lines = {line.name: line for line in readiness(system, datetime.now(UTC))}
    system.stop()
    return lines


def test_with_everything_there_every_line_is_ok(
    settings_of: Callable[..., Settings],
    sqlite_url: str,
    embedded_broker: EmbeddedBroker,
    dagster_instance: DagsterInstance,
) -> None:
    now = datetime.now(UTC).timestamp()
    dagster_instance.add_daemon_heartbeat(DaemonHeartbeat(now, "SENSOR", "daemon"))
    save_cursor(dagster_instance, "file_events_sensor", Positions("", {0: 1}).to_cursor(), at=now)
    lines = lines_of(System(on_record(settings_of(sqlite_url, embedded_broker.bootstrap_servers), dagster_instance)))
    assert [name for name, line in lines.items() if not line.ok] == [], lines
    assert list(lines) == ["broker", "warehouse", "dagster storage", "daemon", "sensors", "disk"]


def test_each_part_that_is_away_is_down_alone(
    settings_of: Callable[..., Settings], sqlite_url: str, embedded_broker: EmbeddedBroker
) -> None:
    embedded_broker.go_down()
    lines = lines_of(System(settings_of(sqlite_url, embedded_broker.bootstrap_servers)))
    assert lines["warehouse"].ok
    assert not lines["broker"].ok
    assert embedded_broker.bootstrap_servers in lines["broker"].detail
    nothing_there = "postgresql://somebody:canary@127.0.0.1:9/none"
    lines = lines_of(System(settings_of(nothing_there)))
    assert not lines["warehouse"].ok
    assert "canary" not in str(lines)
    assert not lines["dagster storage"].ok


def test_a_daemon_without_a_heartbeat_is_down() -> None:
    assert daemon_line(seen(beat=NOW - timedelta(seconds=30)), NOW).ok
    assert not daemon_line(seen(beat=NOW - timedelta(minutes=5)), NOW).ok
    assert not daemon_line(seen(), NOW).ok
    assert not daemon_line(Seen(problem="away"), NOW).ok


def test_a_sensor_that_stopped_ticking_is_named_and_one_a_person_stopped_is_no_trouble() -> None:
    ticking = SensorOnRecord("ticking", None, NOW - timedelta(seconds=9), stopped=False)
    silent = SensorOnRecord("silent", None, NOW - timedelta(minutes=9), stopped=False)
    stopped = SensorOnRecord("stopped", None, NOW - timedelta(days=9), stopped=True)
    assert sensors_line(seen(ticking, stopped), NOW).ok
    line = sensors_line(seen(ticking, silent), NOW)
    assert not line.ok
    assert "silent for 540 s" in line.detail
    assert not sensors_line(seen(), NOW).ok


def test_a_look_that_hangs_is_noticed(settings_of: Callable[..., Settings], sqlite_url: str) -> None:
    system = System(settings_of(sqlite_url))
    system.ledger.look_now()
    assert readiness(system, datetime.now(UTC))[1].ok
    late = readiness(system, datetime.now(UTC) + timedelta(seconds=60))[1]
    assert not late.ok
    assert "has not answered for 60 s" in late.detail
    system.stop()


def test_a_defect_in_one_look_is_told_and_the_last_value_kept() -> None:
    answers = iter([1])
    part = Part("part", lambda: next(answers), 1.0)
    part.look_now()
    first = part.seen.present
    part.look_now()
    assert (first, part.seen.present) == (1, None)
    assert part.seen.value == 1
    assert part.seen.problem == "StopIteration: "


def seen(*sensors: SensorOnRecord, beat: datetime | None = None) -> Seen[DagsterSeen]:
    beats = {"SENSOR": beat} if beat else {}
    return Seen(DagsterSeen({sensor.name: sensor for sensor in sensors}, beats, RunsInFlight(0, 0), ()), NOW)


def on_record(settings: Settings, instance: DagsterInstance) -> Settings:
    """Settings that lead to the instance's storage as well."""
    del instance
    from ingest_project.settings import current_settings  # noqa: PLC0415 - as the instance's fixture left them

    return settings.model_copy(update={"dagster": current_settings().dagster})
