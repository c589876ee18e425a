"""Pause and resume a capability: stop its sensors in Dagster, and record who did it and why.

A stopped sensor stays stopped when Dagster restarts. Messages stay on their topics, runs in progress end normally, and
the daemon holds queued runs, including those of backfills and people (`platform/dagster/daemon.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import msgspec
import sqlalchemy as sa

from ingest_project.core.yaml_models import nearest_or_known
from ingest_project.operations import SystemResources, paused_capabilities
from ingest_project.platform.actions import (
    Action,
    ActionRecord,
    ActionRefusedError,
    ActionRequest,
    Outcome,
    Parameter,
    Selection,
)
from ingest_project.platform.database import reading, writing
from ingest_project.platform.database.sql import insert_into

CAPABILITY = Parameter(
    "capability", "One of polling, file_ingest, attachments, user_activity, crm, or a declared stream.", required=True
)


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """A capability that an operator has paused.

    Args:
        sensors: sensors that the pause stopped.
    """

    capability: str
    who: str
    reason: str
    paused_at: datetime
    sensors: tuple[str, ...]

    def __str__(self) -> str:
        """Describe the pause for people."""
        return f"{self.capability} is paused by {self.who}: {self.reason}"


def read_pauses(connection: sa.Connection) -> tuple[Pause, ...]:
    """Return the paused capabilities, by name."""
    rows = connection.execute(sa.select(paused_capabilities).order_by(paused_capabilities.c.capability)).mappings()
    return tuple(Pause(**{**row, "sensors": tuple(row["sensors"])}) for row in rows)


def _pause_of(services: SystemResources, name: str) -> Pause | None:
    with reading(services.engine) as connection:
        return next((pause for pause in read_pauses(connection) if pause.capability == name), None)


def _sensors_of(services: SystemResources, name: str) -> list[str]:
    """Return the names of a capability's sensors.

    Raises:
        ActionRefusedError: no capability has this name.
    """
    from ingest_project.operations.definitions import parts_of_capabilities  # imports Dagster

    parts = parts_of_capabilities(services.settings)
    if name not in parts:
        raise ActionRefusedError(f"There is no capability {name[:50]!r}{nearest_or_known(name, parts)}")
    return [sensor.name for sensor in parts[name].definitions.sensors or ()]


def _select_to_pause(services: SystemResources, request: ActionRequest) -> Selection:
    name = request.parameters[CAPABILITY.name]
    sensors = _sensors_of(services, name)
    pause = _pause_of(services, name)
    note = f"{pause}. Your reason replaces this one." if pause else f"Stops {', '.join(sensors)}."
    return Selection((name,), 1, notes=(note,))


def _pause(services: SystemResources, request: ActionRequest, keys: Sequence[str]) -> Outcome:
    from ingest_project.platform.dagster.control import open_instance, running_sensors, stop_sensors  # Dagster

    (name,) = keys
    sensors, earlier = _sensors_of(services, name), _pause_of(services, name)
    with open_instance(services.settings) as instance:
        running = running_sensors(instance, sensors)
        stopped = sorted({*running, *(earlier.sensors if earlier else ())})
        row = {"who": request.who, "reason": request.reason, "paused_at": datetime.now(UTC), "sensors": stopped}
        with writing(services.engine) as connection:
            insert = insert_into(connection, paused_capabilities).values(capability=name, **row)
            connection.execute(insert.on_conflict_do_update(index_elements=["capability"], set_=row))
        stop_sensors(instance, running)
    if earlier and not running:
        return Outcome((name,), detail=f"It was paused before; this reason replaces that of {earlier.who}.")
    return Outcome((name,), detail=f"Stopped: {', '.join(stopped) or 'nothing, all were stopped before'}.")


def _paused(services: SystemResources, _record: ActionRecord, keys: Sequence[str]) -> Collection[str]:
    from ingest_project.platform.dagster.control import open_instance, running_sensors  # Dagster

    with open_instance(services.settings) as instance:
        return [key for key in keys if not running_sensors(instance, _sensors_of(services, key))]


def _select_to_resume(services: SystemResources, request: ActionRequest) -> Selection:
    name = request.parameters[CAPABILITY.name]
    pause = _pause_of(services, name)
    if pause is None:
        _sensors_of(services, name)
        return Selection((), 1, {name: "it is not paused"})
    return Selection((name,), 1, notes=(f"{pause}.", f"Starts {', '.join(pause.sensors)}."))


def _resume(services: SystemResources, _request: ActionRequest, keys: Sequence[str]) -> Outcome:
    from ingest_project.platform.dagster.control import open_instance, start_sensors  # Dagster

    (name,) = keys
    pause = _pause_of(services, name)
    sensors = pause.sensors if pause else ()
    with open_instance(services.settings) as instance:
        start_sensors(instance, sensors)
    with writing(services.engine) as connection:
        connection.execute(sa.delete(paused_capabilities).where(paused_capabilities.c.capability == name))
    return Outcome((name,), detail=f"Started: {', '.join(sensors) or 'nothing'}.")


def _resumed(services: SystemResources, _record: ActionRecord, keys: Sequence[str]) -> Collection[str]:
    return [key for key in keys if _pause_of(services, key) is None]


PAUSE = Action(
    name="pause-capability",
    title="Pause a capability",
    noun="capability",
    meaning="Stops the sensors of a capability until it is resumed. Runs in progress end; queued ones wait, those of "
    "backfills too, and messages wait on their topics. Pausing again replaces the reason.",
    parameters=(CAPABILITY,),
    select=_select_to_pause,
    apply=_pause,
    acted_on=_paused,
)
RESUME = Action(
    name="resume-capability",
    title="Resume a capability",
    noun="capability",
    meaning="Starts the sensors again that the pause had stopped, and the runs that wait; a sensor that was stopped "
    "before stays so.",
    parameters=(CAPABILITY,),
    select=_select_to_resume,
    apply=_resume,
    acted_on=_resumed,
)
