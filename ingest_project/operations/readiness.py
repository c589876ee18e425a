"""Readiness: one line for each service, sensor and disk that ingestion needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

import msgspec

from ingest_project.operations.snapshot import SENSOR_DAEMON, DagsterState, Sample, SystemSnapshot, Value
from ingest_project.operations.topics import BrokerState
from ingest_project.platform.work_queue.capacity import Disk

# The daemon writes a heartbeat every 30 seconds.
LONGEST_SILENCE_SECONDS = 90.0
# A tick may take its 60 seconds, and the next one follows after 5.
LONGEST_PAUSE_SECONDS = 120.0
# A poll that takes longer hangs: its part does not answer.
LONGEST_POLL_SECONDS = 20.0
# The clocks of two machines may differ by less than that.
LARGEST_SKEW_SECONDS = 5.0
SET_BACK = "a clock was set back, and the daemon repairs that"


class Line(msgspec.Struct, frozen=True):
    """One thing that ingestion needs.

    Args:
        ok: it is there and works.
        detail: for a person.
    """

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        """Return the line as `/readyz` writes it."""
        return f"{'ok  ' if self.ok else 'down'} {self.name}: {self.detail}"


def readiness(snapshot: SystemSnapshot) -> tuple[Line, ...]:
    """Check broker, warehouse, Dagster's storage, its daemon, sensors, topics and free disk space of this machine."""
    dagster, now, every_seconds = snapshot.dagster, snapshot.at, snapshot.settings.monitor.refresh_seconds
    return (
        _answers("broker", snapshot.broker, now, every_seconds),
        _answers("warehouse", snapshot.warehouse, now, every_seconds),
        _answers("dagster storage", dagster, now, every_seconds),
        daemon_line(dagster, now),
        sensors_line(dagster, now),
        topics_line(snapshot.broker, dagster),
        disk_line(snapshot.disk),
    )


def daemon_line(sample: Sample[DagsterState], now: datetime) -> Line:
    """Check that the daemon that ticks sensors is alive."""
    name = "daemon"
    found = sample.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as Dagster's storage does not answer")
    beat = found.heartbeats.get(SENSOR_DAEMON)
    if beat is None:
        return Line(name, ok=False, detail="no heartbeat on record; start dagster-daemon")
    silence = (now - beat).total_seconds()
    if silence < -LARGEST_SKEW_SECONDS:
        return Line(name, ok=False, detail=f"its last heartbeat lies {-silence:.0f} s in the future: {SET_BACK}")
    return Line(name, silence <= LONGEST_SILENCE_SECONDS, f"last heartbeat {max(0.0, silence):.0f} s ago")


def sensors_line(sample: Sample[DagsterState], now: datetime) -> Line:
    """Check that every sensor that no person has stopped ticks, and that its last tick did not fail."""
    name = "sensors"
    found = sample.present
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
    parts += [f"silent: {_listed(quiet)}"] if quiet else []
    parts += [f"last tick in the future, {SET_BACK}: {_listed(ahead)}"] if ahead else []
    parts += [f"stopped by a person: {', '.join(stopped)}"] if stopped else []
    return Line(name, not (quiet or ahead or found.failing), "; ".join(parts))


def topics_line(broker: Sample[BrokerState], dagster: Sample[DagsterState]) -> Line:
    """Check that no topic with messages is stalled, unless a person has stopped its sensor."""
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


def disk_line(sample: Sample[Disk]) -> Line:
    """Check that the disks of this machine have free space."""
    disk = sample.present
    if disk is None:
        return Line("disk", ok=False, detail=sample.problem or "was not looked at yet")
    return Line("disk", not disk.is_nearly_full, str(disk))


def _quiet(found: DagsterState, now: datetime) -> Iterator[tuple[str, float]]:
    """Yield the sensors that have not ticked for too long, and for how many seconds."""
    for name, silence in _silences(found, now):
        if silence > LONGEST_PAUSE_SECONDS:
            yield name, silence


def _ahead(found: DagsterState, now: datetime) -> Iterator[tuple[str, float]]:
    """Yield the sensors whose last tick lies in the future, and by how many seconds."""
    for name, silence in _silences(found, now):
        if silence < -LARGEST_SKEW_SECONDS:
            yield name, -silence


def _silences(found: DagsterState, now: datetime) -> Iterator[tuple[str, float]]:
    for sensor in found.sensors.values():
        if not sensor.stopped and sensor.ticked_at:
            yield sensor.name, (now - sensor.ticked_at).total_seconds()


def _listed(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} for {one:.0f} s" for name, one in sorted(seconds.items()))


def _answers(name: str, sample: Sample[Value], now: datetime, every_seconds: float) -> Line:
    age = sample.age_seconds(now)
    if sample.problem:
        return Line(name, ok=False, detail=sample.problem)
    if age is None:
        return Line(name, ok=False, detail="has not answered yet")
    if age > LONGEST_POLL_SECONDS + every_seconds:
        return Line(name, ok=False, detail=f"has not answered for {age:.0f} s")
    return Line(name, ok=True, detail=f"answered in {sample.took_seconds * 1_000:.0f} ms, {age:.0f} s ago")
