"""Measure files per second with 1, 2 and 4 parallel runs, and the limit of each shared service alone.

The runs share PostgreSQL and Kafka. So that a sizing can name the next bottleneck, each is measured at its own limit:
COPY into the table of readings by 1, 2 and 4 connections, and messages written to and read from a topic of Kafka.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import adbc_driver_postgresql.dbapi
import polars as pl
import psycopg2
import yaml
from confluent_kafka import Consumer, Producer

from benchmarks.measurement import Result, say
from benchmarks.peer import running_postgres
from benchmarks.peer_celery import TABLES
from benchmarks.results import differences
from benchmarks.system import running_system
from benchmarks.workload import write_workload
from ingest_project.devstack import dagster_processes
from ingest_project_tests.services.kafka import KafkaProcess, why_not_apache_kafka

WORKERS = (1, 2, 4)
CONFIGURATION = Path(__file__).parents[1] / "dagster.yaml"
COPY_ROWS = 64_000
COPIES = 24
MESSAGES = 400_000
MESSAGE_BYTES = 500
PARTITIONS = 12
TOPIC = "limit"


def measure_scaling(options: argparse.Namespace, folder: Path) -> Result:
    """Measure files per second by parallel runs, rows per second of PostgreSQL, messages per second of Kafka."""
    load = os.getloadavg()[0]
    workload = write_workload(folder / "files", options.files, options.rows)
    found: Result = {"exact": True}
    for workers in WORKERS:
        say(f"{workers} runs at a time ...")
        os.environ["INGEST_MAX_PARALLEL_BATCHES"] = str(workers)
        with _limited(workers, folder), running_system(folder / f"workers-{workers}", [workload.folder]) as system:
            used = _cpu_seconds()
            timing = system.measure(workload)
            found[f"files_per_s_{workers}"] = round(options.files / timing.seconds, 1)
            found[f"exact_{workers}"] = not differences(system.warehouse_url, workload)
            found["exact"] = bool(found["exact"] and found[f"exact_{workers}"])
        found[f"cpu_seconds_per_s_{workers}"] = round((_cpu_seconds() - used) / timing.seconds, 2)
    return found | _postgres(folder) | _kafka() | {"cores": os.cpu_count(), "load_before": round(load, 1)}


@contextmanager
def _limited(workers: int, folder: Path) -> Iterator[None]:
    """Set how many batches of files run in parallel."""
    configuration = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    for limit in configuration["concurrency"]["runs"]["tag_concurrency_limits"]:
        limit["limit"] = max(limit["limit"], workers) if limit["value"] != "files" else workers
    configuration["concurrency"]["pools"]["default_limit"] = max(4, 2 * workers)
    path = folder / f"dagster-{workers}.yaml"
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    original = dagster_processes._configuration  # noqa: SLF001 - no setting names another file
    dagster_processes._configuration = lambda: path  # noqa: SLF001
    try:
        yield
    finally:
        dagster_processes._configuration = original  # noqa: SLF001


def _cpu_seconds() -> float:
    """Return the CPU seconds of this machine so far, those of its other work included."""
    user, nice, system, *_ = (
        int(value) for value in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _postgres(folder: Path) -> Result:
    """Measure rows per second of COPY alone, by number of connections."""
    say("PostgreSQL alone ...")
    found: Result = {}
    (folder / "limit" / "logs").mkdir(parents=True)
    with running_postgres(folder / "limit") as url:
        with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(TABLES)
        for workers in WORKERS:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
                list(processes.map(_copy, [url] * workers, [1] * workers))
                began = time.monotonic()
                list(processes.map(_copy, [url] * workers, [COPIES // workers] * workers))
                found[f"copy_rows_per_s_{workers}"] = round(COPY_ROWS * COPIES / (time.monotonic() - began))
    return found


def _copy(url: str, times: int) -> None:
    rows = pl.DataFrame(
        {
            "timestamp": pl.Series([datetime(2026, 1, 15, tzinfo=UTC)]).cast(pl.Datetime("us", "UTC")),
            "device_id": ["device-1"],
            "sensor_type": ["temperature"],
            "value": [21.5],
            "unit": ["C"],
            "file_key": ["limit.csv-" + "a" * 26],
            "line_number": [1],
        }
    )
    many = pl.concat([rows] * COPY_ROWS).with_columns(line_number=pl.int_range(COPY_ROWS)).to_arrow()
    with adbc_driver_postgresql.dbapi.connect(url) as connection:
        for _ in range(times):
            with connection.cursor() as cursor:
                cursor.adbc_ingest("raw_sensor_data", many, mode="append")
            connection.commit()


def _kafka() -> Result:
    """Measure messages per second of one producer and one consumer on Apache Kafka."""
    if reason := why_not_apache_kafka():
        return {"kafka_not_measured": reason}
    say("Apache Kafka alone ...")
    server = KafkaProcess()
    try:
        server.create_topic(TOPIC, PARTITIONS)
        producer = Producer({"bootstrap.servers": server.bootstrap_servers, "linger.ms": 5, "acks": "all"})
        began = time.monotonic()
        for _ in range(MESSAGES):
            while True:
                try:
                    producer.produce(TOPIC, b"x" * MESSAGE_BYTES)
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.flush()
        written = time.monotonic() - began
        consumer = Consumer(
            {"bootstrap.servers": server.bootstrap_servers, "group.id": "limit", "auto.offset.reset": "earliest"}
        )
        consumer.subscribe([TOPIC])
        read, first = 0, 0.0
        while read < MESSAGES:
            read += len(consumer.consume(10_000, 1.0))
            first = first or (time.monotonic() if read else 0.0)
        reading = time.monotonic() - first
        consumer.close()
    finally:
        server.stop()
    return {"kafka_writes_per_s": round(MESSAGES / written), "kafka_reads_per_s": round(MESSAGES / reading)}
