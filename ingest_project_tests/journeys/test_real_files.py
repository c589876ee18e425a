"""Files from the world, by way of a polling job: sensor files as a plain program reads them, nasty ones refused."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ingest_project_tests.file_ingest.stored_metrics import device_metrics, metrics_of
from ingest_project_tests.journeys.system import QUARANTINED, System, changed, readings
from ingest_project_tests.readers.real_files import (
    DATA,
    Reading,
    nasty_files,
    plain_reading,
    profile_name_of,
    sensor_files,
)

# What such a sensor can mean, as its makers say.
LIMITS = {
    "pm10": (0, 3000),
    "pm2_5": (0, 3000),
    "ambient_temperature": (-100, 200),
    "fluid_temperature": (-100, 400),
    "engine_temperature": (-100, 1000),
    "water_pressure": (-1, 400),
    "voltage": (-1000, 1000),
    "current": (-1000, 1000),
    "flow_rate": (-10000, 10000),
    "vibration_1": (-100, 100),
    "vibration_2": (-100, 100),
}


@pytest.fixture
def data() -> Path:
    """The folder of the collected files."""
    if not DATA.exists():
        pytest.skip(f"The collected real files are not at {DATA}.")
    return DATA


def in_range(reading: Reading) -> bool:
    _, _, sensor_type, value = reading
    least, greatest = LIMITS[sensor_type]
    return least <= value <= greatest


def test_every_sensor_file_is_stored_as_a_plain_program_reads_it(system: System, data: Path) -> None:
    system.settings = changed(system.settings, "polling", local_roots=[data])
    system.settings = changed(system.settings, "file_ingest", unknown_sensor_types="quarantine")
    system.restart()
    for folder in sorted(path for path in (data / "sensors").iterdir() if path.is_dir()):
        name = profile_name_of(next(folder.rglob("*.csv")))
        system.send_job(folder, "**/*.csv", metadata={"format": name})
    assert all(run.success for run in system.drive())

    stored = {Path(record.event.file_path): record for record in system.services.files.list(limit=1_000)}
    assert set(stored) == set(sensor_files())
    overall: dict[tuple[str, str], list[float]] = defaultdict(list)
    for path, record in stored.items():
        everything = plain_reading(path)
        accepted = Counter({reading: count for reading, count in everything.items() if in_range(reading)})
        assert record.state.value == "ingested", (path, record.reason)
        assert (record.rows_read, record.rows_accepted) == (everything.total(), accepted.total()), path
        found = Counter(
            row
            for part in system.services.warehouse.rows_of(record.file_key)
            for row in part.select("timestamp", "device_id", "sensor_type", "value").rows()
        )
        assert found == accepted, path
        refused = system.services.warehouse.quarantined_rows_of(record.file_key, 100_000)
        assert len(refused) == everything.total() - accepted.total()
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for _, device, sensor_type, value in accepted.elements():
            values[device, sensor_type].append(value)
            overall[device, sensor_type].append(value)
        assert_summarised(metrics_of(system.services.warehouse, record.file_key), values)
    assert_summarised(device_metrics(system.services.warehouse), overall)
    assert system.check("rows_add_up").passed


def assert_summarised(metrics: object, values: dict[tuple[str, str], list[float]]) -> None:
    assert isinstance(metrics, tuple)
    assert {(metric.device_id, metric.sensor_type) for metric in metrics} == set(values)
    for metric in metrics:
        plain = values[metric.device_id, metric.sensor_type]
        assert (metric.count, metric.min, metric.max) == (len(plain), min(plain), max(plain))
        assert math.isclose(metric.mean, statistics.fmean(plain), rel_tol=1e-12, abs_tol=1e-12)
        if len(plain) > 1:
            assert math.isclose(metric.stddev, statistics.stdev(plain), rel_tol=1e-9, abs_tol=1e-9)
        else:
            assert metric.stddev is None


def test_every_nasty_file_is_refused_whole_with_a_reason_and_hurts_no_other(system: System, data: Path) -> None:
    system.settings = changed(system.settings, "polling", local_roots=[data, system.folder])
    system.restart()
    system.write("between.csv", readings(10))
    system.send_job(data / "nasty")
    system.send_job(system.folder)
    assert all(run.success for run in system.drive())

    records = {record.event.file_path: record for record in system.services.files.list(limit=1_000)}
    good = records.pop(str(system.folder / "between.csv"))
    assert (good.state.value, good.rows_accepted) == ("ingested", 10)
    # Lock files of an open workbook, and what is no table by its name, are never taken.
    names = {entry["file"] for entry in nasty_files() if "~$" not in entry["file"]}
    expected = {name for name in names if name.rpartition(".")[2].lower() in {"csv", "xlsx", "xls"}}
    assert {str(Path(path).relative_to(data / "nasty")) for path in records} == expected
    shown = system.checks()
    for path, record in records.items():
        assert record.state.value == "quarantined", path
        assert record.reason, path
        assert "Traceback" not in record.reason
        assert "\n" not in record.reason
        assert system.quarantined_bytes(record.file_key) == Path(path).read_bytes()
        assert shown[record.file_key] == "FAILED"
        assert system.metadata(QUARANTINED, record.file_key)["reason"] == record.reason
    assert system.services.warehouse.totals()[:2] == (10, 0), "no row of a refused file is stored"
    accepted = {key for key, status in system.accepted().items() if status == "SUCCEEDED"}
    assert accepted == {good.file_key}
