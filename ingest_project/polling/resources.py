"""What polling uses."""

from __future__ import annotations

from functools import cached_property

from ingest_project.polling.job_queue import JobLedger
from ingest_project.sources.registry import SourceResources


class PollingResources(SourceResources):
    """The queue of polling jobs, and the sources."""

    @cached_property
    def polling_jobs(self) -> JobLedger:
        """What is known of every polling job."""
        return JobLedger(self.engine)
