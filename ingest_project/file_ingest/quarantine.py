"""`quarantined_files`: rejected files and rows, with their reasons.

The quarantine store keeps the bytes of a file that is rejected whole, next to a JSON with the reason; single bad rows
are in `quarantined_rows`. Idempotent: a second write for the same file replaces the first.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from ingest_project.file_ingest.catalog import QUARANTINED_FILES, files_partitions
from ingest_project.file_ingest.result import FileResult
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.local_files import FileFingerprint, LocalFile
from ingest_project.platform.object_store.content_store import LandingStore, QuarantineStore

quarantined_files = dg.AssetSpec(
    QUARANTINED_FILES,
    deps=["raw_files"],
    description="What was refused of the file, whole or by row, with reasons; 0 rows where nothing was.",
    group_name="file_ingest",
    kinds={"file", "table"},
    partitions_def=files_partitions,
    skippable=True,
)


def quarantine_file(outcome: FileResult, landing: LandingStore, quarantine: QuarantineStore, run_id: str) -> FileResult:
    """Keep a rejected file's bytes and the reason; returns the result with the location of the bytes."""
    note = reason_note(outcome, run_id)
    if outcome.landed is None:
        # It was rejected for its size, before a byte of it was copied: only the reason is kept.
        quarantine.put(outcome.record.file_key, b"", note)
        return outcome
    with landing.local_path(outcome.landed.sha256) as path:
        # The landed bytes are verified: a store on the same disk links them unread.
        file = LocalFile(path, outcome.landed.size_bytes, outcome.landed.sha256, FileFingerprint.of(path.stat()))
        kept = quarantine.put(outcome.record.file_key, file, note)
    return replace(outcome, kept_at=kept.location)


def leave_quarantine(outcome: FileResult, quarantine: QuarantineStore) -> None:
    """Remove an accepted file from quarantine.

    Done before its rows are stored: if that fails, the file is accepted or rejected again.
    """
    # Only a file with a recorded reason can be there: to look for each one would cost S3 two requests a file.
    if outcome.state in {FileState.INGESTED, FileState.DUPLICATE} and outcome.record.reason is not None:
        quarantine.remove(outcome.record.file_key)


def reason_note(outcome: FileResult, run_id: str) -> dict[str, Any]:
    """Return the content of the JSON next to a rejected file."""
    record = outcome.record
    return {
        "file_key": record.file_key,
        "reason": outcome.reason,
        "rules": dict(outcome.rule_counts),
        "source": record.location,
        "sha256": outcome.landed.sha256 if outcome.landed else None,
        "size_bytes": outcome.landed.size_bytes if outcome.landed else None,
        "profile": outcome.profile or record.profile,
        "rows_read": outcome.rows_read,
        "rows_bad": outcome.rows_quarantined,
        "sample": [dict(row) for row in outcome.sample],
        "kafka": str(record.intake),
        "trace_id": record.event.trace_id,
        "job_id": record.event.job_id,
        "run_id": run_id,
        "quarantined_at": datetime.now(UTC).isoformat(),
    }
