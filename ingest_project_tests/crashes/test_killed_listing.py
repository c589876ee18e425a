"""`kill -9` half-way through a large listing: the next run continues, and each file is announced once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.core.settings import load_settings
from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.journeys.system import POLLING, System, environment
from ingest_project_tests.services.kafka import Server

pytestmark = pytest.mark.long

FILES = 6_000
WAY = "ingest_project_tests.crashes.test_killed_listing:PollingSystem.poll"
KILL_POINTS = [
    KillPoint("third page sent, not marked", "ingest_project.platform.kafka.producer:TopicWriter.send_all", 3),
    KillPoint("third page marked as sent", "ingest_project.polling:JobOutbox.mark_sent", 3),
]


class PollingSystem(System):
    """One that looks into sources and leaves what it announces to others."""

    def poll(self) -> None:
        """One tick, and what it asks for."""
        for request in self.requests(POLLING):
            self.execute("polling_batch", request)


@pytest.mark.parametrize("point", KILL_POINTS, ids=lambda point: point.step)
def test_killed_half_way_through_a_large_listing_every_file_is_announced_once(
    point: KillPoint, kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    environ = environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "INGEST_LAUNCH_GRACE_SECONDS": "0",
        "INGEST_POLLING_PAGE_FILES": "1000",
        "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"],
    }
    (tmp_path / "in").mkdir()
    system = PollingSystem(load_settings(environ, tmp_path).settings, instance, tmp_path / "in")
    for number in range(FILES):
        (system.folder / f"{number:05}.csv").touch()
    system.send_job(system.folder)
    process = DeadlyProcess()
    try:
        exit_code = process.drive(point, system.folder, serialize_value(instance.get_ref()), environ, WAY)
    finally:
        process.close()
    assert exit_code == -signal.SIGKILL
    topic = system.settings.topics.file_event_queue
    assert len(system.on_topic(topic)) == FILES / 2, "half of them were on the topic when it was killed"
    bury_the_dead(instance)

    system.cursors = SavedCursors(tmp_path)
    system.poll()
    names = [json.loads(message.value or b"")["file_name"] for message in system.on_topic(topic)]
    assert sorted(names) == [f"{number:05}.csv" for number in range(FILES)]
    (job,) = system.services.polling_jobs.list()
    assert (job.state, job.attempts) == (JobState.DONE, 2)
    assert (job.files_found, job.files_published, job.skipped) == (FILES, FILES, {})
    system.close()
