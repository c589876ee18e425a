"""Partitions, asset keys, external assets, events and checks of attachments.

A partition is an hour for what arrived and ended in it, or one attachment. Each check inspects the present state, never
a remembered answer.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.queue import RETRY_QUEUE, AttachmentRecord
from ingest_project.attachments.results import results_schema
from ingest_project.attachments.storage import stored_attachment
from ingest_project.attachments.tables import AttachmentState
from ingest_project.contracts.attachments import DownloadStatus
from ingest_project.core.console import moment
from ingest_project.core.errors import SettingsError
from ingest_project.core.items import end_of, hour_key, parse_hour_key
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.asset_events import (
    CheckResult,
    PartitionEvents,
    WholeAssetResult,
    partitions_of_run,
    report_each,
)
from ingest_project.platform.dagster.catalog import (
    KAFKA,
    HourlyDeltaTable,
    StoredTable,
    freshness_within,
    topic,
    topic_key,
)
from ingest_project.platform.http import redacted_url
from ingest_project.platform.work_queue.queue import JobState

ATTACHMENTS_FRESHNESS = freshness_within(48)


ATTACHMENTS = "attachments"
FIRST_HOUR = datetime(2026, 1, 1, tzinfo=UTC)

attachments_partitions = dg.DynamicPartitionsDefinition(name=ATTACHMENTS)
# The current hour is a partition too, so that new arrivals are visible.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)

ATTACHMENT_EVENTS = dg.AssetKey("attachment_events")
ONELAKE_ATTACHMENTS = dg.AssetKey("onelake_attachments")
ATTACHMENT_RESULTS = dg.AssetKey("attachment_results")

# An attachment's key does not say in which hour its event arrived, nor an hour which attachments ended in it. Without a
# mapping of its own, Dagster would look for an hour with the attachment's name, and reject every backfill.
EVENTS_OF_ANY_HOUR = dg.AssetDep(ATTACHMENT_EVENTS, partition_mapping=dg.AllPartitionMapping())
ANY_ATTACHMENT = dg.AssetDep(ONELAKE_ATTACHMENTS, partition_mapping=dg.AllPartitionMapping())


def hour_of_arrival(moment: datetime | None, now: datetime) -> str:
    """Return the hourly partition of a moment; of now, if it is before the first partition or in the future."""
    return hour_key(moment if moment is not None and FIRST_HOUR <= moment <= now else now)


GROUP = "attachments"
STORED: dict[dg.AssetKey, StoredTable] = {
    ATTACHMENT_RESULTS: HourlyDeltaTable(
        "attachment_results", lambda services: services.attachment_results, results_schema, "completed_at", "day"
    )
}
EVENTHOUSE = dg.AssetKey("eventhouse")
EVENT_HUBS = dg.AssetKey("event_hubs")
# Retry topics lead back to the downloads: an acyclic graph cannot show that.
WRITTEN_BY_DOWNLOADS = (
    *("downloads_cached", "downloads_results", "downloads_dlq"),
    *(f"downloads_retry_{minutes}m" for minutes in (5, 10, 20, 40)),
)


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the source of events, and every topic of attachments."""
    source = settings.attachments.event_source
    return [
        *_event_source(settings),
        topic(
            settings,
            "events_raw",
            group=GROUP,
            deps=[EVENTHOUSE] if source == "eventhouse" else [],
            cluster=EVENT_HUBS if source == "eventhub" else KAFKA,
        ).merge_attributes(metadata=_hub_address(settings) if source == "eventhub" else {}),
        topic(settings, "events_raw_dlq", group=GROUP, deps=[topic_key("events_raw")]),
        topic(settings, "downloads_pending", group=GROUP, deps=[ATTACHMENT_EVENTS]),
        *(topic(settings, name, group=GROUP, deps=[ONELAKE_ATTACHMENTS]) for name in WRITTEN_BY_DOWNLOADS),
    ]


def _hub_address(settings: Settings) -> dict[str, str]:
    """Return the address of the event hub that is read instead of the topic, once its settings are complete."""
    try:
        hub = AttachmentResources(settings).event_hub
    except SettingsError:
        return {}
    return {"dagster/uri": f"kafka://{hub.settings.bootstrap_servers}/{hub.topic}"}


def _event_source(settings: Settings) -> list[dg.AssetSpec]:
    if settings.attachments.event_source == "eventhouse":
        eventhouse = settings.eventhouse
        return [
            dg.AssetSpec(
                EVENTHOUSE,
                description="The Eventhouse database that is polled for new events.",
                group_name=GROUP,
                kinds={"kusto"},
                metadata={"dagster/uri": redacted_url(eventhouse.address)} if eventhouse.address else {},
            )
        ]
    if settings.attachments.event_source == "eventhub":
        hub = settings.eventhubs
        return [
            dg.AssetSpec(
                EVENT_HUBS,
                description="The Event Hubs namespace whose Kafka endpoint is read.",
                group_name=GROUP,
                kinds={"eventhubs"},
                metadata={"namespace": hub.namespace or "", "event_hub": hub.topic or ""},
            )
        ]
    return []


ATTACHMENT_STORED = "attachment_stored"
RECENT = timedelta(hours=24)


def attachment_report(outcome: AttemptResult) -> PartitionEvents:
    """Return the events of one attachment after an attempt: stored, or a failed check with the reason."""
    materialized = {}
    if outcome.result.status is DownloadStatus.SUCCESS or outcome.leaves_stored_bytes:
        materialized[ONELAKE_ATTACHMENTS] = stored_metadata(outcome)
    return PartitionEvents(outcome.attachment_key, materialized, [stored_result(outcome)])


def stored_metadata(outcome: AttemptResult) -> dict[str, Any]:
    """Return where an attachment came from and where it is; without the query of its address, which may be a secret."""
    result = outcome.result
    return {
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "content_type": outcome.content_type,
        "stored_at": result.onelake_path,
        "dagster/uri": result.onelake_path,
        "source": redacted_url(result.attachment_url),
        "trace_id": result.trace_id,
        "domain": outcome.domain,
        "attempt": result.attempt,
        "replays": outcome.replays,
        **({"not_downloaded_again": result.error} if outcome.leaves_stored_bytes else {}),
    }


def stored_result(outcome: AttemptResult) -> CheckResult:
    """Judge an attempt: a warning while it is retried or earlier bytes stay stored, an error when it is dead."""
    result = outcome.result
    if result.status is DownloadStatus.SUCCESS:
        return CheckResult(ONELAKE_ATTACHMENTS, ATTACHMENT_STORED, passed=True)
    waits = outcome.next_attempt_at
    harmless = waits is not None or outcome.leaves_stored_bytes
    if outcome.leaves_stored_bytes:
        follows = "The earlier file stays stored."
    else:
        follows = f"Tried again at {moment(waits)}." if waits else "In the dead letters."
    return CheckResult(
        ONELAKE_ATTACHMENTS,
        ATTACHMENT_STORED,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN if harmless else dg.AssetCheckSeverity.ERROR,
        description=f"{result.error} {follows}",
        metadata={
            "attachment": outcome.attachment_key,
            "source": redacted_url(result.attachment_url),
            "error_class": result.error_class or "",
            "http_status": result.http_status or 0,
            "attempt": result.attempt,
            "replays": outcome.replays,
        },
    )


def kept_result(record: AttachmentRecord, *, passed: bool, description: str | None = None) -> CheckResult:
    """Return the result of checking one stored attachment."""
    metadata = {"attachment": record.attachment_key, "state": record.state.value, "reason": record.reason or ""}
    return CheckResult(
        ONELAKE_ATTACHMENTS, ATTACHMENT_STORED, passed=passed, description=description, metadata=metadata
    )


def results_reports(services: AttachmentResources, hours: Sequence[str]) -> list[PartitionEvents]:
    """Return one materialisation of the Delta table for each of these hours."""
    if not hours:
        return []
    table = services.attachment_results.figures()
    shared: dict[str, Any] = {"table": services.attachment_results.url}
    if table is not None:
        shared |= {"table_version": table.table_version, "table_files": table.files, "table_rows": table.rows or 0}
    return [PartitionEvents(hour, {ATTACHMENT_RESULTS: {**_hour(services, hour), **shared}}) for hour in hours]


def _hour(services: AttachmentResources, hour: str) -> dict[str, int]:
    begin = parse_hour_key(hour)
    ended = services.outcomes.ended_between(begin, end_of(begin))
    return {"dagster/row_count": sum(ended.values()), **ended}


@dg.asset_check(
    asset=ONELAKE_ATTACHMENTS,
    name=ATTACHMENT_STORED,
    partitions_def=attachments_partitions,
    description="The file is in the store, with the length and the SHA-256 that it was downloaded with.",
)
def attachment_stored(
    context: dg.AssetCheckExecutionContext, services: dg.ResourceParam[AttachmentResources]
) -> dg.AssetCheckResult:
    """Check the stored file of each selected attachment."""
    reason = "The work queue does not know this attachment."
    unknown = CheckResult(ONELAKE_ATTACHMENTS, ATTACHMENT_STORED, passed=False, description=reason)
    partitions = partitions_of_run(context)
    known = {one.attachment_key: one for one in services.attachments.get_many(partitions)}
    return report_each(
        context, {key: stored_bytes_match(services, known[key]) if key in known else unknown for key in partitions}
    )


def stored_bytes_match(services: AttachmentResources, record: AttachmentRecord) -> CheckResult:
    """Compare the stored file of one attachment with the download."""
    if record.state is not AttachmentState.STORED:
        return kept_result(record, passed=False, description=f"Not stored: {record.reason or f'{record.state.value}.'}")
    found = stored_attachment(services.attachment_store(record.domain), record.destination_path)
    if found is None:
        return kept_result(record, passed=False, description=f"{record.stored_path} is not there any more.")
    if (found.size_bytes, found.sha256) != (record.size_bytes, record.sha256):
        size = f"{record.stored_path} has {found.size_bytes} bytes, not the {record.size_bytes} that were downloaded"
        return kept_result(record, passed=False, description=f"{size}, or other ones.")
    return kept_result(record, passed=True)


@dg.asset_check(
    asset=ATTACHMENT_EVENTS,
    description="Every task that was made of an event is an attachment that is stored, waiting or dead.",
)
def every_event_accounted(services: dg.ResourceParam[AttachmentResources]) -> dg.AssetCheckResult:
    """Compare the tasks of events with the attachments, and the attachments with the results of attempts."""
    states = services.attachments.counts_by_state()
    stored, dead = states[AttachmentState.STORED], states[AttachmentState.FAILED]
    made = services.attachment_events.tasks_made()
    found = services.attachments.found_in_events()
    ended = services.attachments.ends_without_outcome()
    failed = services.attachment_events.counts_by_state()[JobState.FAILED]
    return WholeAssetResult(
        passed=made <= found and ended == 0 and failed == 0,
        metadata={
            "events_failed": failed,
            "tasks": made,
            "attachments_of_events": found,
            "attachments": sum(states.values()),
            "stored": stored,
            "waiting": sum(states.values()) - stored - dead,
            "dead": dead,
            "ends_without_outcome": ended,
        },
    )


@dg.asset_check(
    asset=ATTACHMENT_RESULTS,
    description="The Delta table has one row for each attempt that the work queue says is in it.",
)
def stored_results_match(services: dg.ResourceParam[AttachmentResources]) -> dg.AssetCheckResult:
    """Compare the work queue's committed attempts with the table's rows."""
    committed = services.outcomes.committed()
    figures = services.attachment_results.figures()
    rows = (figures.rows or 0) if figures else 0
    return WholeAssetResult(passed=rows == committed, metadata={"rows": rows, "attempts_committed": committed})


@dg.asset_check(
    asset=ONELAKE_ATTACHMENTS,
    description="No download whose time has come has been waiting longer than INGEST_MAX_OVERDUE_SECONDS.",
)
def nothing_overdue(services: dg.ResourceParam[AttachmentResources]) -> dg.AssetCheckResult:
    """Check the retry that has been due longest."""
    limit_seconds = services.settings.attachments.max_overdue_seconds
    oldest = services.attachments.most_overdue(RETRY_QUEUE)
    overdue_seconds = (datetime.now(UTC) - oldest.next_attempt_at).total_seconds() if oldest else 0.0
    metadata: dict[str, float | str] = {"limit_seconds": limit_seconds, "overdue_seconds": max(0.0, overdue_seconds)}
    if oldest:
        metadata["attachment"] = oldest.attachment_key
    return WholeAssetResult(passed=overdue_seconds <= limit_seconds, metadata=metadata)


@dg.asset_check(
    asset=ONELAKE_ATTACHMENTS,
    description="Of the attachments finished in the last day, the share that is dead is below INGEST_MAX_DEAD_SHARE.",
)
def dead_share_acceptable(services: dg.ResourceParam[AttachmentResources]) -> dg.AssetCheckResult:
    """Check the attachments of the last day."""
    finished = services.attachments.finished_since(datetime.now(UTC) - RECENT)
    dead, total = finished[AttachmentState.FAILED], sum(finished.values())
    share = dead / total if total else 0.0
    limit = services.settings.attachments.max_dead_share
    return WholeAssetResult(
        passed=share <= limit,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"finished": total, "dead": dead, "share": share, "limit": limit},
    )


CHECKS_OF_ALL_ATTACHMENTS = [every_event_accounted, stored_results_match, nothing_overdue, dead_share_acceptable]
CHECKS = [attachment_stored, *CHECKS_OF_ALL_ATTACHMENTS]
