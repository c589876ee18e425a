"""The run queue as dagster.yaml sets it up: batches by their kind, and what people start by the pool it works in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance, DagsterRunStatus, instance_for_test
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from ingest_project.definitions import defs
from ingest_project_tests.deploy.compose_file import ROOT

PARTS = ("storage", "run_coordinator", "concurrency", "telemetry")


@pytest.fixture
def instance(dagster_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """Records and queue of an instance that dagster.yaml describes."""
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", dagster_postgres_url)
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path))
    described = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    with instance_for_test(overrides={part: described[part] for part in PARTS}) as instance:
        yield instance


def queue(instance: DagsterInstance, job_name: str, number: int, batch: str | None = None) -> None:
    job = defs.resolve_job_def(job_name)
    tags = {"ingest/batch": batch} if batch else {}
    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="m"), location_name="ingest_project")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job_name)
    for _ in range(number):
        instance.create_run_for_job(job, tags=tags, status=DagsterRunStatus.QUEUED, remote_job_origin=origin)


def launched(instance: DagsterInstance) -> Counter[str]:
    """How many runs of each job the daemon would take out of the queue now."""
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
    config = instance.get_concurrency_config()
    return Counter(run.job_name for run in daemon._get_runs_to_dequeue(instance, config, fixed_iteration_time=None))


def test_runs_that_people_start_wait_for_a_place_in_their_pool(instance: DagsterInstance) -> None:
    queue(instance, "file_batch", 1)
    queue(instance, "downloads_batch", 1)
    assert launched(instance).total() == 2, "the first look makes the limits of pools that it has not met"
    queue(instance, "file_batch", 4)
    queue(instance, "crm_batch", 2)
    queue(instance, "downloads_batch", 5)
    queue(instance, "retention", 1)
    assert launched(instance) == {"file_batch": 4, "downloads_batch": 4, "retention": 1}


def test_batches_of_a_kind_take_turns_and_no_kind_keeps_another_waiting(instance: DagsterInstance) -> None:
    queue(instance, "file_batch", 4, "files")
    queue(instance, "attachments_batch", 4, "attachments")
    queue(instance, "crm_batch", 4, "crm")
    queue(instance, "attachment_events_batch", 4, "attachment_events")
    queue(instance, "polling_batch", 4, "polling_jobs")
    assert set(launched(instance).values()) == {2}
