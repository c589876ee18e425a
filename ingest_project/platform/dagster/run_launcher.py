"""Launch runs as processes of the code server, and detect which of them are gone.

Dagster's own launcher of this kind has no health check: a run whose code server was killed with it (a power cut, a
container that was replaced) would count as started for ever, and its files as leased. This launcher queries the server.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import ConfigurableClassData, deserialize_value

# A code server that is being replaced is away for some seconds; if it stays away, its runs are gone.
PATIENCE_SECONDS = 60.0


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, whose runs the daemon's run monitoring can check.

    Monitoring fails a run whose process is gone; the work queue then requeues its files. Should the process be alive
    after all (only its code server was killed), both runs store the same state.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._away_since: dict[str, float] = {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> WatchedRunLauncher:
        """Create the launcher, without configuration as the default one."""
        del config_value
        return cls(inst_data)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Return true: the code server knows its processes."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Query the code server that started a run for its process."""
        client: DagsterGrpcClient | None = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "No code server is on record for it.")
        try:
            current = deserialize_value(client.get_current_runs(), GetCurrentRunsResult).current_runs
        except DagsterUserCodeUnreachableError:
            return self._while_away(run.run_id)
        self._away_since.pop(run.run_id, None)
        if run.run_id in current:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "Its process ended without reporting a result.")

    def _while_away(self, run_id: str) -> CheckRunHealthResult:
        now = time.monotonic()
        if now - self._away_since.setdefault(run_id, now) < PATIENCE_SECONDS:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "Its code server does not answer at the moment.")
        del self._away_since[run_id]
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "Its code server is gone.")
