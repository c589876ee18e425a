"""Fewer runs are requested while runs queue up, the warehouse is slow or a disk is nearly full; nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from ingest_project.core.settings import Settings
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project.operations.monitor import Monitor, readiness
from ingest_project.operations.snapshot import SystemSnapshot
from ingest_project.platform.runtime import Capacity, Disk, available_slots, launcher_module, processors
from ingest_project_tests.journeys.system import FILE_EVENTS, POLLING, SENSORS, System, changed, file_event, readings
from ingest_project_tests.services.postgres import PostgresServer
from ingest_project_tests.services.slow_network import slow_way

MARGIN_BYTES = 512 * 1024**2
INDEPENDENT_OF_DISKS = {"alerts_sensor"}
NEARLY_FULL = re.compile(
    r"[\d,]+ MiB free at /\S+, less than [\d,]+ MiB \(INGEST_MIN_FREE_DISK_BYTES\)\."
    r" No new work begins until there is space\."
)


def test_free_slots_are_all_requested_and_one_at_a_time_while_the_warehouse_is_slow() -> None:
    assert available_slots(1, 4) == Capacity(3)
    full = available_slots(4, 4)
    assert full == Capacity(0, "4 batches are in flight, the most allowed; the next starts when one has ended.")
    assert available_slots(9, 4).batches == 0
    slow = available_slots(0, 4, 2.5)
    assert slow == Capacity(1, "The warehouse takes 2.5 s for an empty transaction: 1 batch at a time.")
    assert available_slots(1, 4, 2.5) == slow._replace(batches=0)


def test_while_batches_queue_up_no_further_run_is_requested_and_the_sensor_says_so(system: System) -> None:
    system.settings = changed(system.settings, "file_ingest", batch_files=1, max_parallel_batches=1)
    system.restart()
    system.send_files(*(system.write(f"{number}.csv", readings(1, f"d{number}")) for number in range(5)))
    first = system.requests()
    assert len(first) == 2
    queued = system.tick()
    assert not queued.run_requests
    assert queued.skip_message == "2 batches are in flight, the most allowed; the next starts when one has ended."
    for request in first:
        system.execute("file_batch", request)
    system.drive()
    assert set(system.states().values()) == {"ingested"}


def test_while_the_warehouse_is_slow_one_batch_is_requested_at_a_time(
    system: System, postgres_server: PostgresServer
) -> None:
    with slow_way(postgres_server.port) as way:
        url = system.settings.warehouse.database_url.get_secret_value()
        slow_url = url.replace(f":{postgres_server.port}/", f":{way.port}/")
        system.settings = changed(system.settings, "warehouse", database_url=SecretStr(slow_url))
        system.settings = changed(system.settings, "file_ingest", batch_files=1, max_parallel_batches=2)
        system.settings = changed(system.settings, "backpressure", slow_warehouse_seconds=0.25)
        system.restart()
        system.send_files(*(system.write(f"{number}.csv", readings(1, f"d{number}")) for number in range(6)))
        system.tick(POLLING)
        way.delay_seconds = 0.15
        (alone,) = system.requests()
        waiting = system.tick()
        assert not waiting.run_requests
        assert "for an empty transaction: 1 batch at a time." in (waiting.skip_message or "")
        way.delay_seconds = 0.0
        assert len(system.requests()) == 3, "up to four in flight again, without anybody's doing"
        system.execute("file_batch", alone)
        system.close()


def test_a_source_with_thousands_of_waiting_files_keeps_no_other_waiting(system: System) -> None:
    system.settings = changed(system.settings, "file_ingest", batch_files=20, max_parallel_batches=1)
    system.restart()
    gone = [file_event(system.folder / "noisy" / f"{number}.csv", etag="1") for number in range(1_500)]
    system.send(system.settings.topics.file_event_queue, *gone)
    first = system.requests()
    system.send_files(*(system.write(f"quiet/{number}.csv", readings(1, f"d{number}")) for number in range(5)))
    while len(quiet_files(system)) < 5:
        system.tick()
    for request in first:
        system.execute("file_batch", request)
    for request in system.requests():
        system.execute("file_batch", request)
    assert {record.state.value for record in quiet_files(system)} == {"ingested"}
    assert system.services.files.counts_by_state()[FileState.PENDING] > 1_000


def test_with_a_disk_nearly_full_every_sensor_says_so_in_one_line(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    from ingest_project.definitions import defs  # reads the settings of the process

    settings = with_room_for_nothing(Settings(state_dir=tmp_path))
    settings = changed(settings, "kafka", bootstrap_servers="127.0.0.1:9")
    settings = changed(settings, "warehouse", database_url=SecretStr("sqlite://"))
    settings = changed(settings, "attachments", event_source="eventhouse")
    repository = defs.get_repository_def()
    for sensor in repository.sensor_defs:
        with dg.build_sensor_context(
            instance=instance, resources={"services": SystemResources(settings)}, repository_def=repository
        ) as context:
            if sensor.name not in INDEPENDENT_OF_DISKS:
                tick = sensor.evaluate_tick(context)
                assert not tick.run_requests
                assert NEARLY_FULL.fullmatch(tick.skip_message or ""), (sensor.name, tick.skip_message)


def test_a_full_disk_stops_consumption_and_free_space_resumes_it(system: System, tmp_path: Path) -> None:
    needed = shutil.disk_usage(tmp_path).free - MARGIN_BYTES
    system.settings = changed(system.settings, "backpressure", min_free_disk_bytes=needed)
    system.restart()
    system.send_files(system.write("before.csv", readings(1, "d1")))
    system.drive()
    ballast = tmp_path / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * MARGIN_BYTES)
    system.send_files(system.write("while.csv", readings(1, "d2")))
    system.send_job(system.folder, "*.csv")
    for sensor in SENSORS:
        tick = system.tick(sensor)
        assert not tick.run_requests
        assert "INGEST_MIN_FREE_DISK_BYTES" in (tick.skip_message or "")
    assert system.states() == {"before.csv": "ingested"}, "what came meanwhile waits on its topic"
    ballast.unlink()
    system.drive()
    assert system.states() == {"before.csv": "ingested", "while.csv": "ingested"}
    assert system.tick(FILE_EVENTS).skip_message == f"Nothing due on {system.settings.topics.file_event_queue}."


def test_a_remote_store_is_on_no_disk_of_this_machine(tmp_path: Path) -> None:
    onelake = "https://onelake.dfs.fabric.microsoft.com/ws/lake.Lakehouse/Files/claims"
    state = tmp_path / "not" / "made" / "yet"
    settings = changed(Settings(state_dir=state), "attachments", store_url=onelake, destinations={"claims": onelake})
    settings = changed(settings, "storage", landing_url="s3://bucket/landing", quarantine_url=f"file://{tmp_path}")
    disk = SystemResources(settings).fullest_disk()
    assert tmp_path in {disk.folder, *disk.folder.parents}, "all that is left is kept there"
    assert disk.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, abs=MARGIN_BYTES)


def test_the_monitor_says_that_a_disk_is_nearly_full(tmp_path: Path) -> None:
    monitor = Monitor(with_room_for_nothing(Settings(state_dir=tmp_path)))
    monitor.disk.poll_now()
    line = readiness(monitor.snapshot())[-1]
    monitor.stop()
    assert (line.name, line.ok) == ("disk", False)
    assert NEARLY_FULL.fullmatch(line.detail)
    assert not Disk(tmp_path, 10, 10).is_nearly_full


@pytest.mark.parametrize("launcher", ["dagster_k8s", "dagster_aws.ecs", "dagster_docker"])
def test_stores_that_runs_elsewhere_would_lose_are_named(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    settings = changed(Settings(state_dir=tmp_path / "state"), "storage", landing_url=f"{tmp_path}/shared/landing")
    settings = changed(settings, "attachments", store_url="s3://bucket/attachments")
    for module, is_named in ((launcher, True), ("ingest_project.platform.dagster.instance", False)):
        (tmp_path / "dagster.yaml").write_text(f"run_launcher: {{module: {module}, class: Launcher}}\n")
        launcher_module.cache_clear()
        problem = SystemResources(settings).unshared_stores
        launcher_module.cache_clear()
        assert (problem is not None) is is_named
        if problem:
            assert f"{settings.state_dir}/delta/user_activity_events" in problem
            assert "landing" not in problem
            assert "s3://" not in problem
            snapshot = SystemSnapshot(settings=settings, at=datetime.now(UTC), unshared_stores=problem)
            assert problem in snapshot.problems
            assert [line.detail for line in readiness(snapshot) if line.name == "stores"] == [problem]


def quiet_files(system: System) -> list[FileRecord]:
    return [record for record in system.services.files.list(text="quiet") if record.event.etag is None]


def with_room_for_nothing(settings: Settings) -> Settings:
    """Settings that want more room than any disk has."""
    return changed(settings, "backpressure", min_free_disk_bytes=2**62)


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_processors_of_a_container_are_those_of_its_quota(
    tmp_path: Path, files: dict[str, str], most: int | None
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert processors(tmp_path) == (most or len(os.sched_getaffinity(0)))
