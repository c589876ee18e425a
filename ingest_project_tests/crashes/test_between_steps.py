"""`kill -9` after each step on the way of a file: run again in the ordinary way, everything is there exactly once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.core.settings import load_settings
from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.journeys.system import (
    DISCOVERED,
    METRICS,
    QUARANTINED,
    RAW,
    VALIDATED,
    System,
    environment,
    readings,
)
from ingest_project_tests.services.kafka import Server

JOBS = "ingest_project.polling"
FILES_QUEUE = "ingest_project.file_ingest.file_queue:FileQueue"
OUTBOX = "ingest_project.platform.kafka.publisher:MessageOutbox"
CURSOR_SAVED = "ingest_project_tests.crashes.deadly_process:SavedCursors.__setitem__"
PARTITIONS_ADDED = "dagster:DagsterInstance.add_dynamic_partitions"
INTENDED = f"{OUTBOX}.record_intent"
SENT = "ingest_project.platform.kafka.producer:TopicWriter.send_all"
MARKED_SENT = f"{OUTBOX}.mark_sent"
TRANSACTION = "ingest_project.file_ingest.warehouse.postgres:PostgresTransaction"

# In the order in which they come. The first publication is of a dead letter, the second of the file events.
KILL_POINTS = [
    KillPoint("dead letter intended", INTENDED),
    KillPoint("dead letter sent", SENT),
    KillPoint("dead letter marked as sent", MARKED_SENT),
    KillPoint("jobs recorded", f"{JOBS}:JobQueue.record"),
    KillPoint("job partitions added", PARTITIONS_ADDED),
    KillPoint("jobs requested", f"{JOBS}:JobQueue.claim"),
    KillPoint("polling cursor saved", CURSOR_SAVED),
    KillPoint("jobs started", f"{JOBS}:JobQueue.begin"),
    KillPoint("file events intended", INTENDED, 2),
    KillPoint("file events sent", SENT, 2),
    KillPoint("file events marked as sent", f"{JOBS}:JobOutbox.mark_sent"),
    KillPoint("job finished", f"{JOBS}:JobQueue.finish_listing"),
    KillPoint("job reported", "ingest_project.polling.definitions:report"),
    KillPoint("job marked as reported", f"{JOBS}:JobQueue.mark_reported"),
    KillPoint("files recorded", f"{FILES_QUEUE}.record"),
    KillPoint("file partitions added", PARTITIONS_ADDED, 3),
    KillPoint("files requested", f"{FILES_QUEUE}.claim"),
    KillPoint("file cursor saved", CURSOR_SAVED, 2),
    KillPoint("files started", f"{FILES_QUEUE}.begin"),
    KillPoint("second file landed", "ingest_project.file_ingest.pipeline:land", 2),
    KillPoint("refused file put into quarantine", "ingest_project.file_ingest.load:quarantine_file"),
    KillPoint("rows replaced", f"{TRANSACTION}.replace_files"),
    KillPoint("rows appended", f"{TRANSACTION}.append_rows"),
    KillPoint("files finished, before the commit", f"{TRANSACTION}.finish_files"),
    KillPoint("committed", "ingest_project.file_ingest.load:store_at_once"),
    KillPoint(
        "materialisations shown, checks not", "ingest_project.platform.dagster.asset_events:_store_materializations", 2
    ),
    KillPoint("files reported", "ingest_project.file_ingest.definitions:report_bisecting"),
    KillPoint("files marked as reported", f"{FILES_QUEUE}.mark_reported"),
]
FILES = {
    "good.csv": readings(5),
    "twin.csv": readings(5),
    "some.csv": readings(6, "device-2", bad=2),
    "refused.csv": "timestamp,value\n1,2\n",
}


@pytest.fixture
def environ(kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path) -> dict[str, str]:
    """The settings of the system that dies and of the one that goes on; what a dead run holds is taken back at once."""
    del instance
    return environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "INGEST_LAUNCH_GRACE_SECONDS": "0",
        "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"],
    }


@pytest.mark.parametrize("point", KILL_POINTS, ids=lambda point: point.step)
def test_killed_after_a_step_and_run_again_everything_is_there_exactly_once(
    point: KillPoint, deadly_process: DeadlyProcess, environ: dict[str, str], instance: DagsterInstance, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    system = System(load_settings(environ, tmp_path).settings, instance, folder)
    for name, content in FILES.items():
        system.write(name, content)
    system.send(system.settings.topics.polling_queue, b"not a job")
    system.send_job(folder)
    exit_code = deadly_process.drive(point, folder, serialize_value(instance.get_ref()), environ)
    assert exit_code == -signal.SIGKILL, "it did not reach the step where it should have died"
    bury_the_dead(instance)

    system.cursors = SavedCursors(tmp_path)
    system.drive()
    assert_exactly_once(system)
    system.close()


def assert_exactly_once(system: System) -> None:
    states = system.states()
    assert Counter(states.values()) == {"ingested": 2, "duplicate": 1, "quarantined": 1}
    assert (states["some.csv"], states["refused.csv"]) == ("ingested", "quarantined")
    assert system.services.warehouse.totals()[:2] == (9, 2)
    records = {record.file_key: record for record in system.services.files.list()}
    for key, counts in system.services.warehouse.file_counts(list(records)).items():
        assert (counts.rows, counts.quarantined) == (
            (records[key].rows_accepted, records[key].rows_quarantined)
            if states[records[key].event.file_name] == "ingested"
            else (0, 0)
        )

    def keys(*wanted: str) -> set[str]:
        return {key for key, record in records.items() if record.state.value in wanted}

    some = system.file("some.csv").file_key
    assert set(system.instance.get_dynamic_partitions("files")) == set(records)
    for asset in (RAW, VALIDATED, METRICS, QUARANTINED):
        assert system.instance.get_materialized_partitions(asset) == set(records), asset
    stored = {key for key in records if system.metadata(VALIDATED, key).get("dagster/row_count")}
    assert stored == keys("ingested")
    assert {key for key, status in system.accepted().items() if status == "SUCCEEDED"} == stored
    passed = keys("ingested") - {some}
    assert system.checks() == dict.fromkeys(passed, "SUCCEEDED") | dict.fromkeys(keys("quarantined") | {some}, "FAILED")
    assert [note["file_key"] for note in system.quarantined()] == [system.file("refused.csv").file_key]
    (job,) = system.services.polling_jobs.list()
    assert job.state is JobState.DONE
    assert system.instance.get_materialized_partitions(DISCOVERED) == {job.job_key}
    assert len(system.on_topic(system.settings.topics.file_event_queue)) == len(FILES)
    assert len(system.on_topic(system.settings.topics.polling_queue_dlq)) == 1
    now = datetime.now(UTC)
    assert system.services.files.leases(system.settings.topics.file_event_queue, now) == ()
    assert system.services.polling_jobs.leases(system.settings.topics.polling_queue, now) == ()
