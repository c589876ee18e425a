"""Hold back the queued runs of paused capabilities: those of sensors, of people and of backfills alike.

Dagster's run queue leaves runs waiting that a limit of `dagster.yaml` blocks, and launches those behind them. A run of
a paused capability is one more that is blocked, for as long as the pause lasts; nothing in Dagster's records changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from dagster import AssetKey
from dagster._core.storage.dagster_run import DagsterRun
from dagster._daemon.run_coordinator import queued_run_coordinator_daemon as run_queue
from dagster._utils.tags import TagConcurrencyLimitsCounter

# The tag of an asset that names its capability.
CAPABILITY_TAG = "ingest/capability"
READ_SECONDS = 1.0


class HeldRuns:
    """Decides which queued runs wait.

    Args:
        paused: returns the names of the paused capabilities.
    """

    def __init__(self, paused: Callable[[], Collection[str]]) -> None:
        self._paused = paused
        self._read_at = 0.0
        self._assets: frozenset[AssetKey] = frozenset()
        self._jobs: frozenset[str] = frozenset()

    def holds(self, run: DagsterRun, workspace: Any) -> bool:  # noqa: ANN401 - Dagster's context of its code locations
        """Test whether a run of a job or of assets of a paused capability waits."""
        if time.monotonic() >= self._read_at:
            self._read(workspace)
            self._read_at = time.monotonic() + READ_SECONDS
        checked = {check.asset_key for check in run.asset_check_selection or ()}
        wanted = checked.union(run.asset_selection or ())
        return run.job_name in self._jobs or not self._assets.isdisjoint(wanted)

    def _read(self, workspace: Any) -> None:  # noqa: ANN401 - see above
        paused = set(self._paused())
        nodes = workspace.create_request_context().asset_graph.asset_nodes if paused else ()
        own = [node for node in nodes if node.tags.get(CAPABILITY_TAG) in paused]
        self._assets = frozenset(node.key for node in own)
        # The one that begins with underscores is Dagster's own, of all assets.
        self._jobs = frozenset(name for node in own for name in node.job_names if not name.startswith("__"))


def install(held: HeldRuns) -> None:
    """Have the run queue of this process hold runs back.

    Dagster asks a counter about each queued run, and does not tell it the workspace, which says whose job the run is:
    that of the present iteration is noted when it begins.
    """
    run_iteration, present = run_queue.QueuedRunCoordinatorDaemon.run_iteration, dict[str, Any]()

    def noting_workspace(self: Any, workspace: Any, *more: Any) -> Any:  # noqa: ANN401 - Dagster's own
        present["workspace"] = workspace
        return run_iteration(self, workspace, *more)

    class HoldingCounter(TagConcurrencyLimitsCounter):
        """Blocks the runs that wait, besides those that limits block."""

        def is_blocked(self, item: Any) -> bool:  # noqa: ANN401 - a run, or a step where Dagster uses it elsewhere
            return held.holds(item, present["workspace"]) or super().is_blocked(item)

    run_queue.QueuedRunCoordinatorDaemon.run_iteration = noting_workspace  # type: ignore[assignment, method-assign]
    vars(run_queue).update(TagConcurrencyLimitsCounter=HoldingCounter)
