"""One attachment's entry in the ledger, and how one attempt at it ended, as the rest of the project sees them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import RowMapping

from ingest_project.contracts.attachments import CachedDownload, DownloadResult, DownloadStatus, DownloadTask
from ingest_project.contracts.decoding import decode
from ingest_project.platform.work_queue.states import AttachmentState
from ingest_project.platform.work_queue.types import KafkaPosition

PENDING_LANE = "pending"
RETRY_LANE = "retry"


class TaskArrival(NamedTuple):
    """A download task that has come, out of an event or over Kafka.

    Args:
        attachment_key: partition key, see `messages.download.attachment_key`.
        raw: the task as it came, JSON.
        due_at: not to be tried before; None: at once.
        event_key: the event it was found in; None over Kafka.
        is_repeat: whether somebody else sent it: one that had failed is tried again.
    """

    attachment_key: str
    task: DownloadTask
    raw: str
    intake: KafkaPosition
    due_at: datetime | None = None
    event_key: str | None = None
    is_repeat: bool = False


class AttachmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one attachment; `messages.encode` makes JSON of it.

    Args:
        task: as it came, JSON.
        attempts: how often a run was asked for since the last attempt ended; more than one: runs were lost.
        attempt: which attempt comes next or was the last, the first being 1.
        replays: how often it began again.
        next_attempt_at: not tried before then.
    """

    attachment_key: str
    trace_id: str
    domain: str
    attachment_url: str
    task: str
    destination_path: str
    event_key: str | None
    intake: KafkaPosition
    queue_name: str
    state: AttachmentState
    attempts: int
    attempt: int
    replays: int
    reason: str | None
    error_class: str | None
    batch_id: str | None
    run_id: str | None
    next_attempt_at: datetime
    first_failed_at: datetime | None
    http_status: int | None
    size_bytes: int | None
    sha256: str | None
    content_type: str | None
    stored_path: str | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: RowMapping) -> AttachmentRecord:
        """Of a row of the table `attachments`."""
        own = {name: row[name] for name in cls.__struct_fields__ if name not in {"intake", "state"}}
        return cls(**own, state=AttachmentState(row["state"]), intake=KafkaPosition.of(row))

    @property
    def this_task(self) -> DownloadTask:
        """The task of the attempt that comes next or was the last."""
        return self.task_of(self.attempt)

    def task_of(self, attempt: int) -> DownloadTask:
        """The task of one of the attempts, the first being 1.

        Raises:
            UnreadableMessageError: what is on record is no task.
        """
        task = decode(self.task.encode(), DownloadTask)
        return msgspec.structs.replace(task, destination_path=self.destination_path, attempt=attempt)


class AttemptResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt at one attachment ended.

    Args:
        next_attempt_at: when it is tried again; None: this was the last attempt.
        content_type: of what was downloaded.
        cached: the download, where it went that far.
    """

    attachment_key: str
    replays: int
    domain: str
    event_type: str
    result: DownloadResult
    content_type: str | None = None
    cached: CachedDownload | None = None
    next_attempt_at: datetime | None = None

    @property
    def identity(self) -> tuple[str, int, int]:
        """What tells this attempt from every other."""
        return (self.attachment_key, self.replays, self.result.attempt)

    @property
    def leaves_stored_bytes(self) -> bool:
        """Whether the attempt failed and what an earlier one had stored stays."""
        return self.result.status is not DownloadStatus.SUCCESS and self.result.onelake_path is not None


def task_row(arrival: TaskArrival, now: datetime) -> dict[str, Any]:
    """The row of an attachment that has just arrived."""
    task = arrival.task
    return {
        "attachment_key": arrival.attachment_key,
        "trace_id": task.trace_id,
        "domain": task.domain,
        "attachment_url": task.attachment_url,
        "task": arrival.raw,
        "destination_path": task.destination_path,
        "event_key": arrival.event_key,
        **arrival.intake.columns(),
        "queue_name": PENDING_LANE if task.attempt == 1 else RETRY_LANE,
        "state": AttachmentState.PENDING,
        "attempts": 0,
        "attempt": task.attempt,
        "replays": 0,
        "batch_id": None,
        "run_id": None,
        "next_attempt_at": arrival.due_at or now,
        "created_at": now,
        "updated_at": now,
        "started_at": None,
    }
