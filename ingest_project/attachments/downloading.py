"""One attempt at one attachment: download, verify, store. What went wrong decides whether there is another attempt."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from ingest_project.attachments.retries import next_attempt_at
from ingest_project.errors import (
    HostBusy,
    IngestError,
    PermanentError,
    StoreUnavailable,
    TransientError,
    UnforeseenFailure,
)
from ingest_project.ledger.attachment_record import Outcome
from ingest_project.logs import bound, get_logger
from ingest_project.messages.download import CachedDownload, DownloadResult, DownloadStatus
from ingest_project.onelake.failures import StoreRefused
from ingest_project.stores.attachment_names import OWNER
from ingest_project.web.download import DownloadRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ingest_project.ledger.attachment_record import AttachmentRecord
    from ingest_project.messages.download import DownloadTask
    from ingest_project.resources import Services
    from ingest_project.stores.attachments import StoredAttachment
    from ingest_project.web.download import Downloaded

logger = get_logger(__name__)

# Ends are entered and told in groups: a transaction and an acknowledgement for each would cost more than a download.
GROUP_SECONDS = 1.0


@dataclass(frozen=True)
class Postponed:
    """An attachment whose host is left alone for a while. It was not contacted, and that is no attempt.

    Args:
        until: not to be tried before.
    """

    attachment_key: str
    reason: str
    until: datetime


End = Outcome | Postponed


class RunLost(PermanentError):  # noqa: N818
    """Every run that took this attachment up was lost."""

    def __init__(self, runs: int) -> None:
        super().__init__(f"{runs} runs were lost while they worked on this. Look at their logs, then replay it.")


class AttachmentRefusedError(PermanentError):
    """What an event names cannot be an attachment; the message is the reason."""


def attempts(
    records: Sequence[AttachmentRecord], attempt: Callable[[AttachmentRecord], End], concurrency: int
) -> Iterator[list[End]]:
    """Make an attempt at each attachment, several at a time, hosts taking turns.

    Args:
        records: in any order.
        attempt: makes one; never raises.
        concurrency: at a time.

    Yields:
        how those ended that have ended since the last time, about once a second.
    """
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="download")
    try:
        waiting = {pool.submit(attempt, record) for record in hosts_in_turn(records)}
        while waiting:
            ended, waiting = wait(waiting, timeout=GROUP_SECONDS)
            if ended:
                yield [future.result() for future in ended]
    finally:
        # Where the run fails, its database being away perhaps, what has not begun is left to another one.
        pool.shutdown(cancel_futures=True)


def hosts_in_turn(records: Sequence[AttachmentRecord]) -> list[AttachmentRecord]:
    """The same records, one of each host after another: a host with many must not keep all places from the others."""
    turns: dict[str, int] = {}
    placed = []
    for place, record in enumerate(records):
        host = _host(record.attachment_url)
        turns[host] = turns.get(host, 0) + 1
        placed.append((turns[host], place, record))
    return [record for _, _, record in sorted(placed, key=lambda entry: entry[:2])]


def attempt_at(record: AttachmentRecord, services: Services) -> End:
    """Download and store one attachment, and say how that ended. Done twice, it leaves the same file."""
    task = record.this_task
    cached: CachedDownload | None = None
    path = services.settings.cache_dir / hashlib.sha256(record.attachment_key.encode()).hexdigest()
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
            downloaded = services.downloader.download(_request(task), path)
            cached = _cached(task, downloaded)
            stored = _store(services, record, task, downloaded)
        except HostBusy as error:
            pause = error.retry_after or timedelta(seconds=services.settings.downloads.pause_seconds)
            return Postponed(record.attachment_key, str(error), datetime.now(UTC) + pause)
        except IngestError as error:
            return _failed(record, task, error, services, cached)
        except Exception as error:  # what one attachment brings to light must not take the others down
            logger.exception("attachment_not_stored")
            return _failed(record, task, UnforeseenFailure("Storing the attachment", error), services, cached)
        finally:
            path.unlink(missing_ok=True)
        return _succeeded(record, task, downloaded, stored, cached)


def _require_runs_left(record: AttachmentRecord, services: Services) -> None:
    if record.attempts > services.settings.retries.max_attempts:
        raise RunLost(record.attempts - 1)


def _request(task: DownloadTask) -> DownloadRequest:
    return DownloadRequest(
        url=task.attachment_url,
        file_name=task.file_name,
        content_type=task.content_type,
        expected_size=task.expected_size,
        checksum=task.checksum,
    )


def _store(
    services: Services, record: AttachmentRecord, task: DownloadTask, downloaded: Downloaded
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
    except StoreRefused as error:
        # A permission that is missing is given in minutes; the file's own server may not have it for ever.
        raise StoreUnavailable(error.address, f"refused ({error.code})") from error


def _cached(task: DownloadTask, downloaded: Downloaded) -> CachedDownload:
    shared = {name: getattr(task, name) for name in CachedDownload.__struct_fields__ if hasattr(task, name)}
    return CachedDownload(
        **shared
        | {
            "local_path": str(downloaded.path),
            "size_bytes": downloaded.size_bytes,
            "sha256": downloaded.sha256,
            "content_type": downloaded.content_type,
        }
    )


def _succeeded(
    record: AttachmentRecord,
    task: DownloadTask,
    downloaded: Downloaded,
    stored: StoredAttachment,
    cached: CachedDownload,
) -> Outcome:
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
    error: IngestError,
    services: Services,
    cached: CachedDownload | None,
) -> Outcome:
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
    logger.warning("attachment_failed", reason=str(error), error_class=error.error_class, attempt=task.attempt)
    return msgspec.structs.replace(_outcome(record, task, result, cached), next_attempt_at=due_at)


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
) -> Outcome:
    return Outcome(
        attachment_key=record.attachment_key,
        replays=record.replays,
        domain=record.domain,
        event_type=task.event_type,
        result=result,
        content_type=cached.content_type if cached else None,
        cached=cached,
    )


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
