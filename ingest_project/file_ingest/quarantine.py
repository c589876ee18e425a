"""`quarantined_files`: what was refused, whole or by row, with its reasons.

A file that is refused whole keeps its bytes in the quarantine store beside a JSON with the reason; single bad rows are
in `quarantined_rows`. Done again for the same file it replaces what it wrote before.
"""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from ingest_project.file_ingest.catalog import QUARANTINED_FILES, files_partitions
from ingest_project.file_ingest.result import FileResult
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.object_store.content_store import LandingStore
from ingest_project.platform.object_store.quarantine import QuarantineStore

if TYPE_CHECKING:
    pass


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
    """Keep a refused file's bytes and the reason; the outcome then says where the bytes are."""
    note = reason_note(outcome, run_id)
    if outcome.landed is None:
        # It was refused before a byte of it was copied, for its size: only the reason is kept.
        quarantine.put(outcome.record.file_key, io.BytesIO(), note)
        return outcome
    with landing.local_path(outcome.landed.sha256) as path:
        kept = quarantine.put(outcome.record.file_key, path, note)
    return replace(outcome, kept_at=kept.location)


def leave_quarantine(outcome: FileResult, quarantine: QuarantineStore) -> None:
    """Forget an earlier refusal of a file that is accepted now.

    Done before its rows are stored: where that comes to nothing, the file is taken or refused again.
    """
    # Only a file with a reason on record can be there: to ask about each one would cost S3 two requests a file.
    if outcome.state in {FileState.INGESTED, FileState.DUPLICATE} and outcome.record.reason is not None:
        quarantine.remove(outcome.record.file_key)


def reason_note(outcome: FileResult, run_id: str) -> dict[str, Any]:
    """What the JSON beside a refused file says."""
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
