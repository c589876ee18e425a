"""Milliseconds of every page of the operations console over a large system, written straight into its tables.

The console is `ingest monitor` in a process of its own, next to PostgreSQL and an embedded broker. Each page is opened
at random items; one second is the most that a person should wait.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import requests
import sqlalchemy as sa

from benchmarks.measurement import Result, say
from ingest_project.core.settings import Settings, load_settings
from ingest_project.devstack.embedded_kafka import EmbeddedBroker
from ingest_project.devstack.postgres import start_postgres, wait_for_postgres
from ingest_project.operations import RunningTotals, SystemResources
from ingest_project.platform.delta.maintenance import optimize_and_vacuum
from ingest_project.platform.delta.table import DeltaStore, query_events
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.user_activity.event_table import SCHEMA

FILES, EVENTS = 100_000, 10_000_000
EVENTS_A_COMMIT = 50_000
DAYS, PARTITIONS = 30, 4
OPENED = 20
LONGEST_MS = 1_000.0
FILES_SQL = """
INSERT INTO files (file_key, location, location_key, source_type, file_path, file_name, file_type, size_bytes, etag,
    event_id, job_id, trace_id, metadata, source_config, profile, state, attempts, batch_id, run_id, next_attempt_at,
    created_at, updated_at, started_at, finished_at, reported_at, kafka_topic, kafka_partition, kafka_offset,
    kafka_topic_id, sha256, landed_bytes, rows_read, rows_accepted, rows_quarantined, rule_counts)
SELECT name || '~' || translate(substr(md5(n::text), 1, 26), '0189', 'wxyz'), 'local:/data/in/' || name, md5(n::text),
    'local', '/data/in/' || name, name, 'csv', 50000, '"' || md5('etag' || n) || '"', md5('event' || n),
    'job_' || n % 100, 'trace-' || n / 50, '{}', '{}', 'canonical',
    CASE WHEN n % 50 = 0 THEN 'quarantined' ELSE 'ingested' END, 1, 'files-' || n / 500, md5('run' || n / 500), moment,
    moment, moment, moment, moment, moment, 'file-event-queue', 0, n, '', md5('a' || n) || md5('b' || n), 50000, 1000,
    999, 1, '{"value_out_of_range": 1}'
FROM (SELECT n, 'plant_' || n || '.csv' AS name, now() - n * interval '20 seconds' AS moment
      FROM generate_series(1, :number) AS n) AS numbered
"""
QUARANTINED_SQL = """
INSERT INTO quarantined_rows (file_key, line_number, raw_text, reasons)
SELECT file_key, 17, 'a,b,99999', ARRAY['value_out_of_range'] FROM files
"""
ATTACHMENTS_SQL = """
INSERT INTO attachments (attachment_key, trace_id, domain, attachment_url, task, destination_path, queue_name, state,
    attempts, batch_id, run_id, next_attempt_at, created_at, updated_at, started_at, finished_at, reported_at, attempt,
    replays, kafka_topic, kafka_partition, kafka_offset, kafka_topic_id, size_bytes, sha256, stored_path)
SELECT 'a_' || n || '.pdf~' || md5('attachment' || n), 'claim-' || n / 5, 'claims',
    'https://files.example.com/a_' || n || '.pdf', '{}', 'claims/a_' || n || '.pdf', 'pending', 'stored', 1,
    'attachments-' || n / 500, md5('r' || n / 500), moment, moment, moment, moment, moment, moment, 1, 0,
    'downloads.pending', 0, n, '', 1000, md5('c' || n) || md5('d' || n), 'claims/a_' || n || '.pdf'
FROM (SELECT n, now() - n * interval '20 seconds' AS moment FROM generate_series(1, :number) AS n) AS numbered
"""


def measure_console(options: argparse.Namespace, folder: Path) -> Result:
    """Measure every page of the console over 100,000 files, as many attachments and 10 million events."""
    folder.chmod(0o711)
    (folder / "state").mkdir(mode=0o711)
    postgres = start_postgres(folder / "state", folder)
    try:
        wait_for_postgres(postgres)
        with EmbeddedBroker(topics={"file-event-queue": 1, "user-activity-events": PARTITIONS}) as broker:
            environ = {
                "DATABASE_URL": postgres.url("warehouse"),
                "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
                "INGEST_STATE_DIR": str(folder / "state"),
                "LOG_LEVEL": "ERROR",
            }
            settings = load_settings(environ, folder).settings
            events = _seed(settings, options)
            with _console(environ, folder) as (site, process):
                milliseconds = _opened(site, process, options, events)
    finally:
        postgres.child.stop()
    slowest = max(milliseconds, key=lambda page: milliseconds[page]["p95"])
    return {
        "slowest_page": slowest,
        "slowest_p95_ms": milliseconds[slowest]["p95"],
        "pages": milliseconds,
        "exact": milliseconds[slowest]["p95"] < LONGEST_MS,
        "files": options.files,
        "events": options.events,
    }


def _seed(settings: Settings, options: argparse.Namespace) -> list[str]:
    """Fill the tables; return ids of some events."""
    services = SystemResources(settings)
    services.writer.send_all("file-event-queue", [ProducerRecord(b"{}") for _ in range(min(options.files, 20_000))])
    say(f"Writing {options.files} files and attachments ...")
    with services.engine.begin() as connection:
        for statement in (FILES_SQL, ATTACHMENTS_SQL):
            connection.execute(sa.text(statement), {"number": options.files})
        connection.execute(sa.text(QUARANTINED_SQL))
    # A monitor that has been running has counted them as they ended.
    totals = RunningTotals(services.engine)
    while totals.count(datetime.now(UTC)):
        pass
    with services.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))
    if options.table:
        shutil.copytree(options.table, settings.user_activity_url)
    else:
        say(f"Writing {options.events} events ...")
        _write_events(services.user_activity.store, options.events)
        say("Compacting them, as the system does every ten minutes ...")
        optimize_and_vacuum(services.user_activity.store)
    services.engine.dispose()
    return _some_events(services.user_activity.store)


def _some_events(store: DeltaStore) -> list[str]:
    found: list[str] = []
    for partition in range(PARTITIONS):
        where = f"kafka_partition = {partition} AND kafka_offset IN (17, 49999, 777)"
        for batch in query_events(store, f"SELECT event_id FROM events WHERE {where}"):
            found += batch["event_id"].to_pylist()
    return found


def _write_events(store: DeltaStore, number: int) -> None:
    chance = np.random.default_rng(7)
    began, step = datetime.now(UTC) - timedelta(days=DAYS), timedelta(days=DAYS) / max(1, number // EVENTS_A_COMMIT)
    for commit in range(number // EVENTS_A_COMMIT):
        moment, count = began + commit * step, EVENTS_A_COMMIT
        times = pa.repeat(pa.scalar(moment, pa.timestamp("us", "UTC")), count)
        partition, offset = commit % PARTITIONS, commit // PARTITIONS * count
        columns: dict[str, pa.Array] = {name: pa.nulls(count, SCHEMA.field(name).type) for name in SCHEMA.names}
        columns |= {name: _ids(chance, count) for name in ("event_id", "request_id", "session_id")}
        columns |= {
            "trace_id": columns["request_id"],
            "event_type": pa.repeat(pa.scalar("page_view"), count),
            "timestamp": times,
            "kafka_timestamp": times,
            "event_data": _ids(chance, count),
            "kafka_topic": pa.repeat(pa.scalar("user-activity-events"), count),
            "kafka_topic_id": pa.repeat(pa.scalar(""), count),
            "kafka_partition": pa.repeat(pa.scalar(partition, pa.int32()), count),
            "kafka_offset": pa.array(np.arange(offset, offset + count)),
            "event_day": pa.repeat(pa.scalar(f"{moment:%Y-%m-%d}"), count),
        }
        table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
        store.append(table, app_id=f"benchmark/{partition}", version=offset + count)


def _ids(chance: np.random.Generator, count: int) -> pa.Array:
    digits = np.frombuffer(chance.bytes(16 * count).hex().encode(), dtype="S32")
    return pa.array(digits.astype(str), pa.string())


@contextmanager
def _console(environ: Mapping[str, str], folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    command = (sys.executable, "-m", "ingest_project.cli.main", "monitor", "--port", "0")
    with (folder / "monitor.log").open("w+") as log:
        process = subprocess.Popen(command, env=os.environ | environ, stderr=log, cwd=folder)
        try:
            while "http://" not in (said := (folder / "monitor.log").read_text()):
                assert process.poll() is None, said
                time.sleep(0.1)
            yield said.partition("http://")[2].partition("/")[0], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def _opened(
    site: str, process: psutil.Process, options: argparse.Namespace, events: list[str]
) -> dict[str, dict[str, float]]:
    """Open every page; return milliseconds by page, of wall clock and of the CPUs (other processes included)."""
    chance, client = random.Random(7), requests.Session()  # noqa: S311 - no secret

    def number() -> int:
        return chance.randrange(1, min(options.files, 20_000))

    pages: dict[str, Callable[[], str]] = {
        "dashboard": lambda: "",
        "dashboard data": lambda: "dashboard.json",
        "search form": lambda: "search",
        "actions": lambda: "actions",
        "audit": lambda: "audit",
        "file by name": lambda: f"search?q=plant_{number()}.csv",
        "files by the beginning of a name": lambda: f"search?q=plant_{number() // 100}",
        "file by position": lambda: f"search?q=file-event-queue/0/{number()}",
        "files of a trace": lambda: f"search?q=trace-{number() // 50}",
        "file by path": lambda: f"search?q=/data/in/plant_{number()}.csv",
        "attachment by address": lambda: f"search?q=https://files.example.com/a_{number()}.pdf",
        "event by id": lambda: f"search?q={chance.choice(events)}",
        "message by position": lambda: f"search?q=user-activity-events/{number() % PARTITIONS}/{number()}",
        "nothing": lambda: f"search?q={chance.randbytes(16).hex()}",
    }
    found = {}
    for name, address in pages.items():
        # The first one connects, and imports what the page needs.
        client.get(f"http://{site}/{address()}", timeout=60)
        taken, used = [], sum(process.cpu_times()[:2])
        for _ in range(OPENED):
            began = time.perf_counter()
            answer = client.get(f"http://{site}/{address()}", timeout=60)
            taken.append((time.perf_counter() - began) * 1_000)
        found[name] = {
            "p50": round(float(np.percentile(taken, 50)), 1),
            "p95": round(float(np.percentile(taken, 95)), 1),
            "cpu": round((sum(process.cpu_times()[:2]) - used) / OPENED * 1_000, 1),
            "status": answer.status_code,
        }
        say(f"{name}: {found[name]}")
    return found
