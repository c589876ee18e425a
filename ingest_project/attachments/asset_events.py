"""What the UI shows of one attachment and of one hour of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.catalog import ATTACHMENT_RESULTS, ONELAKE_ATTACHMENTS
from ingest_project.attachments.queue import AttachmentRecord
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.contracts.download import DownloadStatus
from ingest_project.core.hours import end_of, parse_hour_key
from ingest_project.platform.dagster.asset_events import CheckResult, PartitionEvents
from ingest_project.platform.http.urls import printable_url

ATTACHMENT_STORED = "attachment_stored"


def attachment_report(outcome: AttemptResult) -> PartitionEvents:
    """The events of one attachment after an attempt: stored, or a failed check that says why and what follows."""
    materialized = {}
    if outcome.result.status is DownloadStatus.SUCCESS or outcome.leaves_stored_bytes:
        materialized[ONELAKE_ATTACHMENTS] = stored_metadata(outcome)
    return PartitionEvents(outcome.attachment_key, materialized, [stored_result(outcome)])


def stored_metadata(outcome: AttemptResult) -> dict[str, Any]:
    """Where an attachment came from and where it is; the address without its query, which may be a secret."""
    result = outcome.result
    return {
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "content_type": outcome.content_type,
        "stored_at": result.onelake_path,
        "dagster/uri": result.onelake_path,
        "source": printable_url(result.attachment_url),
        "trace_id": result.trace_id,
        "domain": outcome.domain,
        "attempt": result.attempt,
        "replays": outcome.replays,
        **({"not_downloaded_again": result.error} if outcome.leaves_stored_bytes else {}),
    }


def stored_result(outcome: AttemptResult) -> CheckResult:
    """Judge an attempt: a warning while it is tried again or what was stored stays, an error when it is dead."""
    result = outcome.result
    if result.status is DownloadStatus.SUCCESS:
        return CheckResult(ONELAKE_ATTACHMENTS, ATTACHMENT_STORED, passed=True)
    waits = outcome.next_attempt_at
    harmless = waits is not None or outcome.leaves_stored_bytes
    if outcome.leaves_stored_bytes:
        follows = "What was stored before stays."
    else:
        follows = f"Tried again at {waits:%Y-%m-%d %H:%M:%S} UTC." if waits else "In the dead letters."
    return CheckResult(
        ONELAKE_ATTACHMENTS,
        ATTACHMENT_STORED,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN if harmless else dg.AssetCheckSeverity.ERROR,
        description=f"{result.error} {follows}",
        metadata={
            "attachment": outcome.attachment_key,
            "source": printable_url(result.attachment_url),
            "error_class": result.error_class or "",
            "http_status": result.http_status or 0,
            "attempt": result.attempt,
            "replays": outcome.replays,
        },
    )


def kept_result(record: AttachmentRecord, *, passed: bool, description: str | None = None) -> CheckResult:
    """What a look at one stored attachment found."""
    metadata = {"attachment": record.attachment_key, "state": record.state.value, "reason": record.reason or ""}
    return CheckResult(
        ONELAKE_ATTACHMENTS, ATTACHMENT_STORED, passed=passed, description=description, metadata=metadata
    )


def results_reports(services: AttachmentResources, hours: Sequence[str]) -> list[PartitionEvents]:
    """One materialisation of the Delta table for each of these hours."""
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
    return {
        "dagster/row_count": ended.success + ended.failed_transient + ended.failed_permanent,
        "success": ended.success,
        "failed_transient": ended.failed_transient,
        "failed_permanent": ended.failed_permanent,
    }
