"""Have the systems of other tests execute their runs as a run worker does: by the definitions and the executor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, TypeVar

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from ingest_project.definitions import definitions
from ingest_project_tests.journeys.system import System

AnySystem = TypeVar("AnySystem", bound=System)


def recorded(system: AnySystem) -> AnySystem:
    """Return the system with runs that are executed by the definitions that a deployment loads."""
    loaded = definitions(system.settings)
    loaded = dg.Definitions(
        **{name: getattr(loaded, name) for name in ("assets", "asset_checks", "jobs", "schedules", "sensors")},
        resources={**(loaded.resources or {}), "services": system.services},
        executor=loaded.executor,
    )

    def execute(job_name: str, request: dg.RunRequest) -> Any:  # noqa: ANN401 - what callers use of a result
        job = loaded.resolve_job_def(job_name)
        tags = {**request.tags, **({"dagster/partition": request.partition_key} if request.partition_key else {})}
        run = system.instance.create_run_for_job(job, tags=tags, run_config=request.run_config or None)
        execute_run(InMemoryJob(job), run, system.instance)
        done = system.instance.get_run_by_id(run.run_id)
        assert done is not None
        return SimpleNamespace(run_id=run.run_id, success=done.is_success, job_name=job_name)

    system.execute = execute  # type: ignore[method-assign]
    return system
