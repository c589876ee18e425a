"""Polling jobs to file events: list a source, and announce each new file once.

The capability, as definitions, operations and commands see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import sqlalchemy as sa

from ingest_project.platform.actions import Action, ActionRequest, Outcome, Parameter, Selection
from ingest_project.platform.capability import IN_PROGRESS as WORKED_ON
from ingest_project.platform.capability import (
    Amount,
    Capability,
    ConsumedTopic,
    Metric,
    WorkState,
    counted_by_state,
    finished_states,
    queue_history,
)
from ingest_project.platform.http import without_query
from ingest_project.platform.items import ItemView, Moment, QueueView
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.platform.work_queue.selection import entry_filters, equals, reopened_since, select_entries, taken
from ingest_project.polling.discovery import PollingResources
from ingest_project.polling.job_queue import polling_jobs

JOBS = "poller_jobs"
FILES_PUBLISHED = "poller_files_published"
ACTIVE_JOBS = "poller_active_jobs"


def _history(row: sa.RowMapping) -> Iterator[Moment]:
    counts = f"{row['files_found'] or 0} files found, {row['files_published'] or 0} announced"
    return queue_history(f"polling job {row['job_key']}", row, row["reason"] or counts)


QUEUE = QueueView(
    "polling_job",
    polling_jobs,
    JobState,
    polling_jobs.c.job_id,
    lambda search: search.equals(polling_jobs.c.job_id),
    _history,
    expiring_states=("done",),
    partitions="polling_jobs",
    asset="discovered_files",
)
FILTERS = (
    *entry_filters(polling_jobs.c.job_key, "polling job"),
    equals("job_id", polling_jobs.c.job_id, "Id that its sender chose."),
    equals("source_type", polling_jobs.c.source_type, "Kind of source, e.g. sftp."),
    equals("trace_id", polling_jobs.c.trace_id, "Trace of its message."),
)
STATE = Parameter("state", "State that they are in; by default failed.", ("failed", "done"))


def _select(services: PollingResources, request: ActionRequest) -> Selection:
    states = (request.value(STATE.name) or JobState.FAILED.value,)
    return select_entries(services.engine, polling_jobs.c.job_key, FILTERS, request, states)


def _run_again(services: PollingResources, _request: ActionRequest, keys: Sequence[str]) -> Outcome:
    done = services.polling_jobs.reopen(keys, datetime.now(UTC))
    return Outcome(done, in_progress=taken(keys, done))


RERUN = Action(
    name="rerun-polling-jobs",
    title="Run polling jobs again",
    noun="polling job",
    meaning="Lists the sources of failed or finished polling jobs again. Files that were published before are not "
    "published again. A job that a run works on is left to it.",
    parameters=(*(one.parameter for one in FILTERS), STATE),
    select=_select,
    apply=_run_again,
    acted_on=lambda services, record, keys: reopened_since(
        services.engine, polling_jobs.c.job_key, keys, record.started_at
    ),
    kind="polling_job",
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
        Metric(
            JOBS,
            ("status",),
            "Polling jobs that ended: done or failed.",
            tuple((state,) for state in finished_states(JobState)),
            unit="jobs",
        ),
        Metric(FILES_PUBLISHED, ("source_type",), "Files that polling jobs found and published.", unit="files"),
        Metric(ACTIVE_JOBS, (), "Polling jobs that a run works on or was requested for.", kind="gauge", unit="jobs"),
    )
    counted = counted_by_state(
        QUEUE, (polling_jobs.c.state, polling_jobs.c.source_type, polling_jobs.c.files_published), job_amounts
    )

    actions = (RERUN,)

    def topics(self, services: PollingResources) -> tuple[ConsumedTopic, ...]:
        """Return the topic of polling jobs."""
        topics = services.settings.topics
        return (ConsumedTopic(topics.polling_queue, "polling_queue_sensor", dead_letters=topics.polling_queue_dlq),)

    def read_work(self, services: PollingResources, *, detailed: bool) -> WorkState:
        """Count jobs by state, and those that a run works on."""
        state = super().read_work(services, detailed=detailed)
        active = sum(state.queues[0].counts.get(name, 0) for name in WORKED_ON)
        return msgspec.structs.replace(state, gauges={ACTIVE_JOBS: {(): float(active)}})

    def completed(
        self, services: PollingResources, connection: sa.Connection, view: ItemView, row: sa.RowMapping
    ) -> ItemView:
        """Describe a polling job."""
        request, skipped = row["request"], row["skipped"] or {}
        facts = {
            "Job id": row["job_id"],
            "Source type": row["source_type"],
            "Source": without_query(str(request["source_config"].get("path") or "")) or None,
            "File pattern": request.get("file_pattern"),
            "Priority": row["priority"],
            "Files found": row["files_found"],
            "Files announced": row["files_published"],
            "Files left out": ", ".join(f"{number:,} {reason}" for reason, number in skipped.items()) or None,
            **view.facts,
        }
        return replace(view, facts=facts)
