"""Failures on record in Dagster: of runs, and of the ticks of sensors and schedules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import dagster as dg
from dagster._core.events import JobFailureData
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, TickStatus

ENDED_TICKS = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]


class FailingInstigator(NamedTuple):
    """A sensor or schedule whose last ticks all failed, and the reason of the newest."""

    kind: str
    name: str
    reason: str


def failing_instigators(instance: dg.DagsterInstance, failures_in_a_row: int) -> Iterator[FailingInstigator]:
    """Yield each sensor and schedule that is not stopped and whose last ticks all failed.

    Args:
        instance: Dagster's records.
        failures_in_a_row: ticks that must have failed one after the other.
    """
    for state in instance.all_instigator_state():
        if state.status is InstigatorStatus.STOPPED:
            continue
        reason = _failure_of_ticks(instance, state, failures_in_a_row)
        if reason is not None:
            yield FailingInstigator(state.instigator_type.value.lower(), state.name, reason)


def _failure_of_ticks(instance: dg.DagsterInstance, state: InstigatorState, failures_in_a_row: int) -> str | None:
    ticks = instance.get_ticks(
        state.instigator_origin_id, state.selector_id, limit=failures_in_a_row, statuses=ENDED_TICKS
    )
    if len(ticks) < failures_in_a_row or any(tick.status is not TickStatus.FAILURE for tick in ticks):
        return None
    error = ticks[0].error
    message = (error.cause or error).message if error else "no reason is on record"
    return " ".join(message.split())


def failure_of_run(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return what Dagster recorded of the end of a run: an exception, or how its process died; else nothing."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    records = instance.get_records_for_run(run_id, of_type=kinds, limit=1).records
    if not records:
        return ""
    entry = records[0].event_log_entry
    event = entry.dagster_event
    if event is None:
        return entry.user_message
    data = event.event_specific_data
    error = data.error if isinstance(data, StepFailureData | JobFailureData) else None
    while error is not None and error.cause is not None:
        error = error.cause
    reason = (error.message if error else event.message) or ""
    return " ".join(reason.replace("\x00", "").split())
