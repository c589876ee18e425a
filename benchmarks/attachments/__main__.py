"""`python -m benchmarks.attachments`: small and large attachments; one JSON object is the last line printed.

What happens meanwhile goes to standard error. The exit code is 1 when what was stored is not exactly what was served,
and when nothing could be measured: the object then says why, in `no_result`, and the logs are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from benchmarks.attachments.file_host import expected_sha256, file_host
from benchmarks.attachments.plain_loop import measure_loop
from benchmarks.attachments.system import AttachmentSystem, Timing, running_attachments
from benchmarks.measurement import Result, measured_once, say
from benchmarks.memory import PeakMemory
from ingest_project.attachments.tables import download_outcomes
from ingest_project.operations import SystemResources

SMALL_BYTES, LARGE_BYTES = 100_000, 100_000_000
MEGABYTE = 1_000_000
CURL_AT_A_TIME = 8
CURL = 'curl --silent --show-error --fail --max-time 600 "$0"'
# What a copy of a file costs, and what it costs to know as well what was received.
TO_FILE, TO_FILE_AND_SHA256 = '--output "$1/${0##*/}"', '| tee "$1/${0##*/}" | sha256sum > "$1/${0##*/}.sha256"'


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Measure both sizes, and for comparison curl and a loop without queue, history or retries."""
    with _store(options, folder) as more, file_host(folder) as host:
        small, large = _names("small", options.small), _names("large", options.large)
        say("Starting the system ...")
        with (
            running_attachments(folder / "product", more) as system,
            PeakMemory(system.processes, system.servers) as memory,
        ):
            # Tables, topics, and the modules of the worker's parent: none of these is new to what is measured.
            system.measure(_addresses(host, SMALL_BYTES, _names("first", 20)), "first")
            say(f"{len(small)} small ones ...")
            small_timing = system.measure(_addresses(host, SMALL_BYTES, small), "small")
            say(f"{len(small) / small_timing.total:.0f} files/s. {len(large)} large ones ...")
            large_timing = system.measure(_addresses(host, LARGE_BYTES, large), "large") if large else Timing(1.0, 0.0)
            say(f"{len(large) * LARGE_BYTES / MEGABYTE / large_timing.total:.0f} MB/s. Looking at what is stored ...")
            wrong = _wrong(system, SMALL_BYTES, small, "small") + _wrong(system, LARGE_BYTES, large, "large")
        say("curl ...")
        curl_seconds = _curl(folder / "curl", TO_FILE, _addresses(host, LARGE_BYTES, large))
        say("curl and sha256sum ...")
        hashed_seconds = _curl(folder / "hashed", TO_FILE_AND_SHA256, _addresses(host, LARGE_BYTES, large))
        say("A plain loop ...")
        small_loop = measure_loop(folder / "small-loop", _addresses(host, SMALL_BYTES, small), more) if small else 1.0
        large_loop = measure_loop(folder / "large-loop", _addresses(host, LARGE_BYTES, large), more) if large else 1.0
    megabytes = len(large) * LARGE_BYTES / MEGABYTE
    for complaint in wrong[:5]:
        say(complaint)
    return {
        "small_files_per_s": round(len(small) / small_timing.total, 1),
        "large_mb_per_s": round(megabytes / large_timing.total, 1),
        "curl_mb_per_s": round(megabytes / curl_seconds, 1),
        "curl_sha256_mb_per_s": round(megabytes / hashed_seconds, 1),
        "ratio": round(curl_seconds / large_timing.total, 2),
        "ratio_to_curl_sha256": round(hashed_seconds / large_timing.total, 2),
        "ratio_from_first_download": round(curl_seconds / (large_timing.total - large_timing.to_first_download), 2),
        "loop_files_per_s": round(len(small) / small_loop, 1),
        "loop_mb_per_s": round(megabytes / large_loop, 1),
        "small_share_of_loop": round(small_loop / small_timing.total, 2),
        "large_share_of_loop": round(large_loop / large_timing.total, 2),
        "cpu_s": memory.cpu_seconds,
        "peak_rss_mb": memory.megabytes,
        "peak_rss_of": memory.command,
        "exact": not wrong,
        "store": options.store,
        "small": len(small),
        "large": len(large),
        "small_seconds": round(small_timing.total, 2),
        "small_seconds_to_first_download": round(small_timing.to_first_download, 2),
        "large_seconds": round(large_timing.total, 2),
        "large_seconds_to_first_download": round(large_timing.to_first_download, 2),
    }


@contextmanager
def _store(options: argparse.Namespace, folder: Path) -> Iterator[Mapping[str, str]]:
    """Return the settings of the chosen store."""
    if options.store == "local":
        yield {}
        return
    command = [sys.executable, "-m", "ingest_project_tests.services.dfs_server", "--folder", str(folder / "dfs")]
    command += ["--tls", str(folder)] if options.store == "dfs-tls" else []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            said = json.loads(server.stdout.readline())
            yield {
                "INGEST_ATTACHMENTS_URL": f"{said['root']}/attachments",
                "INGEST_ONELAKE_ENDPOINT": said["url"],
                "INGEST_ONELAKE_SAS_TOKEN": said["sas"],
                **({"REQUESTS_CA_BUNDLE": said["authority"]} if options.store == "dfs-tls" else {}),
            }
        finally:
            server.terminate()


def _wrong(system: AttachmentSystem, size: int, names: list[str], prefix: str) -> list[str]:
    """List the differences between stored and served files; empty when there are none."""
    expected = expected_sha256(size, names)
    services = SystemResources(system.settings)
    found = system.results(prefix)
    problems = [] if len(found) == len(names) else [f"{len(found)} of {len(names)} {prefix} ones are in the work queue"]
    if sorted(digest for _, digest in found) != sorted(expected.values()):
        problems.append(f"The work queue has other digests of the {prefix} ones.")
    records = services.attachments.list(text=f"{prefix}-", limit=10 * len(names) + 10)
    store = services.attachment_store("benchmark")

    def complaint(path: str) -> str | None:
        with store.local_path(path) as local, local.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return None if digest == expected[path.rpartition("/")[2]] else f"{path} has other bytes."

    with ThreadPoolExecutor(2) as pool:
        problems += filter(None, pool.map(complaint, [record.destination_path for record in records]))
    rows = services.attachment_results.figures()
    with services.engine.connect() as connection:
        attempts = connection.execute(sa.select(sa.func.count()).select_from(download_outcomes)).scalar_one()
    if rows is None or rows.rows != attempts:
        problems.append(f"The Delta table has {rows and rows.rows} rows, not {attempts}.")
    services.engine.dispose()
    return problems


def _curl(folder: Path, receive: str, addresses: Sequence[str]) -> float:
    """Return the seconds that curl needs for as many parallel downloads, plus copying each to the store."""
    if not addresses:
        return 1.0
    came, kept = folder / "came", folder / "kept"
    came.mkdir(parents=True)
    kept.mkdir()
    script = f'{CURL} {receive} && cp "$1/${{0##*/}}" "$2/" && rm "$1/${{0##*/}}"'
    began = time.monotonic()
    subprocess.run(
        ["xargs", "-P", str(CURL_AT_A_TIME), "-I", "{}", "sh", "-c", script, "{}", str(came), str(kept)],
        input="\n".join(addresses).encode(),
        check=True,
    )
    seconds = time.monotonic() - began
    shutil.rmtree(folder)
    return seconds


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}-{number}.bin" for number in range(count)]


def _addresses(host: str, size: int, names: Sequence[str]) -> list[str]:
    return [f"{host}/{size}/{name}" for name in names]


def main() -> int:
    """Measure once; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attachments", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the files, the state and the logs where they are")
    parser.add_argument("--small", type=int, default=5_000, help="attachments of 100 KB")
    parser.add_argument("--large", type=int, default=50, help="attachments of 100 MB")
    parser.add_argument("--store", choices=["local", "dfs", "dfs-tls"], default="local")
    options = parser.parse_args()
    return measured_once(measure, options)


if __name__ == "__main__":
    sys.exit(main())
