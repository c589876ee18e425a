"""`kill -9` after each step in which a newer version replaces an older one: each reading counts once all the time."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.core.settings import load_settings
from ingest_project.file_ingest.tables import FileState
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.file_ingest.stored_metrics import device_metrics
from ingest_project_tests.journeys.system import VALIDATED, System, environment, readings
from ingest_project_tests.services.kafka import Server

TRANSACTION = "ingest_project.file_ingest.warehouse.postgres:PostgresTransaction"
KILL_POINTS = [
    KillPoint("committed, and nothing reported", "ingest_project.file_ingest.load:store_at_once"),
    KillPoint("locations held", f"{TRANSACTION}.lock_locations"),
    KillPoint("older version marked", f"{TRANSACTION}.replace_versions"),
    KillPoint("its rows removed", f"{TRANSACTION}.replace_files"),
    KillPoint("newer rows appended", f"{TRANSACTION}.append_rows"),
    KillPoint("finished, before the commit", f"{TRANSACTION}.finish_files"),
    KillPoint("reported", "ingest_project.file_ingest.definitions:report_bisecting"),
    KillPoint("marked as reported", "ingest_project.file_ingest.file_queue:FileQueue.mark_reported"),
]


@pytest.mark.parametrize("point", KILL_POINTS, ids=lambda point: point.step)
def test_killed_while_a_version_is_replaced_and_run_again_each_reading_counts_once(  # noqa: PLR0913, PLR0917 - fixtures
    point: KillPoint,
    deadly_process: DeadlyProcess,
    kafka_server: Server,
    postgres_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
) -> None:
    environ = environment(kafka_server.bootstrap_servers, postgres_url, tmp_path)
    environ |= {"INGEST_LAUNCH_GRACE_SECONDS": "0", "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"]}
    folder = tmp_path / "in"
    folder.mkdir()
    system = System(load_settings(environ, tmp_path).settings, instance, folder, SavedCursors(tmp_path))
    path = system.write("today.csv", readings(3))
    system.send_files(path)
    system.drive()
    path.write_text(readings(4))
    system.send_files(path)

    exit_code = deadly_process.drive(point, folder, serialize_value(instance.get_ref()), environ)
    assert exit_code == -signal.SIGKILL, "it did not reach the step where it should have died"
    counts = [metric.count for metric in device_metrics(system.services.warehouse)]
    assert counts in ([3], [4]), "never both, never neither"
    assert system.services.warehouse.totals().rows == sum(counts)

    bury_the_dead(instance)
    system.cursors = SavedCursors(tmp_path)
    system.drive()
    older, newer = sorted(system.services.files.list(), key=lambda record: record.order)
    assert (older.state, older.replaced_by, newer.state) == (FileState.REPLACED, newer.file_key, FileState.INGESTED)
    assert [metric.count for metric in device_metrics(system.services.warehouse)] == [4]
    assert system.metadata(VALIDATED, older.file_key)["dagster/row_count"] == 0
    assert system.metadata(VALIDATED, newer.file_key)["dagster/row_count"] == 4
    assert system.services.files.leases(system.settings.topics.file_event_queue, datetime.now(UTC)) == ()
    system.close()
