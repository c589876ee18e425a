"""One attempt at one attachment: download, verify, store. What went wrong decides whether there is another attempt.

Between the two halves of an attempt everybody is told that the file lies in the cache. It stays there until its end is
on record; what a killed run left there is brought again by the next one, to the same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.queue import AttachmentRecord, next_attempt_at
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.attachments.storage.store import OWNER, StoredAttachment
from ingest_project.attachments.turns import Turns, host_of
from ingest_project.contracts.download import CachedDownload, DownloadResult, DownloadStatus, DownloadTask
from ingest_project.core.errors import (
    HostThrottledError,
    IngestError,
    PermanentError,
    StoreUnavailableError,
    TransientError,
    UnexpectedError,
    UnreadableMessageError,
)
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.azure.errors import StoreRejectedError
from ingest_project.platform.http.download import Downloaded, DownloadRequest
from ingest_project.platform.work_queue.item_errors import error_class_of, reason_of

logger = get_logger(__name__)

# Ends are entered and told in groups: a transaction and an acknowledgement for each would cost more than a download.
GROUP_SECONDS = 1.0
# Results that may wait to be entered, for each place; and what may lie in the cache beside what is being downloaded.
RESULTS_PER_PLACE = 16
MOST_UNSTORED_BYTES = 1024**3


@dataclass(frozen=True)
class Postponed:
    """An attachment whose host is left alone for a while. It was not contacted, and that is no attempt.

    Args:
        until: not to be tried before.
    """

    attachment_key: str
    reason: str
    until: datetime


@dataclass(frozen=True)
class Cached:
    """An attempt between its halves: the file is downloaded and verified, and waits to be stored."""

    record: AttachmentRecord
    task: DownloadTask
    downloaded: Downloaded

    @property
    def size_bytes(self) -> int:
        """Of the file on this machine's disk."""
        return self.downloaded.size_bytes

    @property
    def identity(self) -> tuple[str, int, int]:
        """What tells this attempt from every other, as of its outcome."""
        return (self.record.attachment_key, self.record.replays, self.task.attempt)

    @property
    def message(self) -> CachedDownload:
        """What everybody is told."""
        shared = {n: getattr(self.task, n) for n in CachedDownload.__struct_fields__ if hasattr(self.task, n)}
        return CachedDownload(
            **shared
            | {
                "local_path": str(self.downloaded.path),
                "size_bytes": self.downloaded.size_bytes,
                "sha256": self.downloaded.sha256,
                "content_type": self.downloaded.content_type,
            }
        )


End = AttemptResult | Postponed


class RunLostError(PermanentError):
    """Every run that took this attachment up was lost."""

    def __init__(self, runs: int) -> None:
        super().__init__(f"{runs} runs were lost while they worked on this. Look at their logs, then replay it.")


class AttachmentRefusedError(PermanentError):
    """What an event names cannot be an attachment; the message is the reason."""


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
    """Make an attempt at each attachment, several at a time, in fair shares: see `turns`.

    Args:
        records: in any order.
        attempt: makes one, or its first half; never raises.
        concurrency: at a time.
        store: the second half of an attempt; never raises.
        announce: is told of attempts between their halves.
        per_host: most of one host at a time.
        begin_within: after this time no attempt begins any more, so that others get their turn.

    Yields:
        how those ended that have ended since the last time, about once a second. Those that were not begun in time
        are postponed to now.
    """
    turns: Turns[Callable[[], End]] = Turns(
        hosts_in_turn(records),
        most_per_host=per_host,
        most_unfinished=RESULTS_PER_PLACE * concurrency,
        most_unstored_bytes=MOST_UNSTORED_BYTES,
    )
    results: SimpleQueue[End | Cached | BaseException] = SimpleQueue()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="download")
    try:
        for _ in range(concurrency):
            pool.submit(_work, turns, attempt, results)
        yield from _gathered(turns, results, len(records), store, announce, begin_within)
    finally:
        # Where the run fails, its database being away perhaps, what has not begun is left to another one.
        turns.close()
        pool.shutdown(cancel_futures=True)


def _work(
    turns: Turns[Callable[[], End]],
    attempt: Callable[[AttachmentRecord], End | Cached],
    results: SimpleQueue[End | Cached | BaseException],
) -> None:
    while (job := turns.next()) is not None:
        try:
            if callable(job):
                result: End | Cached = job()
            else:
                result = attempt(job)
                turns.ended(job, result.size_bytes if isinstance(result, Cached) else 0)
        except BaseException as error:  # noqa: BLE001 - raised again where the results are gathered
            results.put(error)
        else:
            results.put(result)


def _gathered(  # noqa: PLR0913, PLR0917 - the parts of `attempts`
    turns: Turns[Callable[[], End]],
    results: SimpleQueue[End | Cached | BaseException],
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
            turns.processed(len(halfway))
            turns.put_first([partial(store, one) for one in halfway])
        new = [one for one in found if not isinstance(one, Cached)]
        if time.monotonic() - begun > begin_within.total_seconds():
            new += _not_begun(turns)
        outstanding -= len(new)
        ends += new
        if ends and (not outstanding or time.monotonic() - last >= GROUP_SECONDS):
            yield ends
            _see_to(turns, ends, stored_bytes)
            ends = []
        if time.monotonic() - last >= GROUP_SECONDS:
            last = time.monotonic()


def _see_to(turns: Turns[Callable[[], End]], ends: Sequence[End], stored_bytes: dict[str, int]) -> None:
    """Ends were seen to: of attempts that had a second half, the first one was seen to before."""
    sizes = [stored_bytes.pop(end.attachment_key, None) for end in ends]
    turns.processed(sizes.count(None), sum(size or 0 for size in sizes))


def _drained(results: SimpleQueue[End | Cached | BaseException], seconds: float) -> list[End | Cached]:
    """Everything that is there, waiting so long for a first result."""
    found: list[End | Cached] = []
    with contextlib.suppress(Empty):
        one = results.get(timeout=seconds) if seconds > 0 else results.get_nowait()
        while True:
            if isinstance(one, BaseException):
                raise one
            found.append(one)
            one = results.get_nowait()
    return found


def _not_begun(turns: Turns[Callable[[], End]]) -> list[End]:
    left = turns.withdraw()
    turns.processed(-len(left))
    now = datetime.now(UTC)
    return [Postponed(record.attachment_key, "Its run ended before its turn.", now) for record in left]


def hosts_in_turn(records: Sequence[AttachmentRecord]) -> list[AttachmentRecord]:
    """The same records, one of each host after another: a host with many must not keep all places from the others."""
    turns: dict[str, int] = {}
    placed = []
    for place, record in enumerate(records):
        host = host_of(record.attachment_url)
        turns[host] = turns.get(host, 0) + 1
        placed.append((turns[host], place, record))
    return [record for _, _, record in sorted(placed, key=lambda entry: entry[:2])]


def attempt_at(record: AttachmentRecord, services: AttachmentResources) -> End:
    """Download and store one attachment, and say how that ended. Done twice, it leaves the same file."""
    half = download_at(record, services)
    return store_at(half, services) if isinstance(half, Cached) else half


def download_at(record: AttachmentRecord, services: AttachmentResources) -> End | Cached:
    """The first half of an attempt: the file in the cache, or how the attempt ended without it."""
    task = _task_of(record)
    with bound(partition_key=record.attachment_key, trace_id=record.trace_id):
        try:
            if task.refused:
                raise AttachmentRefusedError(task.refused)  # noqa: TRY301 - it ends like any other failure
            _require_runs_left(record, services)
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
        except Exception as error:  # noqa: BLE001 - what one attachment brings to light must not take the others down
            return _failed(record, task, error, services, None)
        return Cached(record, task, downloaded)


def store_at(cached: Cached, services: AttachmentResources) -> AttemptResult:
    """The second half of an attempt."""
    record, task = cached.record, cached.task
    with bound(partition_key=record.attachment_key, trace_id=record.trace_id):
        try:
            stored = _store(services, record, task, cached.downloaded)
        except Exception as error:  # noqa: BLE001 - as above
            return _failed(record, task, error, services, cached.message)
        return _succeeded(record, task, cached.downloaded, stored, cached.message)


def cache_path(services: AttachmentResources, attachment_key: str) -> Path:
    """Where the file of an attachment lies between download and store."""
    return services.settings.cache_dir / hashlib.sha256(attachment_key.encode()).hexdigest()


def _task_of(record: AttachmentRecord) -> DownloadTask:
    """The task of this attempt; one that says why it cannot be served, where what is on record cannot be read."""
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


def _require_runs_left(record: AttachmentRecord, services: AttachmentResources) -> None:
    if record.attempts > services.settings.retries.max_attempts:
        raise RunLostError(record.attempts - 1)


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
    store = services.attachment_store(record.domain)
    metadata = {
        OWNER: record.attachment_key,
        "trace_id": record.trace_id,
        "source_url": record.attachment_url,
        "content_type": downloaded.content_type,
        "event_type": task.event_type,
    }
    try:
        return store.put(
            downloaded.path,
            record.destination_path,
            size_bytes=downloaded.size_bytes,
            sha256=downloaded.sha256,
            metadata=metadata,
            seal=downloaded.seal,
        )
    except StoreRejectedError as error:
        # A permission that is missing is given in minutes; the file's own server may not have it for ever.
        raise StoreUnavailableError(error.address, f"refused ({error.code})") from error


def _succeeded(
    record: AttachmentRecord,
    task: DownloadTask,
    downloaded: Downloaded,
    stored: StoredAttachment,
    cached: CachedDownload,
) -> AttemptResult:
    result = msgspec.structs.replace(
        _result(task, DownloadStatus.SUCCESS),
        http_status=downloaded.http_status,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        onelake_path=stored.path,
    )
    return _outcome(record, task, result, cached)


def _failed(
    record: AttachmentRecord,
    task: DownloadTask,
    error: Exception,
    services: AttachmentResources,
    cached: CachedDownload | None,
) -> AttemptResult:
    if not isinstance(error, IngestError):
        logger.error("attachment_not_stored", exc_info=error)
        error = UnexpectedError("Storing the attachment", error)
    logger.warning("attachment_failed", reason=str(error), error_class=error.error_class, attempt=task.attempt)
    if _is_still_stored(record, services):
        return _kept(record, task, error)
    due_at = None
    if isinstance(error, TransientError):
        delays = services.settings.attachments.retry_delays
        due_at = next_attempt_at(datetime.now(UTC), task.attempt, delays, getattr(error, "retry_after", None))
    status = DownloadStatus.FAILED_TRANSIENT if due_at else DownloadStatus.FAILED_PERMANENT
    result = msgspec.structs.replace(
        _result(task, status),
        http_status=getattr(error, "http_status", None),
        error_class=error.error_class,
        error=str(error),
    )
    return msgspec.structs.replace(_outcome(record, task, result, cached), next_attempt_at=due_at)


def _is_still_stored(record: AttachmentRecord, services: AttachmentResources) -> bool:
    """Tell an attachment that was stored before a person asked for it again; assume it where the store is away."""
    if record.stored_path is None:
        return False
    try:
        found = services.attachment_store(record.domain).stat(record.destination_path)
    except IngestError:
        return True
    return found is not None and (found.size_bytes, found.sha256) == (record.size_bytes, record.sha256)


def _kept(record: AttachmentRecord, task: DownloadTask, error: IngestError) -> AttemptResult:
    """A failed attempt at an attachment whose bytes are stored: they stay, and so does its state."""
    result = msgspec.structs.replace(
        _result(task, DownloadStatus.FAILED_TRANSIENT),
        http_status=getattr(error, "http_status", None),
        error_class=error.error_class,
        error=str(error),
        size_bytes=record.size_bytes,
        sha256=record.sha256,
        onelake_path=record.stored_path,
    )
    return msgspec.structs.replace(_outcome(record, task, result, None), content_type=record.content_type)


def unrecordable(outcome: AttemptResult, error: Exception) -> AttemptResult:
    """The end of an attempt whose own end the ledger did not take: failed, and why; without what it had brought."""
    result = DownloadResult(
        trace_id=outcome.result.trace_id,
        attachment_url=outcome.result.attachment_url,
        status=DownloadStatus.FAILED_PERMANENT,
        http_status=None,
        error_class=error_class_of(error),
        error=reason_of(error),
        size_bytes=None,
        sha256=None,
        onelake_path=None,
        attempt=outcome.result.attempt,
        completed_at=outcome.result.completed_at,
    )
    return msgspec.structs.replace(outcome, result=result, content_type=None, cached=None, next_attempt_at=None)


def _result(task: DownloadTask, status: DownloadStatus) -> DownloadResult:
    return DownloadResult(
        trace_id=task.trace_id,
        attachment_url=task.attachment_url,
        status=status,
        http_status=None,
        error_class=None,
        error=None,
        size_bytes=None,
        sha256=None,
        onelake_path=None,
        attempt=task.attempt,
        completed_at=datetime.now(UTC),
    )


def _outcome(
    record: AttachmentRecord, task: DownloadTask, result: DownloadResult, cached: CachedDownload | None
) -> AttemptResult:
    return AttemptResult(
        attachment_key=record.attachment_key,
        replays=record.replays,
        domain=record.domain,
        event_type=task.event_type,
        result=result,
        content_type=cached.content_type if cached else None,
        cached=cached,
    )
