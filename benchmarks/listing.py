"""List a folder of many files and announce them on Kafka, then list the same files again.

The broker and PostgreSQL are the embedded ones, each a process of its own. A process that does nothing else looks: it
lists the tree alone, then looks and announces, then looks again; its memory is measured. The broker keeps only the
newest announcements, so that they are counted, by id, as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from confluent_kafka import Consumer, TopicPartition

from benchmarks.memory import PeakMemory
from ingest_project.contracts.files import PollingJob
from ingest_project.core.settings import TopicSettings, load_settings
from ingest_project.devstack.embedded_kafka import PARTITIONS, start_broker, wait_for_broker
from ingest_project.devstack.postgres import start_postgres, wait_for_postgres
from ingest_project.operations import SystemResources
from ingest_project.platform.kafka.publisher import MESSAGE_ID_HEADER
from ingest_project.platform.work_queue.queue import KafkaPosition
from ingest_project.polling.discovery import discover
from ingest_project.polling.job_queue import JobArrival

FILES = 100_000
FILES_IN_A_FOLDER = 1_000
LONG_AGO = 1_700_000_000
LOOKS = 2
REPETITIONS = 3
PATIENCE_SECONDS = 60.0


def measure_listing(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure a listing that announces many files, and a second one of the same files."""
    _write(folder / "inbox", options.files)
    with _services(folder) as environ:
        topic = TopicSettings().file_event_queue
        looking = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.listing", str(folder / "inbox")],
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
        )
        with _Announcements(environ["KAFKA_BOOTSTRAP_SERVERS"], topic) as announcements:
            with PeakMemory([looking.pid]) as memory:
                output, _ = looking.communicate()
            announcements.wait_for(options.files)
    if looking.returncode:
        raise RuntimeError("The look failed; what it said is above.")
    seconds = json.loads(output.splitlines()[-1])
    published = seconds.pop("published")
    counted = announcements.counted
    return {
        "files": options.files,
        "events_per_s": round(options.files / seconds["first_look_s"]),
        "peak_rss_mb": memory.megabytes,
        **{name: round(value, 2) for name, value in seconds.items()},
        "second_look_of_listing": round(seconds["second_poll_s"] / seconds["listing_s"], 2),
        "exact": published == [options.files, 0] and len(counted) == options.files and set(counted.values()) == {1},
    }


class _Announcements:
    """Counts the messages of a topic by id, while it is open."""

    def __init__(self, servers: str, topic: str) -> None:
        self.counted: Counter[str | bytes | None] = Counter()
        self._consumer = Consumer({"bootstrap.servers": servers, "group.id": "count", "fetch.wait.max.ms": 20})
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def wait_for(self, number: int) -> None:
        """Return once so many have arrived, or no more arrive."""
        until = time.monotonic() + PATIENCE_SECONDS
        while len(self.counted) < number and time.monotonic() < until:
            time.sleep(0.1)

    def _count(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(5_000, timeout=0.1):
                if message.error() is None:
                    self.counted[dict(message.headers() or ())[MESSAGE_ID_HEADER]] += 1


@contextmanager
def _services(folder: Path) -> Iterator[dict[str, str]]:
    state, logs = folder / "state", folder / "logs"
    for made in (state, logs):
        made.mkdir(parents=True)
    postgres = start_postgres(state, logs)
    broker = start_broker(logs, dict(os.environ), TopicSettings().model_dump().values())
    try:
        wait_for_postgres(postgres)
        yield {
            "KAFKA_BOOTSTRAP_SERVERS": wait_for_broker(broker),
            "DATABASE_URL": postgres.url("warehouse"),
            "INGEST_LOCAL_ROOTS": str(folder / "inbox"),
            "INGEST_STATE_DIR": str(state),
            "INGEST_CONFIG_DIR": str(folder),
            "LOG_LEVEL": "ERROR",
        }
    finally:
        broker.stop()
        postgres.child.stop()


def _write(inbox: Path, files: int) -> None:
    for number in range(files):
        path = inbox / f"{number // FILES_IN_A_FOLDER:04}" / f"readings-{number:07}.csv"
        if number % FILES_IN_A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (LONG_AGO + number, LONG_AGO + number))


def _look(folder: str) -> dict[str, object]:
    """List without announcing, poll, and poll again; return the seconds of each."""
    services = SystemResources(load_settings().settings)
    jobs = [_job(folder, number) for number in range(LOOKS * REPETITIONS)]
    services.polling_jobs.record(jobs, datetime.now(UTC))
    _ = services.writer
    listings = [_seconds(services, folder) for _ in range(REPETITIONS)]
    looks, published = [], []
    for job in jobs[: 1 + REPETITIONS]:
        (record,) = services.polling_jobs.begin([job.job_key], "benchmark", datetime.now(UTC))
        began = time.monotonic()
        found = discover(services, record)
        looks.append(time.monotonic() - began)
        done = services.polling_jobs.finish_listing(job.job_key, found.found, found.not_announced(), datetime.now(UTC))
        published.append(done.files_published)
    # The machine is shared: the quickest of a few says most about the program.
    return {
        "listing_s": min(listings),
        "first_look_s": looks[0],
        "second_poll_s": min(looks[1:]),
        "published": published[:LOOKS],
    }


def _seconds(services: SystemResources, folder: str) -> float:
    began = time.monotonic()
    for _ in services.open_source({"source_type": "local", "path": folder}).list_files("**"):
        pass
    return time.monotonic() - began


def _job(folder: str, number: int) -> JobArrival:
    job = PollingJob(job_id=f"look-{number}", source_config={"source_type": "local", "path": folder}, file_pattern="**")
    return JobArrival(job.job_id, job, KafkaPosition("benchmark", 0, number))


if __name__ == "__main__":
    print(json.dumps(_look(sys.argv[1])), flush=True)
