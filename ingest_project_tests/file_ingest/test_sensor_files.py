"""Real sensor files through reading, validation and aggregation equal a plain independent calculation."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ingest_project.file_ingest.aggregation import aggregate_files, merge
from ingest_project.file_ingest.sensor_readings import SensorTypes, ValidationRules, validate
from ingest_project.readers.casting import cast
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import load_profiles
from ingest_project.readers.reading import read_chunks

SENSORS = Path(__file__).parents[3] / "shared" / "data" / "sensors"
RULES = ValidationRules(SensorTypes.load(unknown="quarantine"), datetime.now(UTC), timedelta(minutes=5))
PROFILES = load_profiles()
# Column of the file to sensor type.
WIDE = {
    "luftdaten_raw": {"P1": "pm10", "P2": "pm2_5"},
    "skab": {
        "Accelerometer1RMS": "vibration_1",
        "Accelerometer2RMS": "vibration_2",
        "Current": "current",
        "Pressure": "water_pressure",
        "Temperature": "engine_temperature",
        "Thermocouple": "fluid_temperature",
        "Voltage": "voltage",
        "Volume Flow RateRMS": "flow_rate",
    },
    "nab": {"value": "ambient_temperature"},
}


def plain_values(path: Path, kind: str) -> dict[tuple[str, str], list[float]]:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter=";" if kind in {"luftdaten_raw", "skab"} else ","):
            if kind == "luftdaten_long":
                values[row["device_id"], row["sensor_type"]].append(float(row["value"]))
                continue
            device = {"luftdaten_raw": row.get("sensor_id", ""), "skab": "valve1"}.get(kind, path.stem)
            for column, sensor_type in WIDE[kind].items():
                if row[column]:
                    values[device, sensor_type].append(float(row[column]))
    return values


@pytest.mark.parametrize("path", sorted(SENSORS.rglob("*.csv")), ids=lambda path: "/".join(path.parts[-3:]))
def test_accepted_rows_and_summaries_of_a_real_file_are_what_a_plain_reading_says(path: Path) -> None:
    kind = path.relative_to(SENSORS).parts[0]
    profile = PROFILES[{"luftdaten_long": "canonical", "luftdaten_raw": "luftdaten"}.get(kind, kind)]
    chunks = list(read_chunks(path, "csv", profile, ReadLimits(chunk_bytes=16_384)))
    outcomes = [validate(cast(chunk.rows, profile), RULES) for chunk in chunks]
    accepted = [outcome.accepted.with_columns(file_key=pl.lit("f")) for outcome in outcomes]
    merged = merge([aggregate_files(rows)[0] for rows in accepted])
    summaries = merged.rows_by_key(["device_id", "sensor_type"], named=True)
    expected = plain_values(path, kind)
    assert sum(outcome.rejected.height for outcome in outcomes) == 0
    assert sum(outcome.accepted.height for outcome in outcomes) == sum(map(len, expected.values()))
    assert summaries.keys() == expected.keys()
    for key, values in expected.items():
        (row,) = summaries[key]
        assert (row["min"], row["max"], row["count"]) == (min(values), max(values), len(values))
        assert row["mean"] == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert row["stddev"] == pytest.approx(statistics.stdev(values), rel=1e-9)


def test_the_real_files_are_there() -> None:
    if not SENSORS.exists():
        pytest.skip(f"The collected sensor files are not at {SENSORS}.")
    assert len(list(SENSORS.rglob("*.csv"))) > 30
