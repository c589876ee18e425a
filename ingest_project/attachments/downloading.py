"""One attempt at one attachment: download, verify, store. The kind of error decides whether it is retried.

Between the two halves of an attempt, a message says that the file is in the cache. It stays there until the result is
recorded; the next run downloads again what a killed one left there, to the same path.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.queue import AttachmentRecord, next_attempt_at
from ingest_project.attachments.scheduler import DownloadScheduler
from ingest_project.attachments.storage import OWNER, StoredAttachment, put_attachment, stored_attachment
from ingest_project.contracts.attachments import CachedDownload, DownloadResult, DownloadStatus, DownloadTask
from ingest_project.core.errors import (
    HostThrottledError,
    IngestError,
    PermanentError,
    TransientError,
    UnexpectedError,
    UnreadableMessageError,
)
from ingest_project.core.local_files import LocalFile
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform import tracing
from ingest_project.platform.errors import error_class_of, reason_of
from ingest_project.platform.http.download import Downloaded, DownloadRequest

logger = get_logger(__name__)

# Results are recorded and published in groups: a transaction and an acknowledgement each cost more than a download.
GROUP_SECONDS = 1.0
# Maximum of unrecorded results for each worker, and of bytes in the cache without those of running downloads.
RESULTS_PER_WORKER = 16
MAX_UNSTORED_BYTES = 1024**3
# Fields of a result that are unknown after a failure.
NO_FACTS: dict[str, Any] = dict.fromkeys(
    ("http_status", "error_class", "error", "size_bytes", "sha256", "onelake_path")
)


@dataclass(frozen=True)
class Postponed:
    """An attachment whose host is paused: it was not contacted, which does not count as an attempt.

    Args:
        until: no attempt before this time.
    """

    attachment_key: str
    reason: str
    until: datetime


@dataclass(frozen=True)
class Cached:
    """An attempt whose file is downloaded and verified, and waits to be stored."""

    record: AttachmentRecord
    task: DownloadTask
    downloaded: Downloaded

    @property
    def size_bytes(self) -> int:
        """Return the size of the file on this machine's disk."""
        return self.downloaded.size_bytes

    @property
    def message(self) -> CachedDownload:
        """Return the message that announces the cached file."""
        names = CachedDownload.__struct_fields__
        # The content type that was found replaces the announced one.
        facts = {n: getattr(one, n) for one in (self.task, self.downloaded) for n in names if hasattr(one, n)}
        return CachedDownload(**facts, local_path=str(self.downloaded.path))


End = AttemptResult | Postponed
Scheduler = DownloadScheduler[Callable[[], End]]
Results = SimpleQueue[End | Cached | BaseException]


class RunLostError(PermanentError):
    """Every run that began this attachment was lost."""

    def __init__(self, runs: int) -> None:
        super().__init__(f"{runs} runs were lost while they worked on this. Look at their logs, then replay it.")


class AttachmentRefusedError(PermanentError):
    """An event names something that cannot be an attachment; the message is the reason."""


def attempts(  # noqa: PLR0913 - each is passed by name
    records: Sequence[AttachmentRecord],
    attempt: Callable[[AttachmentRecord], End | Cached],
    concurrency: int,
    *,
    store: Callable[[Cached], End] | None = None,
    announce: Callable[[Sequence[Cached]], None] = lambda _: None,
    per_host: int = 8,
    begin_within: timedelta = timedelta.max,
) -> Generator[list[End], None, None]:
    """Attempt each attachment, several at a time, in fair shares: see `scheduler`.

    Args:
        records: in any order.
        attempt: makes an attempt, or downloads its file; never raises.
        concurrency: at a time.
        store: stores a downloaded file; never raises.
        announce: receives attempts whose files are downloaded and not stored yet.
        per_host: most of one host at a time.
        begin_within: no attempt begins after this time, so that other runs get their turn.

    Yields:
        the results since the last time, about once a second. Attempts that did not begin in time are postponed to now.
    """
    scheduler: Scheduler = DownloadScheduler(
        records,
        max_per_host=per_host,
        max_unfinished=RESULTS_PER_WORKER * concurrency,
        max_unstored_bytes=MAX_UNSTORED_BYTES,
    )
    results: Results = SimpleQueue()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="download")
    try:
        for _ in range(concurrency):
            # The fields of log lines and the spans of the items belong to the context of this thread.
            pool.submit(copy_context().run, _work, scheduler, attempt, results)
        yield from _gathered(scheduler, results, len(records), store, announce, begin_within)
    finally:
        # If the run fails (database unavailable, for example), another run does what has not begun.
        scheduler.close()
        pool.shutdown(cancel_futures=True)


def _work(scheduler: Scheduler, attempt: Callable[[AttachmentRecord], End | Cached], results: Results) -> None:
    while (job := scheduler.next()) is not None:
        try:
            if callable(job):
                result: End | Cached = job()
            else:
                result = attempt(job)
                scheduler.ended(job, result.size_bytes if isinstance(result, Cached) else 0)
        except BaseException as error:  # noqa: BLE001 - raised again where the results are gathered
            results.put(error)
        else:
            results.put(result)


def _gathered(  # noqa: PLR0913, PLR0917 - the parts of `attempts`
    scheduler: Scheduler,
    results: Results,
    outstanding: int,
    store: Callable[[Cached], End] | None,
    announce: Callable[[Sequence[Cached]], None],
    begin_within: timedelta,
) -> Iterator[list[End]]:
    begun = last = time.monotonic()
    ends: list[End] = []
    stored_bytes: dict[str, int] = {}
    while outstanding:
        found = _drained(results, max(0.0, last + GROUP_SECONDS - time.monotonic()))
        halfway = [one for one in found if isinstance(one, Cached)]
        if halfway and store is not None:
            announce(halfway)
            stored_bytes.update({one.record.attachment_key: one.size_bytes for one in halfway})
            scheduler.processed(len(halfway))
            scheduler.put_first([partial(store, one) for one in halfway])
        new = [one for one in found if not isinstance(one, Cached)]
        if time.monotonic() - begun > begin_within.total_seconds():
            new += _not_begun(scheduler)
        outstanding -= len(new)
        ends += new
        if ends and (not outstanding or time.monotonic() - last >= GROUP_SECONDS):
            yield ends
            _acknowledge(scheduler, ends, stored_bytes)
            ends = []
        if time.monotonic() - last >= GROUP_SECONDS:
            last = time.monotonic()


def _acknowledge(scheduler: Scheduler, ends: Sequence[End], stored_bytes: dict[str, int]) -> None:
    """Count results as processed, except attempts that were counted when their files were downloaded."""
    sizes = [stored_bytes.pop(end.attachment_key, None) for end in ends]
    scheduler.processed(sizes.count(None), sum(size or 0 for size in sizes))


def _drained(results: Results, seconds: float) -> list[End | Cached]:
    """Return every present result, after waiting up to this long for a first one."""
    found: list[End | Cached] = []
    with contextlib.suppress(Empty):
        one = results.get(timeout=seconds) if seconds > 0 else results.get_nowait()
        while True:
            if isinstance(one, BaseException):
                raise one
            found.append(one)
            one = results.get_nowait()
    return found


def _not_begun(scheduler: Scheduler) -> list[End]:
    left = scheduler.withdraw()
    scheduler.processed(-len(left))
    now = datetime.now(UTC)
    return [Postponed(record.attachment_key, "Its run ended before its turn.", now) for record in left]


def download_at(record: AttachmentRecord, services: AttachmentResources) -> End | Cached:
    """Download one attachment; return the cached file, or the result of an attempt that failed or was postponed."""
    task = _task_of(record)
    with (
        bound(partition_key=record.attachment_key, trace_id=record.trace_id),
        tracing.step("download", [record.attachment_key]),
    ):
        try:
            if task.refused:
                raise AttachmentRefusedError(task.refused)  # noqa: TRY301 - handled like any other failure
            if record.attempts > services.settings.retries.max_attempts:
                raise RunLostError(record.attempts - 1)  # noqa: TRY301 - as above
            services.destinations.require_own(
                record.destination_path,
                domain=record.domain,
                trace_id=record.trace_id,
                attachment_url=record.attachment_url,
            )
            downloaded = services.downloader.download(_request(task), cache_path(services, record.attachment_key))
        except HostThrottledError as error:
            pause = error.retry_after or timedelta(seconds=services.settings.downloads.pause_seconds)
            return Postponed(record.attachment_key, str(error), datetime.now(UTC) + pause)
        except Exception as error:  # noqa: BLE001 - an error of one attachment must not fail the others
            return _failed(record, task, error, services)
        return Cached(record, task, downloaded)


def store_at(cached: Cached, services: AttachmentResources) -> AttemptResult:
    """Store a cached file, and return the result of its attempt."""
    record, task = cached.record, cached.task
    with (
        bound(partition_key=record.attachment_key, trace_id=record.trace_id),
        tracing.step("upload", [record.attachment_key]),
    ):
        try:
            stored = _store(services, record, task, cached.downloaded)
        except Exception as error:  # noqa: BLE001 - as above
            return _failed(record, task, error, services, cached.downloaded.content_type)
        return _succeeded(record, task, cached.downloaded, stored)


def cache_path(services: AttachmentResources, attachment_key: str) -> Path:
    """Return the path of an attachment's file between download and store."""
    return services.settings.cache_dir / hashlib.sha256(attachment_key.encode()).hexdigest()


def _task_of(record: AttachmentRecord) -> DownloadTask:
    """Return the task of this attempt; if the recorded one is unreadable, a refused task with the reason."""
    try:
        return record.this_task
    except UnreadableMessageError as error:
        return DownloadTask(
            trace_id=record.trace_id,
            domain=record.domain,
            attachment_url=record.attachment_url,
            attempt=record.attempt,
            refused=f"The task on record cannot be read: {error}",
        )


def _request(task: DownloadTask) -> DownloadRequest:
    return DownloadRequest(
        url=task.attachment_url,
        file_name=task.file_name,
        content_type=task.content_type,
        expected_size=task.expected_size,
        checksum=task.checksum,
    )


def _store(
    services: AttachmentResources, record: AttachmentRecord, task: DownloadTask, downloaded: Downloaded
) -> StoredAttachment:
    metadata = {
        OWNER: record.attachment_key,
        "trace_id": record.trace_id,
        "content_type": downloaded.content_type,
        "event_type": task.event_type,
        # The longest, and the database has it.
        "source_url": record.attachment_url,
    }
    file = LocalFile(downloaded.path, downloaded.size_bytes, downloaded.sha256, downloaded.fingerprint)
    return put_attachment(services.attachment_store(record.domain), file, record.destination_path, metadata)


def _succeeded(
    record: AttachmentRecord, task: DownloadTask, downloaded: Downloaded, stored: StoredAttachment
) -> AttemptResult:
    facts = {"size_bytes": stored.size_bytes, "sha256": stored.sha256, "onelake_path": stored.path}
    result = _result(task, DownloadStatus.SUCCESS, http_status=downloaded.http_status, **facts)
    return _outcome(record, task, result, downloaded.content_type)


def _failed(
    record: AttachmentRecord,
    task: DownloadTask,
    error: Exception,
    services: AttachmentResources,
    content_type: str | None = None,
) -> AttemptResult:
    if not isinstance(error, IngestError):
        logger.error("attachment_not_stored", exc_info=error)
        error = UnexpectedError("Storing the attachment", error)
    logger.warning("attachment_failed", reason=str(error), error_class=error.error_class, attempt=task.attempt)
    if _is_still_stored(record, services):
        return _failed_again(record, task, error)
    due_at = None
    if isinstance(error, TransientError):
        delays = services.settings.attachments.retry_delays
        due_at = next_attempt_at(datetime.now(UTC), task.attempt, delays, getattr(error, "retry_after", None))
    status = DownloadStatus.FAILED_TRANSIENT if due_at else DownloadStatus.FAILED_PERMANENT
    outcome = _outcome(record, task, _result(task, status, **_facts_of(error)), content_type)
    return msgspec.structs.replace(outcome, next_attempt_at=due_at)


def _is_still_stored(record: AttachmentRecord, services: AttachmentResources) -> bool:
    """Test whether the bytes of an earlier attempt are still stored; assume so where the store is away."""
    if record.stored_path is None:
        return False
    try:
        found = stored_attachment(services.attachment_store(record.domain), record.destination_path)
    except IngestError:
        return True
    return found is not None and (found.size_bytes, found.sha256) == (record.size_bytes, record.sha256)


def _failed_again(record: AttachmentRecord, task: DownloadTask, error: IngestError) -> AttemptResult:
    """Return the result of a failed attempt at a stored attachment: its bytes stay, and so does its state."""
    stored = {"size_bytes": record.size_bytes, "sha256": record.sha256, "onelake_path": record.stored_path}
    result = _result(task, DownloadStatus.FAILED_TRANSIENT, **_facts_of(error), **stored)
    return _outcome(record, task, result, record.content_type)


def unrecordable(outcome: AttemptResult, error: Exception) -> AttemptResult:
    """Return a failed result in place of one that the work queue refused, with the reason and without its content."""
    facts = NO_FACTS | {"error_class": error_class_of(error), "error": reason_of(error)}
    result = msgspec.structs.replace(outcome.result, status=DownloadStatus.FAILED_PERMANENT, **facts)
    return msgspec.structs.replace(outcome, result=result, content_type=None, next_attempt_at=None)


def _facts_of(error: IngestError) -> dict[str, Any]:
    return {"http_status": getattr(error, "http_status", None), "error_class": error.error_class, "error": str(error)}


def _result(task: DownloadTask, status: DownloadStatus, **facts: Any) -> DownloadResult:  # noqa: ANN401 - fields of it
    return DownloadResult(
        trace_id=task.trace_id,
        attachment_url=task.attachment_url,
        status=status,
        attempt=task.attempt,
        completed_at=datetime.now(UTC),
        **(NO_FACTS | facts),
    )


def _outcome(
    record: AttachmentRecord, task: DownloadTask, result: DownloadResult, content_type: str | None
) -> AttemptResult:
    return AttemptResult(
        attachment_key=record.attachment_key,
        replays=record.replays,
        domain=record.domain,
        event_type=task.event_type,
        result=result,
        content_type=content_type,
    )
