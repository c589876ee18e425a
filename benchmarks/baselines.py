"""Cost of baselines for a batch of files: alternate batches with and without them on a long history.

Landing, checks, COPY, queue entries and the metadata of each file are the product's own; Dagster's event log, which is
the same in both, is left out. Without baselines nothing is counted, read, compared or stored of them. Processor time is
compared as well, of this process and its sessions of PostgreSQL: other programs of the machine change it little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from unittest import mock

import sqlalchemy as sa

from benchmarks.measurement import Result, say
from benchmarks.peer import running_postgres
from benchmarks.workload import Workload, write_workload
from ingest_project.contracts.files import SENSOR_READINGS, FileEvent
from ingest_project.core.settings import load_settings
from ingest_project.file_ingest.catalog import SENSOR_ASSETS
from ingest_project.file_ingest.declared import contract_of
from ingest_project.file_ingest.file_queue import FileArrival
from ingest_project.file_ingest.pipeline import ingest
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import partition_report
from ingest_project.file_ingest.tables import FileState, file_statistics
from ingest_project.platform.database import reading, writing
from ingest_project.platform.work_queue.queue import KafkaPosition

FILES, ROUNDS, KNOWN = 256, 6, 200_000
PIPELINE, VALIDATION = "ingest_project.file_ingest.pipeline", "ingest_project.file_ingest.validate_files"
WAREHOUSE = "ingest_project.file_ingest.warehouse.postgres.PostgresTransaction.put_statistics"


def measure_baselines(options: argparse.Namespace, folder: Path) -> Result:
    """Measure batches of files with and without baselines."""
    (folder / "logs").mkdir(parents=True)
    rounds = 2 * ROUNDS + 1
    say(f"Writing {rounds} batches of {options.files} files ...")
    batches = [write_workload(folder / f"inbox-{n}" / "in", options.files, options.rows, seed=n) for n in range(rounds)]
    with running_postgres(folder) as url:
        environ = {"DATABASE_URL": url, "INGEST_LOCAL_ROOTS": str(folder), "INGEST_STATE_DIR": str(folder / "state")}
        services = FileIngestResources(load_settings(environ, folder).settings)
        _fill(services.engine, f"local:{folder.resolve()}/inbox-0/in", options.known)
        _one_batch(services, batches[0], 0)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        cpu_seconds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(1, rounds):
            is_on = bool(number % 2)
            with ExitStack() as stack:
                if not is_on:
                    stack.enter_context(without_baselines())
                before = _cpu_seconds(services.engine)
                seconds[is_on].append(_one_batch(services, batches[number], number))
                cpu_seconds[is_on].append(_cpu_seconds(services.engine) - before)
            took = f"{seconds[is_on][-1]:.2f} s, {cpu_seconds[is_on][-1]:.2f} s of processors"
            say(f"{'with' if is_on else 'without'} baselines: {took}")
        with reading(services.engine) as connection:
            stored = connection.execute(sa.select(sa.func.count()).select_from(file_statistics)).scalar_one()
        counts = services.files.counts_by_state()
        services.warehouse.close()
        services.engine.dispose()
    ingested = sum(batch.files["flaw"].is_null().sum() for batch in batches)
    with_them = sum(batch.files["flaw"].is_null().sum() for batch in [batches[0], *batches[1::2]])
    on, off = median(cpu_seconds[True]), median(cpu_seconds[False])
    return {
        "ratio": round(on / off, 3),
        "ratio_of_seconds": round(median(seconds[True]) / median(seconds[False]), 3),
        "with_cpu_ms_a_file": round(1_000 * on / options.files, 3),
        "without_cpu_ms_a_file": round(1_000 * off / options.files, 3),
        "exact": counts[FileState.INGESTED] == ingested and stored == options.known + with_them,
        "files": options.files,
        "rows": options.rows,
        "known_files": options.known,
    }


def _one_batch(services: FileIngestResources, workload: Workload, number: int) -> float:
    """Ingest the files of a batch; return the seconds taken."""
    now = datetime.now(UTC)
    arrivals = [_arrival(path, number * 100_000 + index, now) for index, path in enumerate(workload.paths)]
    services.files.record(arrivals, now)
    keys = [arrival.file_key for arrival in arrivals]
    services.files.claim(f"batch-{number}", keys, now)
    records = services.files.begin(keys, f"run-{number}", now)
    contract = contract_of(services, SENSOR_READINGS)
    began = time.perf_counter()
    for results in ingest(records, services, contract, f"run-{number}"):
        for result in results:
            partition_report(result, SENSOR_ASSETS)
    return time.perf_counter() - began


def _cpu_seconds(engine: sa.Engine) -> float:
    """Return the processor time so far of this process and of its sessions, which stay connected."""
    with reading(engine) as connection:
        pids = connection.exec_driver_sql(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
        ).scalars()
        stats = [Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(") ")[2].split() for pid in pids]
    ticks = sum(int(user) + int(system) for *_, user, system in (fields[:13] for fields in stats))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _arrival(path: Path, offset: int, now: datetime) -> FileArrival:
    stat = path.stat()
    modified_at = datetime.fromtimestamp(stat.st_mtime, UTC)
    event = FileEvent(
        file_path=str(path), file_name=path.name, source_type="local", size_bytes=stat.st_size, modified_at=modified_at
    )
    key = f"{path.name}~{offset:026d}"
    return FileArrival(key, f"local:{path.resolve()}", event, "canonical", KafkaPosition("t", 0, offset, "g", now))


def _fill(engine: sa.Engine, source: str, number: int) -> None:
    """Record that many files of a source in recent weeks."""
    say(f"Recording {number} earlier files ...")
    statement = """
        INSERT INTO file_statistics (file_key, dataset, source, sample_order, arrived_at, rows_read, rows_quarantined,
            null_counts, lateness_seconds)
        SELECT 'known-' || n, 'sensor_readings', :source, (hashint4(n) & 2147483647),
            now() - (n % 27) * interval '1 day', 1000 + n % 7, 10, '{}'::jsonb, n % 60
        FROM generate_series(1, :number) AS n"""
    with writing(engine) as connection:
        connection.execute(sa.text(statement), {"source": source, "number": number})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE file_statistics")


@contextmanager
def without_baselines() -> Iterator[None]:
    """Let a block ingest files without baselines and statistics."""
    with (
        mock.patch(f"{PIPELINE}.baselines_of", return_value={}),
        mock.patch(f"{PIPELINE}._with_verdict", lambda result, _: result),
        mock.patch(f"{VALIDATION}.nulls_by_file", return_value={}),
        mock.patch("ingest_project.file_ingest.load._statistics", return_value={}),
        mock.patch(WAREHOUSE),
    ):
        yield
