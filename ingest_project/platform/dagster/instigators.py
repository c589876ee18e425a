"""Sensors and schedules whose recorded times lie in the future: Dagster runs no tick of them until then."""

from __future__ import annotations

from collections.abc import Sequence

from dagster import DagsterInstance
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorTick,
    ScheduleInstigatorData,
    SensorInstigatorData,
)

# Clocks of two machines differ, and are corrected in small steps.
LARGEST_SKEW_SECONDS = 5.0
# One tick each second of ten minutes, and more than any schedule makes in a year ahead.
MOST_TICKS = 1_000


def instigators_ahead(instance: DagsterInstance, now: float) -> list[InstigatorState]:
    """Return the sensors and schedules that wait for a time that lies further ahead than clocks differ."""
    return [state for state in instance.all_instigator_state() if _waits(instance, state, now)]


def _waits(instance: DagsterInstance, state: InstigatorState, now: float) -> bool:
    if is_ahead(state, now):
        return True
    # A schedule goes on after its last tick, and notes only once an hour how far it is.
    return isinstance(state.instigator_data, ScheduleInstigatorData) and bool(_ticks_ahead(instance, state, now, 1))


def _ticks_ahead(instance: DagsterInstance, state: InstigatorState, now: float, limit: int) -> Sequence[InstigatorTick]:
    limit_of_skew = now + LARGEST_SKEW_SECONDS
    return instance.get_ticks(state.instigator_origin_id, state.selector_id, after=limit_of_skew, limit=limit)


def is_ahead(state: InstigatorState, now: float) -> bool:
    """Tell whether a sensor or schedule would wait for a time that lies further ahead than clocks differ."""
    data, limit = state.instigator_data, now + LARGEST_SKEW_SECONDS
    if isinstance(data, SensorInstigatorData):
        return max(data.last_tick_timestamp or 0, data.last_tick_start_timestamp or 0) > limit
    if isinstance(data, ScheduleInstigatorData):
        return max(data.start_timestamp or 0, data.last_iteration_timestamp or 0) > limit
    return False


def bring_back(instance: DagsterInstance, seen: InstigatorState, now: float) -> None:
    """Set every time in the future of a sensor or schedule and of its ticks to now."""
    for tick in _ticks_ahead(instance, seen, now, MOST_TICKS):
        instance.update_tick(tick._replace(tick_data=tick.tick_data.with_status(tick.status, timestamp=now)))
    # Read again: a tick that ended meanwhile has saved its cursor.
    state = instance.get_instigator_state(seen.instigator_origin_id, seen.selector_id)
    if state is None or not is_ahead(state, now):
        return
    data = state.instigator_data
    if isinstance(data, SensorInstigatorData):
        repaired = data._replace(
            last_tick_timestamp=_at_most(data.last_tick_timestamp, now),
            last_tick_start_timestamp=_at_most(data.last_tick_start_timestamp, now),
            last_sensor_start_timestamp=_at_most(data.last_sensor_start_timestamp, now),
            last_tick_success_timestamp=_at_most(data.last_tick_success_timestamp, now),
        )
        instance.update_instigator_state(state.with_data(repaired))
    elif isinstance(data, ScheduleInstigatorData):
        schedule = data._replace(
            start_timestamp=_at_most(data.start_timestamp, now),
            last_iteration_timestamp=_at_most(data.last_iteration_timestamp, now),
        )
        instance.update_instigator_state(state.with_data(schedule))


def _at_most(moment: float | None, now: float) -> float | None:
    return None if moment is None else min(moment, now)
