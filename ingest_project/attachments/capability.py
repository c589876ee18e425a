"""Attachments, as definitions, operations and commands see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.queue import RETRY_QUEUE, Pending, pending_at
from ingest_project.attachments.tables import (
    AttachmentState,
    attachment_events,
    attachment_replays,
    attachments,
    download_outcomes,
)
from ingest_project.core.settings import Settings
from ingest_project.platform.capability import (
    Amount,
    Capability,
    Cluster,
    ConsumedTopic,
    CountedTable,
    DagsterParts,
    Metric,
    Moment,
    PurgeStep,
    QueueView,
    RetryTier,
    WorkState,
    counted_by_state,
    finished_states,
    latency,
    latency_columns,
    queue_history,
    rows_where,
)
from ingest_project.platform.database import reading, writing
from ingest_project.platform.work_queue.queue import JobState

if TYPE_CHECKING:
    from ingest_project.platform.delta.table import DeltaStore

ATTACHMENT_EVENTS = "ingest_attachment_events"
ATTACHMENTS = "ingest_attachments"
DOWNLOADS = "ingest_downloads"
DOWNLOAD_FAILURES = "ingest_download_failures"
UPLOADED_BYTES = "ingest_uploaded_bytes"

EVENT_QUEUE = QueueView(
    "attachment_event", attachment_events, attachment_events.c.event_key, JobState, failed_states=("failed",)
)
ATTACHMENT_QUEUE = QueueView(
    "attachment",
    attachments,
    attachments.c.attachment_key,
    AttachmentState,
    failed_states=("failed",),
    expiring_states=("stored",),
    partitions="attachments",
    asset="onelake_attachments",
)


def event_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that a finished attachment event adds to the counters."""
    yield Amount(ATTACHMENT_EVENTS, (row["state"],), 1)


def attachment_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that a finished attachment adds to the counters."""
    yield Amount(ATTACHMENTS, (row["state"],), 1)
    if row["state"] == AttachmentState.STORED:
        yield from latency("attachments", row)


def download_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that one download attempt adds to the counters."""
    result: Mapping[str, Any] = row["result"]
    status = str(result.get("status"))
    yield Amount(DOWNLOADS, (status, str(row["attempt"])), 1)
    if status == "success":
        yield Amount(UPLOADED_BYTES, (row["domain"],), result.get("size_bytes") or 0)
    else:
        yield Amount(DOWNLOAD_FAILURES, (result.get("error_class") or "unknown",), 1)


class Attachments(Capability[AttachmentResources]):
    """Events with addresses to downloaded files and their results."""

    name = "attachments"
    queues = (EVENT_QUEUE, ATTACHMENT_QUEUE)
    metrics = (
        Metric(
            ATTACHMENT_EVENTS,
            ("outcome",),
            "Events that ended: their addresses were extracted, or they failed.",
            tuple((state,) for state in finished_states(EVENT_QUEUE.states)),
            unit="events",
        ),
        Metric(
            ATTACHMENTS,
            ("outcome",),
            "Attachments that ended: stored or failed.",
            tuple((state,) for state in finished_states(AttachmentState)),
            unit="attachments",
        ),
        Metric(
            DOWNLOADS,
            ("status", "attempt"),
            "Download attempts by end (success, failed_transient, failed_permanent) and number of the attempt.",
            unit="attempts",
        ),
        Metric(DOWNLOAD_FAILURES, ("reason",), "Download attempts that failed, by class of error.", unit="attempts"),
        Metric(UPLOADED_BYTES, ("domain",), "Bytes of attachments stored.", unit="bytes"),
    )
    counted = (
        *counted_by_state(EVENT_QUEUE, (attachment_events.c.state,), event_amounts),
        *counted_by_state(ATTACHMENT_QUEUE, (attachments.c.state, *latency_columns(attachments)), attachment_amounts),
        CountedTable(
            download_outcomes.name,
            download_outcomes,
            None,
            download_outcomes.c.completed_at,
            (download_outcomes.c.attempt, download_outcomes.c.domain, download_outcomes.c.result),
            download_amounts,
        ),
    )

    def dagster_parts(self, settings: Settings) -> Mapping[str, DagsterParts]:
        """Import and return what Dagster loads."""
        del settings
        from ingest_project.attachments import catalog, definitions  # noqa: PLC0415 - imports dagster

        return {self.name: DagsterParts(definitions.attachments, catalog.external_assets, catalog.STORED)}

    def topics(self, services: AttachmentResources) -> tuple[ConsumedTopic, ...]:
        """Return the topics of events and of download tasks."""
        settings = services.settings
        events = ConsumedTopic(settings.topics.events_raw, "attachment_events_sensor")
        if settings.attachments.event_source == "eventhub":
            hub = settings.eventhubs.topic or "Event Hubs"
            events = events._replace(topic=hub, cluster=lambda: _event_hub(services))
        return (
            events,
            ConsumedTopic(settings.topics.downloads_pending, "downloads_pending_sensor"),
            *(ConsumedTopic(topic, "downloads_retry_sensor") for topic in settings.topics.downloads_retry),
        )

    def read_work(self, services: AttachmentResources, *, detailed: bool) -> WorkState:
        """Count events and attachments; an attachment that waits for a later attempt is no work until it is due."""
        now = datetime.now(UTC)
        events, downloads = super().read_work(services, detailed=detailed).queues
        pending = pending_at(services.engine, now)
        due = sum(one.due for one in pending)
        later = [one for one in pending if one.waiting > one.due]
        # Read at two moments: what was pending at the second one counts.
        counts = {**downloads.counts, "pending": sum(one.waiting for one in pending)}
        return WorkState(
            queues=(events, msgspec.structs.replace(downloads, counts=counts, due=due)),
            retry_tiers=retry_tiers(pending, services.settings.topics.downloads_retry),
            later=counts["pending"] - due,
            next_due_at=min((one.next_due_at for one in later), default=None),
            facts={"Not yet in Delta": services.outcomes.uncommitted()} if detailed else {},
        )

    def delta_tables(self, services: AttachmentResources) -> Mapping[str, Callable[[], DeltaStore]]:
        """Return the table of download results."""
        return {"attachment_results": lambda: services.attachment_results}

    def purge_steps(self, services: AttachmentResources, now: datetime) -> Sequence[PurgeStep]:
        """Find the bodies of events that ended before the retention period; their counts stay."""
        columns, cutoff = attachment_events.c, now - timedelta(days=services.settings.retention.event_days)
        old = sa.and_(columns.state == JobState.DONE, columns.finished_at < cutoff, columns.body != "")
        with reading(services.engine) as connection:
            number = int(connection.execute(sa.select(sa.func.count()).where(old)).scalar_one())

        def remove() -> None:
            with writing(services.engine) as connection:
                connection.execute(sa.update(attachment_events).where(old).values(body=""))

        return [PurgeStep("bodies of attachment events", number, [], remove)]

    def trace(self, services: AttachmentResources, trace_id: str) -> Sequence[Moment]:
        """Return the history of the events and attachments of a trace, with attempts and replays."""
        with reading(services.engine) as connection:
            events = rows_where(connection, attachment_events, attachment_events.c.trace_id == trace_id)
            found = rows_where(connection, attachments, attachments.c.trace_id == trace_id)
            keys = [row["attachment_key"] for row in found]
            attempts = rows_where(connection, download_outcomes, download_outcomes.c.attachment_key.in_(keys))
            replays = rows_where(connection, attachment_replays, attachment_replays.c.attachment_key.in_(keys))
        return [
            *(moment for row in events for moment in _event_history(row)),
            *(moment for row in found for moment in _attachment_history(row)),
            *map(_attempt, attempts),
            *(Moment(row["asked_at"], _subject(row), "replayed", f"by {row['asked_by']}") for row in replays),
        ]

    def correct_future_times(self, services: AttachmentResources, now: datetime, skew_seconds: float) -> int:
        """Set times in the future to now."""
        queues = (services.attachment_events, services.attachments)
        return sum(queue.correct_future_times(now, skew_seconds) for queue in queues)


def retry_tiers(pending: Sequence[Pending], topics: Sequence[str]) -> tuple[RetryTier, ...]:
    """Return the retry topics with what waits in each.

    Args:
        pending: attachments by queue and attempt.
        topics: the one after the first failed attempt first.
    """
    last = len(topics) - 1
    waiting: list[list[Pending]] = [[] for _ in topics]
    for one in pending:
        if one.queue_name == RETRY_QUEUE:
            # Attempt 2 comes after the first topic; what has more attempts than there are topics waits in the last one.
            waiting[min(max(one.attempt - 2, 0), last)].append(one)
    return tuple(
        RetryTier(
            topic,
            attempt,
            waiting=sum(one.waiting for one in tier),
            due=sum(one.due for one in tier),
            next_due_at=min((one.next_due_at for one in tier), default=None),
        )
        for attempt, (topic, tier) in enumerate(zip(topics, waiting, strict=True), start=2)
    )


def _event_hub(services: AttachmentResources) -> Cluster:
    return Cluster(services.event_hub.topic, services.event_hub_reader, services.event_hub.settings)


def _event_history(row: sa.RowMapping) -> Iterator[Moment]:
    found = f"{row['addresses'] or 0} addresses, {row['duplicates'] or 0} of them known"
    return queue_history(f"event {row['domain']} {row['event_type']}".strip(), row, row["reason"] or found)


def _attachment_history(row: sa.RowMapping) -> Iterator[Moment]:
    return queue_history(_subject(row), row, row["reason"] or row["stored_path"] or "")


def _attempt(row: sa.RowMapping) -> Moment:
    result: Mapping[str, Any] = row["result"]
    detail = result.get("error") or f"{result.get('size_bytes')} bytes"
    return Moment(row["completed_at"], _subject(row), f"attempt {row['attempt']}: {result['status']}", detail)


def _subject(row: sa.RowMapping) -> str:
    return f"attachment {row['attachment_key']}"
