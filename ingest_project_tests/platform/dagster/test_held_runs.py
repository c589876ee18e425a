"""Queued runs of a paused capability wait, and those behind them do not."""

from __future__ import annotations

import sys
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import create_run_for_test, create_test_daemon_workspace_context
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.run_coordinator import queued_run_coordinator_daemon as run_queue

from ingest_project.platform.dagster import daemon as own_daemon
from ingest_project.platform.dagster.daemon import CAPABILITY_TAG, HeldRuns, hold_runs


@dg.asset(tags={CAPABILITY_TAG: "one"})
def of_one() -> None:
    """An asset of a capability."""


@dg.asset(tags={CAPABILITY_TAG: "other"})
def of_another() -> None:
    """An asset of another one."""


@dg.asset_check(asset=of_one)
def holds() -> dg.AssetCheckResult:
    """A check of the first asset."""
    return dg.AssetCheckResult(passed=True)


defs = dg.Definitions(
    assets=[of_one, of_another],
    asset_checks=[holds],
    jobs=[dg.define_asset_job("one_batch", [of_one]), dg.define_asset_job("other_batch", [of_another])],
)
# Runs of jobs, of assets that a person or a backfill chose, and of a check.
ONE = {
    "a": {"job_name": "one_batch"},
    "b": {"job_name": "__ASSET_JOB", "asset_selection": frozenset({of_one.key})},
    "c": {
        "job_name": "__ASSET_JOB",
        "asset_selection": frozenset[dg.AssetKey](),
        "asset_check_selection": frozenset({dg.AssetCheckKey(of_one.key, "holds")}),
    },
}
OTHER = {
    "d": {"job_name": "other_batch"},
    "e": {"job_name": "__ASSET_JOB", "asset_selection": frozenset({of_another.key})},
}


def test_queued_runs_of_a_paused_capability_wait_and_those_behind_them_do_not(
    dagster_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = run_queue.QueuedRunCoordinatorDaemon
    for owner, name in ((run_queue, "TagConcurrencyLimitsCounter"), (daemon, "run_iteration")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(own_daemon, "PAUSES_SECONDS", 0.0)
    paused = {"one", "other"}
    hold_runs(HeldRuns(lambda: paused))
    queue: Any = daemon(interval_seconds=1)
    here = LoadableTargetOrigin(executable_path=sys.executable, python_file=__file__, attribute="defs")
    target = InProcessWorkspaceLoadTarget(InProcessCodeLocationOrigin(here, location_name="here"))
    with create_test_daemon_workspace_context(target, dagster_instance) as workspace, queue:
        (location,) = workspace.create_request_context().code_locations
        (repository,) = location.get_repositories().values()
        names: dict[str, str] = {}
        given: dict[str, Any] = {**ONE, **OTHER}
        for name, run in given.items():
            job = repository.get_full_job(run["job_name"])
            made = create_run_for_test(
                dagster_instance,
                status=DagsterRunStatus.QUEUED,
                remote_job_origin=job.get_remote_origin(),
                job_code_origin=job.get_python_origin(),
                **run,
            )
            names[made.run_id] = name

        def next_runs() -> set[str]:
            found = queue._get_runs_to_dequeue(dagster_instance, dagster_instance.get_concurrency_config(), None)
            return {names[run.run_id] for run in found}

        list(queue.run_iteration(workspace))
        assert {run.status for run in dagster_instance.get_runs()} == {DagsterRunStatus.QUEUED}
        paused.remove("other")
        assert next_runs() == set(OTHER)
        paused.clear()
        assert next_runs() == set(ONE | OTHER)
