"""The newest version of a location counts, each reading once, for any order of arrival."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import pytest

from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.tables import FileState
from ingest_project_tests.file_ingest.stored_metrics import device_metrics
from ingest_project_tests.journeys.system import METRICS, RAW, VALIDATED, System, changed, file_event, readings

SEMICOLONS = """
name: semicolons
delimiter: ";"
columns: {when: timestamp, who: device_id, what: sensor_type, value: value}
"""
SWAPPED = """
name: swapped
columns: {timestamp: timestamp, unit: device_id, sensor_type: sensor_type, value: value}
"""
BY_NAME = """
name: by_name
columns: {timestamp: timestamp, value: value}
constants: {sensor_type: temperature, unit: C}
from_file_name: {device_id: "^([^_]+)_"}
"""


@pytest.fixture
def profiled(system: System) -> System:
    """The system with profiles of its own."""
    folder = system.folder.parent / "profiles"
    folder.mkdir()
    for number, text in enumerate((SEMICOLONS, SWAPPED, BY_NAME)):
        (folder / f"{number}.yaml").write_text(text)
    system.settings = changed(system.settings, "file_ingest", profiles=[folder])
    system.restart()
    return system


def counted(system: System) -> int:
    """Readings as device_metrics counts them; every other place must agree."""
    number = sum(metric.count for metric in device_metrics(system.services.warehouse))
    assert system.services.warehouse.totals().rows == number
    assert system.check("rows_add_up").passed
    return number


def versions(system: System) -> list[FileRecord]:
    """All versions on record, the oldest first."""
    return sorted(system.services.files.list(limit=1_000), key=lambda record: record.order)


def write_version(system: System, count: int, minute: int, name: str = "today.csv") -> Path:
    """A version of a file with so many rows, changed at that minute of a day that is over."""
    path = system.write(name, readings(count))
    moment = datetime(2026, 1, 20, 10, minute, tzinfo=UTC).timestamp()
    os.utime(path, (moment, moment))
    return path


def test_a_file_that_grew_counts_each_reading_once_and_its_older_version_is_marked_as_replaced(system: System) -> None:
    path = system.write("today.csv", readings(3))
    system.send_job(system.folder)
    system.drive()
    with path.open("a") as file:
        file.write("2026-01-15T12:00:00Z,device-1,temperature,22,C\n")
    system.send_job(system.folder)
    system.drive()
    older, newer = versions(system)
    assert (newer.state, newer.rows_accepted) == (FileState.INGESTED, 4)
    assert (older.state, older.replaced_by) == (FileState.REPLACED, newer.file_key)
    assert newer.file_key in (older.reason or "")
    assert counted(system) == 4
    shown = system.metadata(VALIDATED, older.file_key)
    assert (shown["dagster/row_count"], shown["replaced_by"]) == (0, newer.file_key)
    assert system.metadata(METRICS, older.file_key)["dagster/row_count"] == 0
    assert system.checks() == {older.file_key: "SUCCEEDED", newer.file_key: "SUCCEEDED"}
    assert system.check("contract_holds", older.file_key).passed
    assert system.services.files.leases(system.settings.topics.file_event_queue, datetime.now(UTC)) == ()


ORDERS = [
    pytest.param(order, marks=[] if order == (2, 0, 1) else [pytest.mark.long]) for order in permutations(range(3))
]


@pytest.mark.parametrize("order", ORDERS)
def test_versions_in_any_order_end_the_same(system: System, order: tuple[int, ...]) -> None:
    events = []
    for number in range(3):
        path = write_version(system, number + 2, minute=number)
        events.append((file_event(path), path.read_bytes()))
    for place in order:
        event, content = events[place]
        write_version(system, 1, minute=place).write_bytes(content)
        moment = datetime(2026, 1, 20, 10, place, tzinfo=UTC).timestamp()
        os.utime(system.folder / "today.csv", (moment, moment))
        system.send(system.settings.topics.file_event_queue, event)
        system.drive()
    states = [record.state for record in versions(system)]
    assert states == [FileState.REPLACED, FileState.REPLACED, FileState.INGESTED]
    assert counted(system) == 4


@pytest.mark.long
def test_versions_in_one_batch_are_settled_in_one_transaction(system: System) -> None:
    path = system.write("today.csv", readings(2))
    short = {"file_path": str(path), "file_name": path.name}
    first = file_event(path)
    path.write_text(readings(5))
    system.send(system.settings.topics.file_event_queue, first, file_event(path), short)
    (request,) = system.requests()
    assert request.tags["ingest/batch_size"] == "2"
    system.execute("file_batch", request)
    assert {record.state for record in versions(system)} == {FileState.SUPERSEDED, FileState.INGESTED}
    assert counted(system) == 5


def test_an_older_version_that_is_materialized_again_does_not_come_back(system: System) -> None:
    path = system.write("today.csv", readings(3))
    system.send_files(path)
    system.drive()
    path.write_text(readings(6))
    system.send_files(path)
    system.drive()
    older, newer = versions(system)
    assert all(run.success for run in system.materialize([older.file_key]))
    assert system.metadata(RAW, older.file_key)["source_gone"] is True
    assert [record.state for record in versions(system)] == [FileState.REPLACED, FileState.INGESTED]
    assert counted(system) == 6
    assert all(run.success for run in system.materialize([newer.file_key, older.file_key]))
    assert counted(system) == 6


@pytest.mark.long
def test_both_versions_selected_in_the_ui_keep_their_state(system: System) -> None:
    path = system.write("today.csv", readings(3))
    system.send_files(path)
    system.drive()
    path.write_text(readings(6))
    system.send_files(path)
    system.drive()
    first, last = system.instance.get_dynamic_partitions("files")
    assert system.materialize_range(first, last).success
    assert [record.state for record in versions(system)] == [FileState.REPLACED, FileState.INGESTED]
    assert counted(system) == 6


@pytest.mark.long
def test_a_newer_version_that_is_refused_leaves_the_older_one_counting(system: System) -> None:
    path = system.write("today.csv", readings(3))
    system.send_files(path)
    system.drive()
    path.write_text("half a file")
    system.send_files(path)
    system.drive()
    older, newer = versions(system)
    assert (older.state, newer.state) == (FileState.INGESTED, FileState.QUARANTINED)
    assert counted(system) == 3
    path.write_text(readings(4))
    system.send_files(path)
    system.drive()
    assert [record.state for record in versions(system)] == [FileState.REPLACED, FileState.REPLACED, FileState.INGESTED]
    assert counted(system) == 4


@pytest.mark.long
def test_a_copy_of_a_version_that_is_replaced_counts_from_then_on(system: System) -> None:
    path = system.write("today.csv", readings(3))
    system.send_files(path)
    system.drive()
    system.send_files(system.write("copy.csv", readings(3)))
    system.drive()
    assert system.states() == {"today.csv": "ingested", "copy.csv": "duplicate"}
    path.write_text(readings(5, "device-2"))
    system.send_files(path)
    system.drive()
    assert system.states() == {"today.csv": "ingested", "copy.csv": "ingested"}
    assert counted(system) == 8


@pytest.mark.long
def test_a_file_that_was_only_touched_counts_once(system: System) -> None:
    path = system.write("today.csv", readings(3))
    system.send_files(path)
    system.drive()
    later = path.stat().st_mtime + 60
    os.utime(path, (later, later))
    system.send_files(path)
    system.drive()
    assert [record.state for record in versions(system)] == [FileState.REPLACED, FileState.INGESTED]
    assert counted(system) == 3


def test_a_time_of_change_in_the_future_does_not_keep_later_versions_out(system: System) -> None:
    path = system.write("today.csv", readings(3))
    ahead = (datetime.now(UTC) + timedelta(days=30_000)).timestamp()
    os.utime(path, (ahead, ahead))
    system.send_files(path)
    system.drive()
    path.write_text(readings(4))
    system.send_files(path)
    system.drive()
    assert counted(system) == 4


def test_files_with_the_same_bytes_whose_names_carry_the_device_are_both_stored(profiled: System) -> None:
    system = profiled
    rows = "timestamp,value\n2026-01-15T10:00:00Z,4\n2026-01-15T11:00:00Z,5\n"
    for name in ("fridge-1_a.csv", "fridge-2_a.csv", "fridge-2_b.csv"):
        system.send_files(system.write(name, rows), metadata={"format": "by_name"})
    system.drive()
    assert sorted(system.states().values()) == ["duplicate", "ingested", "ingested"]
    assert {metric.device_id: metric.count for metric in device_metrics(system.services.warehouse)} == {
        "fridge-1": 2,
        "fridge-2": 2,
    }


@pytest.mark.parametrize("way", ["job", "event"])
def test_a_file_read_by_the_wrong_profile_is_read_by_the_one_that_is_named_next(profiled: System, way: str) -> None:
    system = profiled

    def announce(path: Path, profile: str) -> None:
        if way == "job":
            system.send_job(system.folder, metadata={"format": profile})
        else:
            system.send_files(path, metadata={"format": profile})
        system.drive()

    path = system.write("odd.csv", "when;who;what;value\n2026-01-15T10:00:00Z;d1;temperature;21\n")
    announce(path, "canonical")
    assert system.states() == {"odd.csv": "quarantined"}
    announce(path, "semicolons")
    refused, stored = versions(system)
    assert (stored.state, stored.profile, stored.rows_accepted) == (FileState.INGESTED, "semicolons", 1)
    assert (refused.state, refused.replaced_by) == (FileState.REPLACED, stored.file_key)
    assert "quarantined" in (refused.reason or "")
    assert counted(system) == 1


def test_a_profile_that_read_nonsense_is_replaced_and_may_come_back(profiled: System) -> None:
    system = profiled
    path = system.write("a.csv", readings(3))
    system.send_files(path, metadata={"format": "swapped"})
    system.drive()
    assert [metric.device_id for metric in device_metrics(system.services.warehouse)] == ["C"]
    for profile, device in (("canonical", "device-1"), ("swapped", "C")):
        system.send_files(path, metadata={"format": profile})
        system.drive()
        assert [metric.device_id for metric in device_metrics(system.services.warehouse)] == [device]
        assert counted(system) == 3
    assert len(versions(system)) == 2


@pytest.mark.long
def test_a_fixed_profile_applies_only_to_released_files(profiled: System) -> None:
    system = profiled
    paths = [system.write(name, readings(count)) for name, count in (("a.csv", 3), ("b.csv", 4))]
    for path in paths:
        system.send_files(path, metadata={"format": "swapped"})
    system.drive()
    (system.folder.parent / "profiles" / "1.yaml").write_text(SWAPPED.replace("unit: device", "device_id: device"))
    for path in paths:
        system.send_files(path, metadata={"format": "swapped"})
    system.drive()
    assert {metric.device_id for metric in device_metrics(system.services.warehouse)} == {"C"}
    system.services.files.reopen([system.file("a.csv").file_key], datetime.now(UTC))
    system.drive()
    counts = {metric.device_id: metric.count for metric in device_metrics(system.services.warehouse)}
    assert counts == {"device-1": 3, "C": 4}


def test_an_event_that_names_no_version_means_what_is_there_when_it_is_read(system: System) -> None:
    path = system.write("older.csv", readings(2))
    system.send(system.settings.topics.file_event_queue, {"file_path": str(path), "file_name": path.name})
    (request,) = system.requests()
    path.write_text(readings(5))
    assert system.execute("file_batch", request).success
    record = system.file("older.csv")
    assert (record.state, record.rows_accepted, record.pinned) == (FileState.INGESTED, 5, True)
    assert record.event.size_bytes == path.stat().st_size


@pytest.mark.long
def test_a_version_that_its_source_does_not_show_yet_is_waited_for(system: System) -> None:
    path = write_version(system, 3, minute=0)
    event = file_event(write_version(system, 5, minute=1))
    write_version(system, 3, minute=0)
    system.send(system.settings.topics.file_event_queue, event)
    (request,) = system.requests()
    system.execute("file_batch", request)
    assert system.file(path.name).state is FileState.PENDING
    write_version(system, 5, minute=1)
    system.drive()
    assert counted(system) == 5


def test_a_stored_file_that_cannot_be_had_again_stays_stored(system: System) -> None:
    path = system.write("a.csv", readings(4))
    system.send_files(path)
    system.drive()
    record = system.file("a.csv")
    landed = system.services.landing.find(record.sha256 or "")
    assert landed is not None
    system.services.landing.remove(record.sha256 or "")
    path.unlink()
    assert not system.materialize([record.file_key])[0].success
    kept = system.file("a.csv")
    assert kept.state is FileState.INGESTED
    assert "could not be ingested again" in (kept.reason or "")
    assert counted(system) == 4
    assert system.checks() == {record.file_key: "SUCCEEDED"}, "of what is stored"
