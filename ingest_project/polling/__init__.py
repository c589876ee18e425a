"""Polling jobs to file events: list a source, and announce each new file once.

The capability, as definitions, operations and commands see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from ingest_project.core.settings import Settings
from ingest_project.platform.capability import (
    IN_PROGRESS,
    Amount,
    Capability,
    ConsumedTopic,
    DagsterParts,
    Metric,
    Moment,
    QueueView,
    WorkState,
    counted_by_state,
    finished_states,
    of_trace,
    queue_history,
    rows_where,
)
from ingest_project.platform.database import reading
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.polling.job_queue import PollingResources, polling_jobs

JOBS = "poller_jobs"
FILES_PUBLISHED = "poller_files_published"
ACTIVE_JOBS = "poller_active_jobs"

QUEUE = QueueView(
    "polling_job",
    polling_jobs,
    polling_jobs.c.job_key,
    JobState,
    failed_states=("failed",),
    expiring_states=("done",),
    partitions="polling_jobs",
    asset="discovered_files",
)


def job_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that a finished polling job adds to the counters."""
    yield Amount(JOBS, (row["state"],), 1)
    yield Amount(FILES_PUBLISHED, (row["source_type"],), row["files_published"] or 0)


class Polling(Capability[PollingResources]):
    """Jobs that list a source and publish an event for each new file."""

    name = "polling"
    queues = (QUEUE,)
    metrics = (
        Metric(JOBS, ("status",), "Polling jobs that ended.", tuple((state,) for state in finished_states(JobState))),
        Metric(FILES_PUBLISHED, ("source_type",), "Files that polling jobs found and published."),
    )
    gauges = (Metric(ACTIVE_JOBS, (), "Polling jobs that a run works on or was requested for."),)
    counted = counted_by_state(
        QUEUE, (polling_jobs.c.state, polling_jobs.c.source_type, polling_jobs.c.files_published), job_amounts
    )

    def dagster_parts(self, settings: Settings) -> Mapping[str, DagsterParts]:
        """Import and return what Dagster loads."""
        from ingest_project.platform.dagster.catalog import topic_uri  # noqa: PLC0415 - imports dagster
        from ingest_project.polling import definitions  # noqa: PLC0415 - as above

        announced = {definitions.DISCOVERED_FILES: topic_uri(settings, settings.topics.file_event_queue)}
        return {self.name: DagsterParts(definitions.polling, definitions.external_assets, locations=announced)}

    def topics(self, services: PollingResources) -> tuple[ConsumedTopic, ...]:
        """Return the topic of polling jobs."""
        return (ConsumedTopic(services.settings.topics.polling_queue, "polling_queue_sensor"),)

    def read_work(self, services: PollingResources, *, detailed: bool) -> WorkState:
        """Count jobs by state, and those that a run works on."""
        state = super().read_work(services, detailed=detailed)
        active = sum(state.queues[0].counts.get(name, 0) for name in IN_PROGRESS)
        return msgspec.structs.replace(state, gauges={ACTIVE_JOBS: {(): float(active)}})

    def trace(self, services: PollingResources, trace_id: str) -> Sequence[Moment]:
        """Return the history of the jobs of a trace."""
        with reading(services.engine) as connection:
            rows = rows_where(connection, polling_jobs, of_trace(polling_jobs, trace_id))
        return [moment for row in rows for moment in _history(row)]

    def correct_future_times(self, services: PollingResources, now: datetime, skew_seconds: float) -> int:
        """Set times in the future to now."""
        return services.polling_jobs.correct_future_times(now, skew_seconds)


def _history(row: sa.RowMapping) -> Iterator[Moment]:
    counts = f"{row['files_found'] or 0} files found, {row['files_published'] or 0} announced"
    return queue_history(f"polling job {row['job_key']}", row, row["reason"] or counts)
