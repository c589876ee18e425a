"""Whether everything that ingesting needs is there, a line for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from ingest_project.operations.snapshot import SENSOR_DAEMON, DagsterSeen, Poller, Sample, SystemSnapshot
from ingest_project.operations.topics import BrokerSeen
from ingest_project.platform.work_queue.capacity import Disk

# The daemon writes a heartbeat every 30 seconds.
LONGEST_SILENCE_SECONDS = 90.0
# A tick may take its 60 seconds, and the next one follows after 5.
LONGEST_PAUSE_SECONDS = 120.0
# A look that takes longer hangs: what it is to tell does not answer.
LONGEST_LOOK_SECONDS = 20.0
# The clocks of two machines may differ by less than that.
LARGEST_SKEW_SECONDS = 5.0
SET_BACK = "a clock was set back, and the daemon repairs that"


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


def readiness(system: SystemSnapshot, now: datetime) -> tuple[Line, ...]:
    """Broker, warehouse, Dagster's storage, its daemon, sensors, topics, and room on the disks of this machine."""
    dagster = system.dagster
    return (
        _answers("broker", system.broker, now),
        _answers("warehouse", system.ledger, now),
        _answers("dagster storage", dagster, now),
        daemon_line(dagster.seen, now),
        sensors_line(dagster.seen, now),
        topics_line(system.broker.seen, dagster.seen),
        disk_line(system.disk.seen),
    )


def daemon_line(seen: Sample[DagsterSeen], now: datetime) -> Line:
    """Whether the daemon that ticks sensors is alive."""
    name = "daemon"
    found = seen.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as Dagster's storage does not answer")
    beat = found.heartbeats.get(SENSOR_DAEMON)
    if beat is None:
        return Line(name, ok=False, detail="no heartbeat on record; start dagster-daemon")
    silence = (now - beat).total_seconds()
    if silence < -LARGEST_SKEW_SECONDS:
        return Line(name, ok=False, detail=f"its last heartbeat lies {-silence:.0f} s in the future: {SET_BACK}")
    return Line(name, silence <= LONGEST_SILENCE_SECONDS, f"last heartbeat {max(0.0, silence):.0f} s ago")


def sensors_line(seen: Sample[DagsterSeen], now: datetime) -> Line:
    """Whether every sensor that nobody has stopped ticks, and its last tick did not fail."""
    name = "sensors"
    found = seen.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as Dagster's storage does not answer")
    ticking = [sensor for sensor in found.sensors.values() if not sensor.stopped and sensor.ticked_at]
    if not ticking:
        return Line(name, ok=False, detail="none has ticked yet")
    quiet = dict(_quiet(found, now))
    ahead = dict(_ahead(found, now))
    stopped = sorted(sensor.name for sensor in found.sensors.values() if sensor.stopped)
    well = [one for one in ticking if one.name not in quiet.keys() | ahead.keys() | found.failing.keys()]
    parts = [f"{len(well)} of {len(ticking)} tick"]
    parts += [f"{sensor} {ticks}" for sensor, ticks in sorted(found.failing.items())]
    parts += [f"silent: {_told(quiet)}"] if quiet else []
    parts += [f"last tick in the future, {SET_BACK}: {_told(ahead)}"] if ahead else []
    parts += [f"stopped by a person: {', '.join(stopped)}"] if stopped else []
    return Line(name, not (quiet or ahead or found.failing), "; ".join(parts))


def topics_line(broker: Sample[BrokerSeen], dagster: Sample[DagsterSeen]) -> Line:
    """Whether every topic with messages moves, unless a person has stopped its sensor."""
    name = "topics"
    found = broker.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as the broker does not answer")
    sensors = dagster.present.sensors if dagster.present else {}
    stopped = {sensor.name for sensor in sensors.values() if sensor.stopped}
    stalled = [one for one in found.stalled if one.seconds > LONGEST_PAUSE_SECONDS and one.sensor not in stopped]
    if stalled:
        return Line(name, ok=False, detail="; ".join(f"{one}, read by {one.sensor}" for one in stalled))
    waiting = sum(topic.waiting or 0 for topic in found.topics)
    return Line(name, ok=True, detail=f"all of {len(found.topics)} move, {waiting} messages wait")


def disk_line(seen: Sample[Disk]) -> Line:
    """Whether there is room for what is written on this machine."""
    disk = seen.present
    if disk is None:
        return Line("disk", ok=False, detail=seen.problem or "was not looked at yet")
    return Line("disk", not disk.is_nearly_full, str(disk))


def _quiet(found: DagsterSeen, now: datetime) -> Iterator[tuple[str, float]]:
    """Sensors that have not ticked for too long, and for how long."""
    for name, silence in _silences(found, now):
        if silence > LONGEST_PAUSE_SECONDS:
            yield name, silence


def _ahead(found: DagsterSeen, now: datetime) -> Iterator[tuple[str, float]]:
    """Sensors whose last tick lies in the future, and how far."""
    for name, silence in _silences(found, now):
        if silence < -LARGEST_SKEW_SECONDS:
            yield name, -silence


def _silences(found: DagsterSeen, now: datetime) -> Iterator[tuple[str, float]]:
    for sensor in found.sensors.values():
        if not sensor.stopped and sensor.ticked_at:
            yield sensor.name, (now - sensor.ticked_at).total_seconds()


def _told(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} for {one:.0f} s" for name, one in sorted(seconds.items()))


def _answers(name: str, part: Poller[Any], now: datetime) -> Line:
    seen = part.seen
    age = seen.age_seconds(now)
    if seen.problem:
        return Line(name, ok=False, detail=seen.problem)
    if age is None:
        return Line(name, ok=False, detail="has not answered yet")
    if age > LONGEST_LOOK_SECONDS + part.every_seconds:
        return Line(name, ok=False, detail=f"has not answered for {age:.0f} s")
    return Line(name, ok=True, detail=f"answered in {seen.took_seconds * 1_000:.0f} ms, {age:.0f} s ago")
