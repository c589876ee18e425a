"""Whether everything that ingesting needs is there, a line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ingest_project.monitor.orchestration import SENSOR_DAEMON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from ingest_project.backpressure import Disk
    from ingest_project.monitor.orchestration import DagsterSeen
    from ingest_project.monitor.parts import Part, Seen
    from ingest_project.monitor.system import System

# The daemon writes a heartbeat every 30 seconds.
LONGEST_SILENCE_SECONDS = 90.0
# A tick may take its 60 seconds, and the next one follows after 5.
LONGEST_PAUSE_SECONDS = 120.0
# A look that takes longer hangs: what it is to tell does not answer.
LONGEST_LOOK_SECONDS = 20.0


class Line(msgspec.Struct, frozen=True):
    """One thing that must be there.

    Args:
        ok: whether it is.
        detail: what is known of it, for a person.
    """

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        """As `/readyz` writes it."""
        return f"{'ok  ' if self.ok else 'down'} {self.name}: {self.detail}"


def readiness(system: System, now: datetime) -> tuple[Line, ...]:
    """Broker, warehouse, Dagster's storage, its daemon, the sensors, and room on the disks of this machine."""
    dagster = system.dagster
    return (
        _answers("broker", system.broker, now),
        _answers("warehouse", system.ledger, now),
        _answers("dagster storage", dagster, now),
        daemon_line(dagster.seen, now),
        sensors_line(dagster.seen, now),
        disk_line(system.disk.seen),
    )


def daemon_line(seen: Seen[DagsterSeen], now: datetime) -> Line:
    """Whether the daemon that ticks sensors is alive."""
    name = "daemon"
    found = seen.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as Dagster's storage does not answer")
    beat = found.heartbeats.get(SENSOR_DAEMON)
    if beat is None:
        return Line(name, ok=False, detail="no heartbeat on record; start dagster-daemon")
    silence = max(0.0, (now - beat).total_seconds())
    return Line(name, silence <= LONGEST_SILENCE_SECONDS, f"last heartbeat {silence:.0f} s ago")


def sensors_line(seen: Seen[DagsterSeen], now: datetime) -> Line:
    """Whether every sensor that nobody has stopped ticks."""
    name = "sensors"
    found = seen.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as Dagster's storage does not answer")
    ticking = [sensor for sensor in found.sensors.values() if not sensor.stopped and sensor.ticked_at]
    if not ticking:
        return Line(name, ok=False, detail="none has ticked yet")
    quiet = sorted(_quiet(found, now))
    stopped = sorted(sensor.name for sensor in found.sensors.values() if sensor.stopped)
    parts = [f"{len(ticking) - len(quiet)} of {len(ticking)} tick"]
    parts += [f"silent: {', '.join(quiet)}"] if quiet else []
    parts += [f"stopped by a person: {', '.join(stopped)}"] if stopped else []
    return Line(name, not quiet, "; ".join(parts))


def disk_line(seen: Seen[Disk]) -> Line:
    """Whether there is room for what is written on this machine."""
    disk = seen.present
    if disk is None:
        return Line("disk", ok=False, detail=seen.problem or "was not looked at yet")
    return Line("disk", not disk.is_nearly_full, str(disk))


def _quiet(found: DagsterSeen, now: datetime) -> Iterator[str]:
    for sensor in found.sensors.values():
        if not sensor.stopped and sensor.ticked_at:
            silence = (now - sensor.ticked_at).total_seconds()
            if silence > LONGEST_PAUSE_SECONDS:
                yield f"{sensor.name} for {silence:.0f} s"


def _answers(name: str, part: Part[Any], now: datetime) -> Line:
    seen = part.seen
    age = seen.age_seconds(now)
    if seen.problem:
        return Line(name, ok=False, detail=seen.problem)
    if age is None:
        return Line(name, ok=False, detail="has not answered yet")
    if age > LONGEST_LOOK_SECONDS + part.every_seconds:
        return Line(name, ok=False, detail=f"has not answered for {age:.0f} s")
    return Line(name, ok=True, detail=f"answered in {seen.took_seconds * 1_000:.0f} ms, {age:.0f} s ago")
