"""One look into a job's source: list it page by page, leave out what is not ready, announce the rest.

The next page is listed and written while this one is sent; two pages are in memory, however many files there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TypeVar

from ingest_project.core.batches import prefetch
from ingest_project.platform.work_queue.item_errors import storable
from ingest_project.polling.job_queue import JobOutbox, JobRecord
from ingest_project.polling.publish_file_events import Announcements, prepare, publish
from ingest_project.polling.resources import PollingResources
from ingest_project.sources.protocol import Skipped, SourceFile
from ingest_project.sources.selection import count_reason, files_further_down, ready_at

SHOWN_FILES = 50
TOO_YOUNG = "It changed a moment ago and may still be being written."
ANNOUNCED_BEFORE = "Announced before, in this version."

Item = TypeVar("Item")


@dataclass
class Discovery:
    """What one look found.

    Args:
        found: files that match the job and are of a type that is ingested.
        announced: of those, the ones that had not been announced before this look.
        young: of those, the ones that may still be being written.
        skipped: what is not ingested at all, counted by reason.
        shown: the first few of everything, for people: path and what became of it.
        ready_at: when the last of the young ones can be taken; None without any.
    """

    found: int = 0
    announced: int = 0
    young: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[str, str]] = field(default_factory=list)
    ready_at: datetime | None = None

    def not_announced(self, by_earlier_attempts: int = 0) -> dict[str, int]:
        """Everything that was seen and not announced, reason to number.

        Args:
            by_earlier_attempts: how many files this job's own earlier attempts announced: those were not skipped.
        """
        known = max(self.found - self.announced - self.young - by_earlier_attempts, 0)
        return dict(self.skipped + Counter({ANNOUNCED_BEFORE: known, TOO_YOUNG: self.young}))

    def show(self, path: str, outcome: str) -> None:
        """Remember one of the first few."""
        if len(self.shown) < SHOWN_FILES:
            self.shown.append((path, outcome))

    def take(self, page: Sequence[SourceFile | Skipped], now: datetime, min_age: timedelta) -> list[SourceFile]:
        """Count a page; those of its files that can be announced."""
        files = [entry for entry in page if isinstance(entry, SourceFile)]
        self.found += len(files)
        if len(files) < len(page):
            self._skip(entry for entry in page if isinstance(entry, Skipped))
        settled = now - min_age
        ready = [file for file in files if file.modified_at is None or file.modified_at <= settled]
        if len(ready) < len(files):
            ready += self._old_enough(
                (file for file in files if file.modified_at and file.modified_at > settled), now, min_age
            )
        return ready

    def refuse(self, files: Sequence[tuple[SourceFile, str]]) -> None:
        """Count files that were found and cannot be announced."""
        self.found -= len(files)
        self._skip(Skipped(storable(file.path), reason) for file, reason in files)

    def _skip(self, entries: Iterable[Skipped]) -> None:
        for entry in entries:
            count_reason(self.skipped, entry.reason)
            if entry.visible:
                self.show(entry.path, entry.reason)

    def _old_enough(self, files: Iterable[SourceFile], now: datetime, min_age: timedelta) -> Iterator[SourceFile]:
        for file in files:
            if (at := ready_at(file, now, min_age)) is None:
                yield file
            else:
                self.young += 1
                self.ready_at = max(at, self.ready_at or at)
                self.show(file.path, TOO_YOUNG)


def discover(services: PollingResources, record: JobRecord) -> Discovery:
    """List one job's source and announce each file version that has not been announced.

    Raises:
        TransientError: the source, Kafka or the database is away; doing it again goes on where this ended.
        PermanentError: the source cannot be listed at all.
    """
    settings = services.settings.polling
    source = services.open_source(record.job.source_config)
    outbox = JobOutbox(services.engine, record.job_key)
    discovery = Discovery()

    def prepared() -> Generator[Announcements, None, None]:
        with prefetch(_pages(source.list_files(record.job.file_pattern), settings.page_files)) as pages:
            for page in pages:
                ready = discovery.take(page, datetime.now(UTC), settings.min_age)
                if ready:
                    announcements = prepare(services, record, source, ready, outbox)
                    discovery.refuse(announcements.refused)
                    for file in ready[: SHOWN_FILES - len(discovery.shown)]:
                        was_new = file.path in announcements.paths
                        discovery.show(file.path, "announced" if was_new else "announced before")
                    yield announcements

    with prefetch(prepared()) as prepared_ones:
        for announcements in prepared_ones:
            publish(services, announcements, outbox)
            discovery.announced += len(announcements.messages)
    if not discovery.found and not record.standing:
        discovery.skipped.update(files_further_down(source, record.job.file_pattern))
    return discovery


def _pages(entries: Iterator[Item], size: int) -> Generator[list[Item], None, None]:
    while page := list(islice(entries, size)):
        yield page
