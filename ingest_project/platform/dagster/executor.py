"""The executor of every run: Dagster's in-process executor, which also records the run for traces and lineage.

One run is one process, so all steps of a batch share its memory and connections. If neither traces nor lineage are
exported, this is Dagster's own executor. A killed run cannot report its lineage: sensors report it from Dagster's
records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.executor.in_process import InProcessExecutor

from ingest_project.platform import tracing
from ingest_project.platform.dagster import lineage
from ingest_project.platform.dagster.lineage import Catalog, Checked, inputs_of
from ingest_project.platform.dagster.run_records import failure_of_run, innermost

LOST_RUNS_EVERY_SECONDS = 10


def run_executor(catalog: Callable[[], Catalog]) -> dg.ExecutorDefinition:
    """Return the executor of the runs of this code location.

    Args:
        catalog: returns the datasets behind the assets.
    """
    if not tracing.is_on() and not lineage.is_on():
        return dg.in_process_executor

    plain: Any = dg.in_process_executor
    return dg.ExecutorDefinition(
        name=plain.name,
        config_schema=plain.config_schema,
        executor_creation_fn=lambda context: _RecordingExecutor(plain.executor_creation_fn(context), catalog),
    )


class _RecordingExecutor(InProcessExecutor):
    """Executes a run as the plain executor does, and records its beginning and end."""

    def __init__(self, plain: InProcessExecutor, catalog: Callable[[], Catalog]) -> None:
        super().__init__(plain.retries, plain.step_dependency_config, plain.marker_to_close)
        self._catalog = catalog

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
        """Execute the steps."""
        run = plan_context.dagster_run
        execute = super().execute(plan_context, execution_plan)
        with tracing.run(run.job_name, run.run_id):
            yield from self._reporting(plan_context, execute) if lineage.is_on() else _tracing(execute)

    def _reporting(
        self, plan_context: PlanOrchestrationContext, events: Iterator[DagsterEvent]
    ) -> Iterator[DagsterEvent]:
        """Pass the events of a run on, and report its lineage."""
        from ingest_project.platform.dagster.lineage_events import RunReporter  # loads OpenLineage's client

        run, catalog, job = plan_context.dagster_run, self._catalog(), plan_context.job.get_definition()
        reporter = RunReporter(run, job.description)
        selected = run.asset_selection or job.asset_layer.executable_asset_keys
        reporter.begin(inputs_of(selected, catalog))
        error: str | None = None
        with lineage.recording() as found:
            try:
                for event in _tracing(events):
                    note(event)
                    if event.is_step_failure:
                        error = ": ".join(failure_of(event))
                    yield event
            except BaseException as cause:
                # A person or the end of the process interrupted the run.
                plan_context.instance.add_run_tags(run.run_id, {lineage.REPORTED_TAG: "true"})
                reporter.end(found, catalog, str(cause) or type(cause).__name__, aborted=True)
                raise
        if error is not None:
            plan_context.instance.add_run_tags(run.run_id, {lineage.REPORTED_TAG: "true"})
        reporter.end(found, catalog, error)


def lost_run_sensors() -> list[dg.SensorDefinition]:
    """Return the sensors that report the end of runs that could not: killed, never started, or stopped early."""
    if not lineage.is_on():
        return []
    from ingest_project.platform.dagster.lineage_events import RunReporter  # loads OpenLineage's client

    options: dict[str, Any] = {
        "minimum_interval_seconds": LOST_RUNS_EVERY_SECONDS,
        "default_status": dg.DefaultSensorStatus.RUNNING,
    }

    def report(context: dg.RunStatusSensorContext, *, aborted: bool) -> None:
        run = context.dagster_run
        if lineage.REPORTED_TAG not in run.tags:
            reason = failure_of_run(context.instance, run.run_id) or context.dagster_event.message or ""
            RunReporter(run).lost(reason, aborted=aborted)

    @dg.run_failure_sensor(
        name="lineage_of_lost_runs", description="Reports failed runs to OpenLineage on their behalf.", **options
    )
    def failed(context: dg.RunFailureSensorContext) -> None:
        report(context, aborted=False)

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.CANCELED,
        name="lineage_of_canceled_runs",
        description="Reports canceled runs to OpenLineage on their behalf.",
        **options,
    )
    def canceled(context: dg.RunStatusSensorContext) -> None:
        report(context, aborted=True)

    return [failed, canceled]


def note(event: DagsterEvent) -> None:
    """Note the materializations and check results that a step yielded and Dagster itself stores."""
    if event.is_step_materialization:
        one = event.step_materialization_data.materialization
        lineage.materialized(one.asset_key, one.partition, one.metadata)
    elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
        check = event.asset_check_evaluation_data
        found = Checked(check.check_name, check.passed, check.severity, check.description)
        lineage.checked(check.asset_key, check.partition, found)


def failure_of(event: DagsterEvent) -> tuple[str, str]:
    """Return class and reason of the error that failed a step, or of that error's cause if it has one."""
    data = event.step_failure_data
    if data.user_failure_data is not None:
        return "Failure", data.user_failure_data.description or ""
    error = innermost(data.error)
    return (error.cls_name or "", error.message.strip()) if error else ("", "")


def _tracing(events: Iterator[DagsterEvent]) -> Iterator[DagsterEvent]:
    for event in events:
        if event.is_step_failure:
            tracing.fail_run(*failure_of(event))
        yield event
