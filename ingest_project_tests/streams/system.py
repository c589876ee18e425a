"""A stream that is read in offset ranges, driven as the daemon would drive it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import dagster as dg
from dagster import ExecuteInProcessResult

from ingest_project.streams.range_record import RangeState
from ingest_project_tests.journeys.system import System


class StreamSystem(System, ABC):
    """Sensors, runs and stores of one test."""

    @property
    @abstractmethod
    def topic(self) -> str:
        """The topic of the messages."""

    def execute(self, job_name: str, request: dg.RunRequest) -> ExecuteInProcessResult:
        """Do one run that a sensor asked for, in this process."""
        return self.run(job_name, dict(request.run_config), dict(request.tags))

    def run(
        self, job_name: str, run_config: dict[str, Any] | None = None, tags: dict[str, str] | None = None
    ) -> ExecuteInProcessResult:
        """Do a run as a person starts one."""
        job = self.definitions.resolve_job_def(job_name)
        return job.execute_in_process(
            instance=self.instance, run_config=run_config or {}, tags=tags or {}, raise_on_error=False
        )

    @property
    def is_idle(self) -> bool:
        """Whether no range waits for anything."""
        counts = self.services.stream_ranges.counts_by_state(self.topic)
        return not any(counts[state] for state in (RangeState.PENDING, RangeState.REQUESTED, RangeState.RUNNING))
