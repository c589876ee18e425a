"""Dagster's daemon, with more frequent sensors, restarted when the clock is set back.

It is Dagster's own daemon and takes its commands, with two shorter intervals: it evaluates due sensors every second
instead of every five, because a sensor reads its topic only inside its tick, and lets idle ones rest (`quiet_sensors`);
and it evaluates backfills every 5 s instead of every 30, because a person waits for them. It also holds the queued runs
of paused capabilities, lets backfills continue after a restart of the code server, and makes them see events that
are committed out of order. Without this module (`dagster dev`, `dagster-daemon run`) everything else works, and each
message is seen up to 4 s later.

If the clock is set back, Dagster's loops sleep until the earlier time is reached again, and Dagster runs no tick of a
sensor or schedule whose recorded times lie in the future. This daemon detects both, also in records of an earlier
process, repairs the records, and restarts in the same process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dagster import AssetKey, DagsterInstance
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, ScheduleInstigatorData
from dagster._core.storage.dagster_run import DagsterRun
from dagster._daemon import controller, sensor
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster._daemon.run_coordinator import queued_run_coordinator_daemon as run_queue
from dagster._utils.tags import TagConcurrencyLimitsCounter

from ingest_project.core.logging import get_logger
from ingest_project.platform.dagster import quiet_sensors
from ingest_project.platform.dagster.quiet_sensors import QuietSensors
from ingest_project.platform.runtime import LARGEST_SKEW_SECONDS

logger = get_logger(__name__)

CHECK_EVERY_SECONDS = 1
BACKFILLS_EVERY_SECONDS = 5
# Maximum number of event ids that other processes draw while one stores a statement (`ROWS_PER_STATEMENT`).
EVENTS_BEING_STORED = 10_000
# Seconds between checks of the records: only they reveal another machine's clock, or a restored database.
REPAIR_EVERY_SECONDS = 30.0
# Ten minutes of one tick per second, and more ticks than any schedule makes in a year.
MAX_TICKS = 1_000
# Asset tag with the name of its capability.
CAPABILITY_TAG = "ingest/capability"
PAUSES_SECONDS = 1.0

Repair = Callable[[], Sequence[str]]


class HeldRuns:
    """Decides which queued runs wait: those of paused capabilities, requested by a sensor, a person or a backfill.

    Dagster's run queue skips runs that a limit of `dagster.yaml` blocks, and launches those behind them. It blocks the
    runs of a paused capability in the same way; nothing in Dagster's records changes.

    Args:
        paused: returns the names of the paused capabilities.
    """

    def __init__(self, paused: Callable[[], Collection[str]]) -> None:
        self._paused = paused
        self._read_at = 0.0
        self._assets: frozenset[AssetKey] = frozenset()
        self._jobs: frozenset[str] = frozenset()

    def holds(self, run: DagsterRun, workspace: Any) -> bool:  # noqa: ANN401 - Dagster's context of its code locations
        """Return True for a run of a job or of assets of a paused capability."""
        if time.monotonic() >= self._read_at:
            self._read(workspace)
            self._read_at = time.monotonic() + PAUSES_SECONDS
        checked = {check.asset_key for check in run.asset_check_selection or ()}
        wanted = checked.union(run.asset_selection or ())
        return run.job_name in self._jobs or not self._assets.isdisjoint(wanted)

    def _read(self, workspace: Any) -> None:  # noqa: ANN401 - see above
        paused = set(self._paused())
        nodes = workspace.create_request_context().asset_graph.asset_nodes if paused else ()
        own = [node for node in nodes if node.tags.get(CAPABILITY_TAG) in paused]
        self._assets = frozenset(node.key for node in own)
        # The job whose name begins with underscores is Dagster's own job of all assets.
        self._jobs = frozenset(name for node in own for name in node.job_names if not name.startswith("__"))


def hold_runs(held: HeldRuns) -> None:
    """Make the run queue of this process hold runs back.

    Dagster checks each queued run with a counter, but does not pass it the workspace, which maps the run's job to its
    capability: each iteration therefore records its workspace when it begins.
    """
    run_iteration, present = run_queue.QueuedRunCoordinatorDaemon.run_iteration, dict[str, Any]()

    def noting_workspace(self: Any, workspace: Any, *more: Any) -> Any:  # noqa: ANN401 - Dagster's own
        present["workspace"] = workspace
        return run_iteration(self, workspace, *more)

    class HoldingCounter(TagConcurrencyLimitsCounter):
        """Blocks the held runs in addition to those that limits block."""

        def is_blocked(self, item: Any) -> bool:  # noqa: ANN401 - a run, or a step where Dagster uses it elsewhere
            return held.holds(item, present["workspace"]) or super().is_blocked(item)

    run_queue.QueuedRunCoordinatorDaemon.run_iteration = noting_workspace  # type: ignore[assignment, method-assign]
    vars(run_queue).update(TagConcurrencyLimitsCounter=HoldingCounter)


def run_daemon(
    program: str,
    arguments: Sequence[str],
    repair: Repair,
    quiet: QuietSensors | None = None,
    held: HeldRuns | None = None,
) -> None:
    """Run one of the daemon's commands.

    Args:
        program: name of the program in messages.
        arguments: the command line.
        repair: sets recorded times in the future to now, and returns the sensors and schedules that waited for them.
        quiet: the sensors that rest while they have nothing to do.
        held: decides which queued runs wait because their capability is paused.
    """
    # Dagster has no setting for this: it checks every 5 s, even for sensors with a shorter interval.
    sensor.MIN_INTERVAL_LOOP_TIME = CHECK_EVERY_SECONDS
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = BACKFILLS_EVERY_SECONDS
    # A restarting code server briefly has no assets, which would fail every backfill in progress for good.
    os.environ.setdefault("DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR", "yes")
    # An event gets its id before it is committed: if a backfill sees one with a higher id first, it would skip the
    # late one and count its partition as failed.
    os.environ.setdefault("ASSET_BACKFILL_CURSOR_OFFSET", str(EVENTS_BEING_STORED))
    if held is not None:
        hold_runs(held)
    if quiet is not None:
        quiet_sensors.install(quiet)
    if arguments[:1] == ["run"] and "--help" not in arguments:
        repair()
        threading.Thread(target=watch_clock, args=(repair, restart), name="clock", daemon=True).start()
    create_dagster_daemon_cli()(args=list(arguments), prog_name=program, obj={})


def watch_clock(repair: Repair, on_set_back: Callable[[], object]) -> None:
    """Repair the records at intervals, and call `on_set_back` when the clock of this machine was set back."""
    offset, repair_at = time.time() - time.monotonic(), time.monotonic() + REPAIR_EVERY_SECONDS
    while True:
        now = time.time() - time.monotonic()
        set_back = offset - now > LARGEST_SKEW_SECONDS
        offset = now
        if set_back or time.monotonic() >= repair_at:
            repaired = repair()
            repair_at = time.monotonic() + REPAIR_EVERY_SECONDS
            if set_back or repaired:
                # The loops of this process may sleep until the earlier time is reached again.
                on_set_back()
        time.sleep(CHECK_EVERY_SECONDS)


def restart() -> None:
    """Restart this program in the same process: its loops lose their state, the records stay."""
    logger.warning("daemon_restarted", reason="the clock was set back")
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - ourselves


def instigators_ahead(instance: DagsterInstance, now: float) -> list[InstigatorState]:
    """Return the sensors and schedules that wait for a time further ahead than clocks normally differ."""
    return [state for state in instance.all_instigator_state() if _waits(instance, state, now)]


def is_ahead(state: InstigatorState, now: float) -> bool:
    """Return True if a sensor or schedule waits for a time further ahead than clocks normally differ."""
    return any(moment > now + LARGEST_SKEW_SECONDS for moment in _times(state).values())


def bring_back(instance: DagsterInstance, seen: InstigatorState, now: float) -> None:
    """Set every time in the future of a sensor or schedule and of its ticks to now."""
    for tick in _ticks_ahead(instance, seen, now, MAX_TICKS):
        instance.update_tick(tick._replace(tick_data=tick.tick_data.with_status(tick.status, timestamp=now)))
    # Read the state again: a tick may have ended and saved its cursor since.
    state = instance.get_instigator_state(seen.instigator_origin_id, seen.selector_id)
    if state is not None and is_ahead(state, now):
        data: Any = state.instigator_data
        times = {field: min(moment, now) for field, moment in _times(state).items()}
        instance.update_instigator_state(state.with_data(data._replace(**times)))


def _times(state: InstigatorState) -> dict[str, float]:
    """Return the recorded times of a sensor or schedule, by their fields."""
    data: Any = state.instigator_data
    fields = data._asdict().items() if data else ()
    return {field: moment for field, moment in fields if field.endswith("_timestamp") and moment}


def _waits(instance: DagsterInstance, state: InstigatorState, now: float) -> bool:
    if is_ahead(state, now):
        return True
    # A schedule continues after its last tick, and records its progress only once an hour.
    return isinstance(state.instigator_data, ScheduleInstigatorData) and bool(_ticks_ahead(instance, state, now, 1))


def _ticks_ahead(instance: DagsterInstance, state: InstigatorState, now: float, limit: int) -> Sequence[InstigatorTick]:
    limit_of_skew = now + LARGEST_SKEW_SECONDS
    return instance.get_ticks(state.instigator_origin_id, state.selector_id, after=limit_of_skew, limit=limit)
