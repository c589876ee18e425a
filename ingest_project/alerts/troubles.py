"""What Dagster's records say is wrong: sensors and schedules that keep failing, jobs whose last run failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorStatus, TickStatus

from ingest_project.alerts.incidents import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dagster._core.scheduler.instigation import InstigatorState

ENDED_TICKS = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
ENDED_RUNS = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
LONGEST_REASON = 300


def troubles_of(
    instance: dg.DagsterInstance, job_names: Sequence[str], failures_in_a_row: int, site: str
) -> list[Trouble]:
    """Everything that is wrong now.

    Args:
        instance: Dagster's records.
        job_names: jobs to look at.
        failures_in_a_row: ticks that must have failed one after the other.
        site: address of the Dagster UI, for links.
    """
    return [*_failing_ticks(instance, failures_in_a_row, site), *_failed_jobs(instance, job_names, site)]


def _failing_ticks(instance: dg.DagsterInstance, failures_in_a_row: int, site: str) -> Iterator[Trouble]:
    for state in instance.all_instigator_state():
        if state.status is InstigatorStatus.STOPPED:
            continue
        reason = _failure_of(instance, state, failures_in_a_row)
        if reason is not None:
            kind = state.instigator_type.value.lower()
            yield Trouble(
                f"{kind}/{state.name}",
                f"The {kind} {state.name} failed {failures_in_a_row} times in a row: {reason}",
                f"{site}/overview/{kind}s",
            )


def _failure_of(instance: dg.DagsterInstance, state: InstigatorState, failures_in_a_row: int) -> str | None:
    ticks = instance.get_ticks(
        state.instigator_origin_id, state.selector_id, limit=failures_in_a_row, statuses=ENDED_TICKS
    )
    if len(ticks) < failures_in_a_row or any(tick.status is not TickStatus.FAILURE for tick in ticks):
        return None
    error = ticks[0].error
    message = (error.cause or error).message if error else "no reason is on record"
    return " ".join(message.split())[:LONGEST_REASON]


def _failed_jobs(instance: dg.DagsterInstance, job_names: Sequence[str], site: str) -> Iterator[Trouble]:
    for job_name in job_names:
        runs = instance.get_runs(filters=dg.RunsFilter(job_name=job_name, statuses=ENDED_RUNS), limit=1)
        if runs and runs[0].status is dg.DagsterRunStatus.FAILURE:
            run_id = runs[0].run_id
            yield Trouble(f"job/{job_name}", f"The last run of {job_name} failed.", f"{site}/runs/{run_id}")
