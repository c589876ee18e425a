"""Resources of polling: the queue of jobs, and the sources."""

from __future__ import annotations

from functools import cached_property

from ingest_project.polling.job_queue import JobQueue
from ingest_project.sources.resources import SourceResources


class PollingResources(SourceResources):
    """The queue of polling jobs, and the sources."""

    @cached_property
    def polling_jobs(self) -> JobQueue:
        """The queue of polling jobs."""
        return JobQueue(self.engine)
