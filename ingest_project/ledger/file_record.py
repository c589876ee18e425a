"""One file's entry in the ledger, as the rest of the project sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ingest_project.ledger.entries import Intake
from ingest_project.ledger.fair_shares import origin_of
from ingest_project.ledger.states import FileState
from ingest_project.messages.file_event import FileEvent

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import RowMapping

    from ingest_project.ledger.files import FileArrival


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one file; `messages.encode` makes JSON of it.

    Args:
        event: the file event it came with.
        attempts: how often a batch asked for it, since it arrived or was reopened.
        next_attempt_at: not asked for before then.
        reason: why it is quarantined, failed or waits again.
        duplicate_of: key of the file whose rows stand for the same content.
        rule_counts: broken rule to number of rows.
    """

    file_key: str
    location: str
    event: FileEvent
    profile: str
    intake: Intake
    state: FileState
    attempts: int
    reason: str | None
    error_class: str | None
    batch_id: str | None
    run_id: str | None
    next_attempt_at: datetime
    sha256: str | None
    landed_bytes: int | None
    duplicate_of: str | None
    rows_read: int | None
    rows_accepted: int | None
    rows_quarantined: int | None
    rule_counts: dict[str, int] | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: RowMapping) -> FileRecord:
        """Of a row of the table `files`."""
        own = {name: row[name] for name in _OWN_COLUMNS}
        event = FileEvent(**{name: row[name] for name in _EVENT_COLUMNS}, event_id=row["event_id"])
        return cls(**own, state=FileState(row["state"]), event=event, intake=Intake.of(row))


_EVENT_COLUMNS = (
    "file_path",
    "file_name",
    "job_id",
    "source_type",
    "file_type",
    "size_bytes",
    "modified_at",
    "etag",
    "discovered_at",
    "trace_id",
    "metadata",
    "source_config",
)
_OWN_COLUMNS = tuple(name for name in FileRecord.__struct_fields__ if name not in {"event", "intake", "state"})


def file_row(arrival: FileArrival, now: datetime) -> dict[str, Any]:
    """The row of a file that has just arrived."""
    event = arrival.event
    return {
        "file_key": arrival.file_key,
        "location": arrival.location,
        **{name: getattr(event, name) for name in _EVENT_COLUMNS},
        "file_type": event.file_type or event.kind,
        "event_id": event.event_id,
        "profile": arrival.profile,
        "origin": origin_of(event, arrival.location),
        **arrival.intake.columns(),
        "state": FileState.PENDING,
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "updated_at": now,
    }
