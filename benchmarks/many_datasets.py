"""Seconds that the code location takes to load with many declared datasets, in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measurement import Result

DATASETS = 50
COLUMNS = 20
LOAD = """
import json, time
began, used = time.perf_counter(), time.process_time()
from ingest_project.definitions import defs
repository = defs.get_repository_def()
found = {
    "seconds": round(time.perf_counter() - began, 2),
    "cpu": round(time.process_time() - used, 2),
    "assets": len(defs.resolve_asset_graph().get_all_asset_keys()),
    "jobs": len(repository.job_names),
    "sensors": len(repository.sensor_defs),
}
print(json.dumps(found))
"""


def measure_datasets(options: argparse.Namespace, folder: Path) -> Result:
    """Load the definitions without declared datasets, and with many."""
    without = load(folder)
    declare(folder, options.datasets)
    found = load(folder)
    return {
        "load_s": found["seconds"],
        "load_cpu_s": found["cpu"],
        "without_s": without["seconds"],
        "without_cpu_s": without["cpu"],
        "exact": found["jobs"] - without["jobs"] == options.datasets and found["sensors"] == without["sensors"],
        "datasets": options.datasets,
        "assets": found["assets"],
        "sensors": found["sensors"],
    }


def declare(folder: Path, number: int) -> None:
    """Declare datasets of 20 columns, with rules, a key and measures."""
    columns = "\n".join(
        f"    - {{name: value_{column}, type: number, min: 0, max: 1000}}" for column in range(COLUMNS - 2)
    )
    for index in range(number):
        path = folder / "ingest_project_defs" / f"kind_{index}" / "defs.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(
            "type: ingest_project.FileDataset\nattributes:\n  columns:\n"
            '    - {name: device, type: text, required: true, pattern: "[a-z]+-[0-9]+"}\n'
            "    - {name: measured_at, type: timestamp, required: true}\n"
            f"{columns}\n"
            "  key: {columns: [device, measured_at]}\n"
            "  measures: {columns: [value_0, value_1], group_by: [device]}\n"
            f"  paths: ['*/kind_{index}/*']\n"
            "  reader: {timestamps: {formats: ['%d.%m.%Y %H:%M'], zone: Europe/Berlin}}\n"
        )


def load(folder: Path) -> dict[str, float]:
    """Load the definitions as the code server does; return the seconds, and the number of each kind."""
    environ = {**os.environ, "INGEST_CONFIG_DIR": str(folder), "INGEST_STATE_DIR": str(folder / "state")}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environ, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
