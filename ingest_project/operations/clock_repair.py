"""What a clock that went ahead and was set back leaves behind: times in the future, which keep everything waiting.

Dagster takes no tick of a sensor whose last one lies in the future, and none of a schedule; the ledger asks for nothing
that is due in the future and takes back nothing that was touched there. All of it would wait for as long as the clock
had been ahead, restarts included. Here such times become now, through Dagster's own interface and the ledger's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorTick,
    ScheduleInstigatorData,
    SensorInstigatorData,
)

from ingest_project.core.logging import get_logger
from ingest_project.operations.resources import SystemResources

if TYPE_CHECKING:
    from dagster import DagsterInstance

logger = get_logger(__name__)

# Clocks of two machines differ, and are corrected in small steps.
LARGEST_SKEW_SECONDS = 5.0
# One tick each second of ten minutes, and more than any schedule makes in a year ahead.
MOST_TICKS = 1_000


def repair(instance: DagsterInstance, services: SystemResources, now: datetime) -> list[str]:
    """Let everything that has a time in the future go on from now. Done again, nothing is left to do.

    Args:
        instance: Dagster's records.
        services: the ledgers.
        now: the clock, as it is right.

    Returns:
        the names of the sensors and schedules that waited.

    Raises:
        DatabaseUnavailableError: the ledgers cannot be asked; call again.
    """
    ahead = [state for state in instance.all_instigator_state() if _waits(instance, state, now.timestamp())]
    if not ahead:
        return []
    # First the ledgers: a sensor whose time is right tells nobody any more that there was something to repair.
    entries = _repair_ledgers(services, now) if services.what_is_missing() is None else 0
    for state in ahead:
        _repair_instigator(instance, state, now.timestamp())
    names = sorted(state.instigator_name for state in ahead)
    logger.warning("clock_was_set_back", repaired=names, ledger_entries=entries)
    return names


def _waits(instance: DagsterInstance, state: InstigatorState, now: float) -> bool:
    if is_ahead(state, now):
        return True
    # A schedule goes on after its last tick, and notes by itself only once an hour how far it is.
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


def _repair_ledgers(services: SystemResources, now: datetime) -> int:
    ledgers = (
        services.files,
        services.polling_jobs,
        services.attachment_events,
        services.attachments,
        services.stream_ranges,
    )
    return sum(ledger.bring_back_to(now, LARGEST_SKEW_SECONDS) for ledger in ledgers)


def _repair_instigator(instance: DagsterInstance, seen: InstigatorState, now: float) -> None:
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
