"""Choose the next download: fair shares of a run's slots for domains, traces and hosts.

The next slot goes to the domain that holds the fewest, in it to the trace that does, in it to the host. A host begins
with two slots and gets one more with each download that ends soon; while one of its downloads is slow it gets no
further slot. So a few slow hosts never hold all slots, and any host may use what others leave.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from ingest_project.attachments.queue import AttachmentRecord

FIRST_SLOTS = 2
SLOW_SECONDS = 10.0

Job = TypeVar("Job")


class DownloadScheduler(Generic[Job]):
    """The records that wait and the slots they hold; threads get their next job from it.

    Args:
        records: that wait, in the order of their turns where shares are equal.
        max_per_host: slots of one host.
        max_unfinished: results that may lie unprocessed before no further download begins.
        max_unstored_bytes: of downloaded files that are not stored yet, before no further download begins.
    """

    def __init__(
        self, records: Iterable[AttachmentRecord], *, max_per_host: int, max_unfinished: int, max_unstored_bytes: int
    ) -> None:
        self._changed = threading.Condition()
        self._max_per_host = max_per_host
        self._max_unfinished = max_unfinished
        self._max_unstored_bytes = max_unstored_bytes
        self._waiting: dict[str, dict[str, dict[str, deque[AttachmentRecord]]]] = {}
        self._waiting_of_host: Counter[str] = Counter()
        self._begun: dict[str, dict[str, float]] = {}
        self._held: Counter[tuple[str, ...]] = Counter()
        self._slots: dict[str, int] = {}
        self._first: deque[Job] = deque()
        self._unfinished = 0
        self._unstored_bytes = 0
        self._closed = False
        for record in records:
            traces = self._waiting.setdefault(record.domain, {})
            hosts = traces.setdefault(record.trace_id, {})
            hosts.setdefault(host_of(record.attachment_url), deque()).append(record)
            self._waiting_of_host[host_of(record.attachment_url)] += 1

    def next(self) -> AttachmentRecord | Job | None:
        """Wait for a thread's next job and return it; None once the thread must end."""
        with self._changed:
            while not self._closed:
                if self._first:
                    return self._first.popleft()
                record = self._chosen()
                if record is not None:
                    return record
                # Without a timeout: everything that frees a slot notifies, and time alone only makes a host slower.
                self._changed.wait()
        return None

    def put_first(self, jobs: Iterable[Job]) -> None:
        """Add jobs that are done before any further download."""
        with self._changed:
            self._first.extend(jobs)
            self._changed.notify(len(self._first))

    def ended(self, record: AttachmentRecord, unstored_bytes: int = 0) -> None:
        """Free the slot of a download that ended; its result is unprocessed.

        Args:
            record: of the download.
            unstored_bytes: of the downloaded file.
        """
        host = host_of(record.attachment_url)
        with self._changed:
            begun = self._begun[host]
            took = time.monotonic() - begun.pop(record.attachment_key)
            if not begun:
                del self._begun[host]
            slots = self._slots.get(host, FIRST_SLOTS)
            self._slots[host] = FIRST_SLOTS if took > SLOW_SECONDS else min(slots + 1, self._max_per_host)
            for share in _shares(record):
                self._held[share] -= 1
            self._unfinished += 1
            self._unstored_bytes += unstored_bytes
            # Wake two threads: one for the freed slot, one for the slot that the host gained.
            self._changed.notify(2)

    def processed(self, results: int, stored_bytes: int = 0) -> None:
        """Count results as processed, and the bytes of their files as gone from the disk."""
        with self._changed:
            self._unfinished -= results
            self._unstored_bytes -= stored_bytes
            self._changed.notify_all()

    def withdraw(self) -> list[AttachmentRecord]:
        """Remove every record that still waits, and return them."""
        with self._changed:
            hosts = chain.from_iterable(traces.values() for traces in self._waiting.values())
            left = list(chain.from_iterable(chain.from_iterable(records.values() for records in hosts)))
            self._waiting.clear()
            self._waiting_of_host.clear()
        return left

    def close(self) -> None:
        """End every thread at its next request."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _chosen(self) -> AttachmentRecord | None:
        if self._unfinished >= self._max_unfinished or self._unstored_bytes >= self._max_unstored_bytes:
            return None
        now = time.monotonic()
        # Only hosts that hold slots can be full: these are few, even if many hosts wait.
        full = {host for host in self._begun if not self._has_slot(host, now)}
        if self._waiting_of_host.keys() <= full:
            return None
        for domain in self._by_share(self._waiting):
            for trace in self._by_share(self._waiting[domain], domain):
                hosts = self._waiting[domain][trace]
                candidates = [host for host in hosts if host not in full]
                if candidates:
                    fewest = min(candidates, key=lambda host: len(self._begun.get(host, ())))
                    return self._take(domain, trace, fewest, now)
        return None

    def _by_share(self, names: Iterable[str], *above: str) -> Iterator[str]:
        """Yield names, those with the fewest slots first. Sorts only the few names that hold any."""
        holding: list[tuple[int, str]] = []
        for name in names:
            if slots := self._held[*above, name]:
                holding.append((slots, name))
            else:
                yield name
        yield from (name for _, name in sorted(holding, key=itemgetter(0)))

    def _has_slot(self, host: str, now: float) -> bool:
        begun = self._begun.get(host, {})
        most = min(self._slots.get(host, FIRST_SLOTS), self._max_per_host)
        if len(begun) < min(FIRST_SLOTS, most):
            return True
        return len(begun) < most and now - min(begun.values()) < SLOW_SECONDS

    def _take(self, domain: str, trace: str, host: str, now: float) -> AttachmentRecord:
        hosts = self._waiting[domain][trace]
        record = hosts[host].popleft()
        if not hosts[host]:
            del hosts[host]
        if not hosts:
            del self._waiting[domain][trace]
        if not self._waiting[domain]:
            del self._waiting[domain]
        self._waiting_of_host[host] -= 1
        if not self._waiting_of_host[host]:
            del self._waiting_of_host[host]
        self._begun.setdefault(host, {})[record.attachment_key] = now
        for share in _shares(record):
            self._held[share] += 1
        return record


def host_of(url: str) -> str:
    """Return host and port of an address; empty where it has none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _shares(record: AttachmentRecord) -> tuple[tuple[str, ...], ...]:
    return (record.domain,), (record.domain, record.trace_id)
