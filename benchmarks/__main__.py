"""Run one measurement, `python -m benchmarks KIND` (e.g. files or datasets), and print its result as the last line.

The result is one JSON object; what happens meanwhile goes to standard error. The exit code is 1 when what was stored is
not exactly what should be.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import console
from benchmarks.activity import EVENTS as ACTIVITY_EVENTS
from benchmarks.activity import measure_activity
from benchmarks.activity_commits import COMMITS, measure_commits
from benchmarks.baselines import FILES as BATCH_FILES
from benchmarks.baselines import KNOWN, measure_baselines
from benchmarks.crm import MESSAGES, measure_crm
from benchmarks.floor import measure_floor, measure_floor_of_rows
from benchmarks.growth import FILES as NEW_FILES
from benchmarks.growth import KNOWN as FILES_ON_RECORD
from benchmarks.growth import measure_growth
from benchmarks.growth_streams import EVENTS as EVENTS_ON_RECORD
from benchmarks.growth_streams import measure_growth_streams
from benchmarks.idle import SECONDS, measure_idle, measure_start
from benchmarks.listing import FILES, measure_listing
from benchmarks.many_datasets import DATASETS, measure_datasets
from benchmarks.measurement import Result, measured_once, say
from benchmarks.memory import PeakMemory
from benchmarks.peer import measure_peer
from benchmarks.results import differences
from benchmarks.scaling import measure_scaling
from benchmarks.system import running_system
from benchmarks.workload import Workload, write_workload

PEER_FILES = 2_000
# The common form of the peer stores row by row.
COMMON_FILES = 200
MAX_DIFFERENCES_SHOWN = 5
# Ticks come every few seconds: an event must be as likely to arrive in the middle of that as right after a tick.
PAUSE_SECONDS = (1.0, 6.0)


def measure_files(options: argparse.Namespace, folder: Path) -> Result:
    """Measure many small files with the product and with the Celery design."""
    workload = _write(folder, options.files, options.rows)
    result = _by_product(options, folder, workload)
    seconds, waited = float(str(result["seconds"])), float(str(result["seconds_to_start"]))
    files_per_second = options.files / seconds
    result = {
        "files_per_s": round(files_per_second, 1),
        "files_per_s_once_started": round(options.files / max(seconds - waited, 0.001), 1),
        **result,
    }
    peer_files = min(options.files, PEER_FILES) if options.peer_files is None else options.peer_files
    if peer_files:
        peer_workload = workload if peer_files == options.files else _write(folder / "peer", peer_files, options.rows)
        say(f"Celery ingests {peer_files} files ...")
        peer = measure_peer(peer_workload, folder / "peer-state")
        _print_differences("the peer", peer.differences)
        result |= {
            "peer_files": peer_files,
            "peer_files_per_s": round(peer.files_per_second, 1),
            "ratio": round(files_per_second / peer.files_per_second, 2),
            "peer_exact": not peer.differences,
            "peer_peak_rss_mb": peer.peak_rss_mb,
            "peer_cpu_s": peer.cpu_seconds,
        }
        common_workload = _write(folder / "common", min(peer_files, COMMON_FILES), options.rows)
        say(f"Celery with executemany ingests {common_workload.files.height} files ...")
        # In a process of its own: Celery's application keeps its connections to the first broker.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
            common = own.submit(measure_peer, common_workload, folder / "common-state", executemany=True).result()
        _print_differences("the peer's common form", common.differences)
        result |= {
            "common_files": common.files,
            "common_files_per_s": round(common.files_per_second, 1),
            "ratio_to_common": round(files_per_second / common.files_per_second, 1),
            "common_exact": not common.differences,
            "common_cpu_s": common.cpu_seconds,
        }
    if options.floor:
        say("The floor: no orchestration ...")
        floor_seconds, wrong = measure_floor(workload, folder / "floor-state")
        _print_differences("the floor", wrong)
        result |= {
            "floor_files_per_s": round(options.files / floor_seconds, 1),
            "share_of_floor": round(floor_seconds / seconds, 3),
            "share_of_floor_once_started": round(floor_seconds / max(seconds - waited, 0.001), 3),
            "floor_exact": not wrong,
        }
    return result


def measure_rows(options: argparse.Namespace, folder: Path) -> Result:
    """Measure one large file."""
    workload = _write(folder, 1, options.rows)
    result = _by_product(options, folder, workload)
    seconds, waited = float(str(result["seconds"])), float(str(result["seconds_to_start"]))
    result = {
        "rows_per_s": round(options.rows / seconds),
        "rows_per_s_once_started": round(options.rows / (seconds - waited)),
        **result,
    }
    if options.floor:
        say("The floor: two processes, no orchestration ...")
        floor_seconds, wrong = measure_floor_of_rows(workload, folder / "floor-state")
        _print_differences("the floor", wrong)
        result |= {
            "floor_rows_per_s": round(options.rows / floor_seconds),
            "share_of_floor": round(floor_seconds / seconds, 3),
            "share_of_floor_once_started": round(floor_seconds / (seconds - waited), 3),
            "floor_exact": not wrong,
        }
    return result


def measure_latency(options: argparse.Namespace, folder: Path) -> Result:
    """Measure one small file at a time on an idle system."""
    workload = _write(folder, options.events * 2 + 2, options.rows).good(options.events)
    say("Starting the system ...")
    with running_system(folder / "product", [workload.folder], options.partitions) as system:
        seconds = []
        for path in workload.paths:
            time.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - not a secret
            seconds.append(system.seconds_to_rows(path))
            say(f"{path.name}: {seconds[-1]:.2f} s")
        wrong = differences(system.warehouse_url, workload)
    _print_differences("the product", wrong)
    return {
        "p50_s": round(float(np.percentile(seconds, 50)), 2),
        "p95_s": round(float(np.percentile(seconds, 95)), 2),
        "max_s": round(max(seconds), 2),
        "n": len(seconds),
        "exact": not wrong,
        "partitions": options.partitions,
    }


def _by_product(options: argparse.Namespace, folder: Path, workload: Workload) -> Result:
    say("Starting the system ...")
    with running_system(folder / "product", [workload.folder], options.partitions) as system:
        say("The product ingests ...")
        with PeakMemory(system.processes, system.servers) as memory:
            timing = system.measure(workload)
        wrong = differences(system.warehouse_url, workload)
    _print_differences("the product", wrong)
    return {
        "exact": not wrong,
        "peak_rss_mb": memory.megabytes,
        "peak_rss_of": memory.command,
        "cpu_s": memory.cpu_seconds,
        "seconds": round(timing.seconds, 2),
        "seconds_to_start": round(timing.seconds_to_start, 2),
        "files": workload.files.height,
        "rows": workload.rows,
        "partitions": options.partitions,
    }


def _write(folder: Path, files: int, rows: int) -> Workload:
    say(f"Writing {files} files of {rows} rows ...")
    return write_workload(folder / "inbox", files, rows)


def _print_differences(who: str, wrong: Sequence[str]) -> None:
    for difference in wrong[:MAX_DIFFERENCES_SHOWN]:
        say(f"Wrong result of {who}: {difference}")
    if len(wrong) > MAX_DIFFERENCES_SHOWN:
        say(f"... and {len(wrong) - MAX_DIFFERENCES_SHOWN} more.")


def _add_files(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, measure, rows in (
        ("files", measure_files, 1_000),
        ("rows", measure_rows, 5_000_000),
        ("latency", measure_latency, 1_000),
    ):
        command = commands.add_parser(name, help=measure.__doc__)
        command.set_defaults(measure=measure)
        command.add_argument("--rows", type=int, default=rows, help="in each file")
        command.add_argument("--partitions", type=int, default=0, help="files that are on record before it starts")
        if measure is measure_files:
            command.add_argument("--files", type=int, default=2_000)
            command.add_argument("--peer-files", type=int, help=f"0: no peer; at most {PEER_FILES} by default")
        if measure is not measure_latency:
            command.add_argument("--floor", action="store_true", help="also without any orchestration")
        if measure is measure_latency:
            command.add_argument("--events", type=int, default=20)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the files, the state and the logs where they are")
    commands = parser.add_subparsers(required=True)
    _add_files(commands)
    command = commands.add_parser("activity", help=measure_activity.__doc__)
    command.set_defaults(measure=measure_activity)
    command.add_argument("--events", type=int, default=ACTIVITY_EVENTS)
    command.add_argument("--declared", action="store_true", help="also by a declared stream of the same columns")
    command = commands.add_parser("commits", help=measure_commits.__doc__)
    command.set_defaults(measure=measure_commits)
    command.add_argument("--commits", type=int, default=COMMITS)
    command = commands.add_parser("growth-streams", help=measure_growth_streams.__doc__)
    command.set_defaults(measure=measure_growth_streams)
    command.add_argument("--events", type=int, default=EVENTS_ON_RECORD, help="on record in the smaller system")
    command = commands.add_parser("crm", help=measure_crm.__doc__)
    command.set_defaults(measure=measure_crm)
    command.add_argument("--messages", type=int, default=MESSAGES)
    command = commands.add_parser("listing", help=measure_listing.__doc__)
    command.set_defaults(measure=measure_listing)
    command.add_argument("--files", type=int, default=FILES)
    command = commands.add_parser("baselines", help=measure_baselines.__doc__)
    command.set_defaults(measure=measure_baselines)
    command.add_argument("--files", type=int, default=BATCH_FILES, help="in each batch")
    command.add_argument("--rows", type=int, default=1_000, help="in each file")
    command.add_argument("--known", type=int, default=KNOWN, help="files that are on record before")
    command = commands.add_parser("scaling", help=measure_scaling.__doc__)
    command.set_defaults(measure=measure_scaling)
    command.add_argument("--files", type=int, default=1_000)
    command.add_argument("--rows", type=int, default=1_000, help="in each file")
    command = commands.add_parser("growth", help=measure_growth.__doc__)
    command.set_defaults(measure=measure_growth)
    command.add_argument("--files", type=int, default=NEW_FILES, help="new ones, each time")
    command.add_argument("--rows", type=int, default=1_000, help="in each file")
    command.add_argument("--known", type=int, default=FILES_ON_RECORD, help="on record at first")
    command = commands.add_parser("datasets", help=measure_datasets.__doc__)
    command.set_defaults(measure=measure_datasets)
    command.add_argument("--datasets", type=int, default=DATASETS)
    command = commands.add_parser("idle", help=measure_idle.__doc__)
    command.set_defaults(measure=measure_idle)
    command.add_argument("--seconds", type=float, default=SECONDS, help="of idleness")
    command = commands.add_parser("start", help=measure_start.__doc__)
    command.set_defaults(measure=measure_start)
    command.add_argument("--starts", type=int, default=3, help="after the first one")
    command = commands.add_parser("console", help=console.measure_console.__doc__)
    command.set_defaults(measure=console.measure_console)
    command.add_argument("--files", type=int, default=console.FILES)
    command.add_argument("--events", type=int, default=console.EVENTS)
    command.add_argument("--table", type=Path, help="a Delta table of events that was written before")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure once; return the exit code."""
    options = _parse(arguments)
    return measured_once(options.measure, options)


if __name__ == "__main__":
    sys.exit(main())
