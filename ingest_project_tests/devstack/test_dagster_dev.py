"""`dagster dev` in the project's folder, next to the services that `ingest dev --services-only` starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from http.client import HTTPException
from pathlib import Path

import pytest

from ingest_project.cli.send import deliver
from ingest_project.contracts import encode
from ingest_project.contracts.files import PollingJob
from ingest_project.core.settings import load_settings
from ingest_project.devstack import free_port
from ingest_project.devstack.dagster_processes import query_webserver
from ingest_project.devstack.supervisor import running_stack
from ingest_project.operations import SystemResources
from ingest_project_tests.after_a_demo.backfills import EndedBackfill, launch, wait_for
from ingest_project_tests.after_a_demo.test_repeated_partitions import FILE_ASSETS
from ingest_project_tests.journeys.system import readings

ROOT = Path(__file__).parents[2]
SECONDS = 180.0
SENSORS = (
    '{ sensorsOrError(repositorySelector: {repositoryLocationName: "ingest_project", repositoryName: '
    '"__repository__"}) { ... on Sensors { results { name sensorState { status } } } } }'
)


@pytest.mark.long
def test_dagster_dev_ingests_files_and_backfills_them(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.csv").write_text(readings(3, device=f"d{number}"))
    environ = {
        **os.environ,
        "INGEST_CONFIG_DIR": str(tmp_path),
        "INGEST_STATE_DIR": str(tmp_path / "state"),
        "INGEST_LOCAL_ROOTS": str(folder),
        "INGEST_MIN_FILE_AGE_SECONDS": "0",
    }
    loaded = load_settings(environ, tmp_path)
    port = free_port()
    command = [str(Path(sys.executable).with_name("dagster")), "dev", "--port", str(port)]
    with (
        running_stack(loaded, lambda _step, _state: None, dagster=False, monitor=False) as stack,
        subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process,
    ):
        try:
            wait_until_sensors_run(port)
            services = SystemResources(stack.settings)
            source = {"source_type": "local", "path": str(folder)}
            job = PollingJob(job_id="dev", source_config=source, trace_id="dev")
            deliver(services, stack.settings.topics.polling_queue, job.job_id, encode(job), "dev")
            keys = wait_until_ingested(services, 3)
            backfill = launch(f"http://127.0.0.1:{port}", FILE_ASSETS, keys)
            end = wait_for(f"http://127.0.0.1:{port}", backfill)
        finally:
            process.terminate()
            process.wait(60)
    assert end == EndedBackfill("COMPLETED_SUCCESS", dict.fromkeys(FILE_ASSETS, (3, 3, 0)))


def wait_until_sensors_run(port: int) -> None:
    """Wait until the webserver answers and every sensor of the project is on."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            sensors = query_webserver(port, SENSORS)["sensorsOrError"]["results"]
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            time.sleep(1)
            continue
        assert {sensor["sensorState"]["status"] for sensor in sensors} == {"RUNNING"}
        return
    raise AssertionError("dagster dev did not answer")


def wait_until_ingested(services: SystemResources, count: int) -> list[str]:
    """Wait until so many files are done; their keys."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        records = services.files.list(limit=100)
        if len(records) == count and all(record.state.finished for record in records):
            return [record.file_key for record in records]
        time.sleep(1)
    raise AssertionError(services.files.counts_by_state())
