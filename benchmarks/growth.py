"""Cost of a long history: ingest the same files with ten times as many on record.

Files on record have their queue entries, partitions, materialisations and check results; see `earlier_files`. The same
number of new files is ingested before and after they become ten times as many, in one running system. A ratio of 1
means that what is on record costs nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.measurement import Result, say
from benchmarks.memory import PeakMemory
from benchmarks.results import differences
from benchmarks.sensors import read_asset_page
from benchmarks.system import System, running_system
from benchmarks.workload import Workload, write_workload
from ingest_project.operations import SystemResources
from ingest_project.operations.snapshot import read_warehouse

FILES, KNOWN, GROWTH = 1_000, 10_000, 10
LOOKS = 3


def measure_growth(options: argparse.Namespace, folder: Path) -> Result:
    """Measure new files with that many on record, and with ten times as many."""
    before, after = (
        write_workload(folder / name / "in", options.files, options.rows, name=name, seed=seed)
        for seed, name in enumerate(("before", "after"), 1)
    )
    with running_system(folder / "product", [before.folder, after.folder], options.known) as system:
        first, wrong = _measured(system, before, options.known)
        system.remember_more_files((GROWTH - 1) * options.known)
        second, wrong_after = _measured(system, after, GROWTH * options.known)
    return {
        "ratio_of_files_per_s": _ratio(second, first, "files_per_s"),
        "ratio_of_cpu": _ratio(second, first, "cpu_ms_a_file"),
        "exact": not wrong and not wrong_after,
        "before": first,
        "after": second,
        "files": options.files,
        "rows": options.rows,
    }


def _measured(system: System, workload: Workload, known: int) -> tuple[Result, list[str]]:
    say(f"{workload.files.height} files, with {known:,} on record ...")
    with PeakMemory(system.processes, system.servers) as memory:
        timing = system.measure(workload)
    seconds, files = timing.seconds, workload.files.height
    used = memory.cpu_seconds
    result: Result = {
        "known_files": known,
        "files_per_s": round(files / seconds, 1),
        "files_per_s_once_started": round(files / max(seconds - timing.seconds_to_start, 0.001), 1),
        "cpu_ms_a_file": round(1_000 * sum(used.values()) / files, 2),
        "cpu_s": used,
        "peak_rss_mb": memory.megabytes,
        "asset_page_s": min(_seconds_of_asset_page(system) for _ in range(LOOKS)),
        "state_s": min(_seconds_of_state(system) for _ in range(LOOKS)),
    }
    return result, differences(system.warehouse_url, workload)


def _seconds_of_asset_page(system: System) -> float:
    """Return the seconds of the queries by which Dagster's UI shows the partitions of an asset."""
    began = time.monotonic()
    read_asset_page(system.webserver_url, "raw_files")
    return round(time.monotonic() - began, 2)


def _seconds_of_state(system: System) -> float:
    """Return the seconds of one poll of the work queues for dashboard and metrics."""
    services = SystemResources(system.settings)
    try:
        read_warehouse(services)
        began = time.monotonic()
        read_warehouse(services)
        return round(time.monotonic() - began, 3)
    finally:
        services.engine.dispose()


def _ratio(second: Result, first: Result, name: str) -> float:
    return round(float(str(second[name])) / float(str(first[name])), 2)
