"""Asset checks of attachments. Each looks at what is there now, never at a remembered answer."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.attachments.asset_events import ATTACHMENT_STORED, kept_result
from ingest_project.attachments.catalog import (
    ATTACHMENT_EVENTS,
    ATTACHMENT_RESULTS,
    ONELAKE_ATTACHMENTS,
    attachments_partitions,
)
from ingest_project.attachments.queue import RETRY_QUEUE, AttachmentRecord
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.attachments.tables import AttachmentState
from ingest_project.platform.dagster.asset_events import CheckResult, report_each
from ingest_project.platform.work_queue.queue import JobState

RECENT = timedelta(hours=24)


@dg.asset_check(
    asset=ONELAKE_ATTACHMENTS,
    name=ATTACHMENT_STORED,
    partitions_def=attachments_partitions,
    description="The file is in the store, with the length and the SHA-256 that it was downloaded with.",
)
def attachment_stored(
    context: dg.AssetCheckExecutionContext, services: dg.ResourceParam[AttachmentResources]
) -> dg.AssetCheckResult:
    """Look at the stored file of each selected attachment."""
    records = services.attachments.get_many(list(context.partition_keys))
    results = {record.attachment_key: stored_bytes_match(services, record) for record in records}
    report_each(context, results)
    failed = [result for result in results.values() if not result.passed]
    first = failed[0] if failed else next(iter(results.values()), None)
    return dg.AssetCheckResult(
        passed=not failed,
        description=first.description if first else "The ledger does not know this attachment.",
        metadata=dict(first.metadata) if first and len(results) == 1 else {"failed": len(failed)},
    )


def stored_bytes_match(services: AttachmentResources, record: AttachmentRecord) -> CheckResult:
    """Whether what is stored of one attachment is what was downloaded."""
    if record.state is not AttachmentState.STORED:
        return kept_result(record, passed=False, description=f"Not stored: {record.reason or f'{record.state.value}.'}")
    found = services.attachment_store(record.domain).stat(record.destination_path)
    if found is None:
        return kept_result(record, passed=False, description=f"{record.stored_path} is not there any more.")
    if (found.size_bytes, found.sha256) != (record.size_bytes, record.sha256):
        said = f"{record.stored_path} has {found.size_bytes} bytes, not the {record.size_bytes} that were downloaded"
        return kept_result(record, passed=False, description=f"{said}, or other ones.")
    return kept_result(record, passed=True)


@dg.asset_check(
    asset=ATTACHMENT_EVENTS,
    description="Every task that was made of an event is an attachment that is stored, waiting or dead.",
)
def every_event_accounted(services: dg.ResourceParam[AttachmentResources]) -> dg.AssetCheckResult:
    """Compare what events say with the attachments there are, and those with how attempts ended."""
    states = services.attachments.counts_by_state()
    stored, dead = states[AttachmentState.STORED], states[AttachmentState.FAILED]
    made = services.attachment_events.tasks_made()
    found = services.attachments.found_in_events()
    ended = services.attachments.ends_without_outcome()
    failed = services.attachment_events.counts_by_state()[JobState.FAILED]
    return dg.AssetCheckResult(
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
    description="The Delta table has one row for each attempt that the ledger says is in it.",
)
def stored_results_match(services: dg.ResourceParam[AttachmentResources]) -> dg.AssetCheckResult:
    """Compare the ledger's committed attempts with the table's rows."""
    committed = services.outcomes.totals()["committed"]
    figures = services.attachment_results.figures()
    rows = (figures.rows or 0) if figures else 0
    return dg.AssetCheckResult(passed=rows == committed, metadata={"rows": rows, "attempts_committed": committed})


@dg.asset_check(
    asset=ONELAKE_ATTACHMENTS,
    description="No download whose time has come has been waiting longer than INGEST_MAX_OVERDUE_SECONDS.",
)
def nothing_overdue(services: dg.ResourceParam[AttachmentResources]) -> dg.AssetCheckResult:
    """Look at the retry that has been due longest."""
    limit_seconds = services.settings.attachments.max_overdue_seconds
    oldest = services.attachments.most_overdue(RETRY_QUEUE)
    overdue_seconds = (datetime.now(UTC) - oldest.next_attempt_at).total_seconds() if oldest else 0.0
    metadata: dict[str, float | str] = {"limit_seconds": limit_seconds, "overdue_seconds": max(0.0, overdue_seconds)}
    if oldest:
        metadata["attachment"] = oldest.attachment_key
    return dg.AssetCheckResult(passed=overdue_seconds <= limit_seconds, metadata=metadata)


@dg.asset_check(
    asset=ONELAKE_ATTACHMENTS,
    description="Of the attachments finished in the last day, the share that is dead is below INGEST_MAX_DEAD_SHARE.",
)
def dead_share_acceptable(services: dg.ResourceParam[AttachmentResources]) -> dg.AssetCheckResult:
    """Look at the attachments of the last day."""
    finished = services.attachments.finished_since(datetime.now(UTC) - RECENT)
    dead, total = finished[AttachmentState.FAILED], sum(finished.values())
    share = dead / total if total else 0.0
    limit = services.settings.attachments.max_dead_share
    return dg.AssetCheckResult(
        passed=share <= limit,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"finished": total, "dead": dead, "share": share, "limit": limit},
    )


CHECKS_OF_ALL_ATTACHMENTS = [every_event_accounted, stored_results_match, nothing_overdue, dead_share_acceptable]
CHECKS = [attachment_stored, *CHECKS_OF_ALL_ATTACHMENTS]
