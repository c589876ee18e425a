"""Read a stream's topic again from its first message, with its sensor stopped meanwhile.

Nothing is doubled: a Delta table's rows are replaced offset by offset, and rows that are stored by key keep their
newest version. Whatever the topic still has is stored afterwards, also what was left out when the stream began.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime

from ingest_project.core.errors import PermanentError, SettingsError
from ingest_project.core.settings import Settings
from ingest_project.core.yaml_models import nearest_or_known
from ingest_project.platform.dagster.records import DagsterRecordsUnavailableError
from ingest_project.streams.delta.rebuild import read_again_from_beginning
from ingest_project.streams.positions import StreamPositions
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.user_activity.event_table import NAME

WAIT_SECONDS, LOOK_SECONDS = 300.0, 0.5


def read_from_beginning(services: StreamResources, stream: str) -> dict[int, int]:
    """Store again everything that the topic of a stream still has; the next runs do the remaining work.

    Args:
        services: the resources.
        stream: its name; `activity` and `crm` are the shipped ones.

    Returns:
        number of offsets by partition.

    Raises:
        PermanentError: there is no such stream, or its runs did not end in time.
        TransientError: a service was away; do it again.
    """
    name = NAME if stream == "activity" else stream
    known = {one.positions.stream: one for one in services.streams}
    if name not in known:
        raise PermanentError(f"There is no stream {stream[:100]!r}{nearest_or_known(stream, ['activity', *known])}")
    found = known[name]
    with _sensor_stopped(services.settings, found.sensor, found.positions):
        return read_again_from_beginning(found.delta()) if found.delta else _move_back(services, found.positions)


def _move_back(services: StreamResources, positions: StreamPositions) -> dict[int, int]:
    """Set the positions of a stream whose rows are stored by key to the first messages."""
    backlog = services.range_reader.backlog(positions.topic, positions.saved(), 0)
    if backlog is None:
        return {}
    for partition, one in positions.begin(backlog, datetime.now(UTC)).items():
        start = backlog.log_starts[partition]
        # Remove the counts with the offsets: messages that are stored again are counted again.
        positions.restart(one, start, start, {})
    return {partition: end - backlog.log_starts[partition] for partition, end in sorted(backlog.ends.items())}


@contextmanager
def _sensor_stopped(settings: Settings, sensor: str, positions: StreamPositions) -> Iterator[None]:
    """Keep a sensor stopped inside the block, which begins once its runs have ended; start it again if it was running.

    Without Dagster's records in reach nothing is stopped: then no run may be storing the stream.
    """
    from ingest_project.platform.dagster.control import (  # one second to import
        open_instance,
        running_sensors,
        start_sensors,
        stop_sensors,
        unfinished_runs,
    )

    with ExitStack() as stack:
        try:
            instance = stack.enter_context(open_instance(settings))
        except SettingsError:
            _require_idle(sensor, positions, {one.run_id for one in positions.all() if one.run_id})
            yield
            return
        stopped = running_sensors(instance, [sensor])
        # If this fails, no sensor has ever ticked, so that none is running.
        with suppress(DagsterRecordsUnavailableError):
            stop_sensors(instance, stopped)
        stack.callback(start_sensors, instance, stopped)
        give_up_at = time.monotonic() + WAIT_SECONDS
        while busy := unfinished_runs(instance, {one.run_id for one in positions.all() if one.run_id}):
            if time.monotonic() > give_up_at:
                _require_idle(sensor, positions, busy)
            time.sleep(LOOK_SECONDS)
        yield


def _require_idle(sensor: str, positions: StreamPositions, runs: set[str]) -> None:
    if runs:
        raise PermanentError(
            f"Messages of {positions.topic} are being stored by {', '.join(sorted(runs))}. Turn {sensor} off and wait "
            "for its runs."
        )
