"""The collected real files, and what a plain program reads in those of sensors."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from _pytest.mark import ParameterSet

DATA = Path(__file__).parents[3] / "shared" / "data"
SKAB_TYPES = {
    "Accelerometer1RMS": "vibration_1",
    "Accelerometer2RMS": "vibration_2",
    "Current": "current",
    "Pressure": "water_pressure",
    "Temperature": "engine_temperature",
    "Thermocouple": "fluid_temperature",
    "Voltage": "voltage",
    "Volume Flow RateRMS": "flow_rate",
}

Reading = tuple[datetime, str, str, float]
File = TypeVar("File")


def sensor_files() -> list[Path]:
    """Files of sensor networks, with nothing wrong in their form."""
    return sorted((DATA / "sensors").rglob("*.csv"))


def nasty_files() -> list[dict[str, Any]]:
    """Manifest entries of files that have something wrong or odd."""
    manifest = DATA / "nasty" / "manifest.jsonl"
    return [json.loads(line) for line in manifest.read_text("utf-8").splitlines()] if manifest.exists() else []


def when(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def plain_reading(path: Path) -> Counter[Reading]:
    """The same file by csv and float alone."""
    kind = path.relative_to(DATA / "sensors").parts[0]
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";" if kind in {"luftdaten_raw", "skab"} else ","))
    found: list[Reading] = []
    for row in rows:
        if kind == "luftdaten_long":
            found.append((when(row["timestamp"]), row["device_id"], row["sensor_type"], float(row["value"])))
        elif kind == "luftdaten_raw":
            pairs = [("pm10", row["P1"]), ("pm2_5", row["P2"])]
            found += [(when(row["timestamp"]), row["sensor_id"], name, float(text)) for name, text in pairs if text]
        elif kind == "skab":
            found += [
                (when(row["datetime"]), "valve1", name, float(row[c])) for c, name in SKAB_TYPES.items() if row[c]
            ]
        else:
            found.append((when(row["timestamp"]), path.stem, "ambient_temperature", float(row["value"])))
    return Counter(found)


def profile_name_of(path: Path) -> str:
    """The shipped profile that reads a sensor file."""
    kind = path.relative_to(DATA / "sensors").parts[0]
    return {"luftdaten_long": "canonical", "luftdaten_raw": "luftdaten"}.get(kind, kind)


def one_of_each(files: Iterable[File], kind: Callable[[File], str]) -> list[ParameterSet]:
    """Return the files as parameters: the first of each kind for every run, the others for the long one."""
    seen: set[str] = set()
    found = []
    for file in files:
        marks = pytest.mark.long if kind(file) in seen else ()
        seen.add(kind(file))
        found.append(pytest.param(file, marks=marks))
    return found
