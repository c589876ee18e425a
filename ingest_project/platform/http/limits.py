"""How much is asked of other people's hosts: so many downloads at a time, and none of a host that is in trouble.

A host that says `Retry-After`, or that failed several times in a row, is left alone: who asks for it meanwhile is told
at once and when to come again, instead of holding a thread. After the pause one request tries whether it is well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from ingest_project.core.errors import DownloadFailedError, HostThrottledError, IngestError

# Strangers name the hosts: what is remembered of them is bounded.
_MAX_REMEMBERED = 10_000
LONGEST_RETRY_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class LoadLimits:
    """What is asked at most.

    Args:
        total: conversations at a time.
        per_host: conversations at a time with one host.
        failures_to_pause: transient failures in a row after which a host is left alone.
        pause: for how long.
        longest_retry_after: a longer `Retry-After` is cut to this.
        longest_wait: for a free place; after that the caller hears that the host is busy.
    """

    total: int = 32
    per_host: int = 8
    failures_to_pause: int = 5
    pause: timedelta = timedelta(seconds=60)
    longest_retry_after: timedelta = LONGEST_RETRY_AFTER
    longest_wait: timedelta = timedelta(minutes=5)


@dataclass
class _Host:
    """What is known of a host that is in use or in trouble.

    Args:
        free: a place became free.
        active: conversations now.
        waiting: threads that wait for a place.
        failures: transient failures in a row.
        closed_until: monotonic time before which it is left alone.
        reason: why.
        needs_trial: it failed too often; one request goes first when the pause is over.
        on_trial: that request is under way.
    """

    free: threading.Condition
    active: int = 0
    waiting: int = 0
    failures: int = 0
    closed_until: float = 0.0
    reason: str = ""
    needs_trial: bool = False
    on_trial: bool = False

    @property
    def unremarkable(self) -> bool:
        return not (self.active or self.waiting or self.failures or self.closed_until > time.monotonic())


class HostLimits:
    """The limits in force in one process, shared by its threads.

    Args:
        limits: what is asked at most.
    """

    def __init__(self, limits: LoadLimits | None = None) -> None:
        self._limits = limits or LoadLimits()
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self._total = threading.BoundedSemaphore(self._limits.total)

    @contextmanager
    def conversation(self, host: str, *, forgive_breaks: bool = False) -> Iterator[float]:
        """Hold a place for a conversation with a host, and learn from how it ends.

        A `DownloadFailedError` that leaves the block counts against the host and its `retry_after` is kept to; any
        other end counts for it, except errors that are not the host's.

        Args:
            host: host and port.
            forgive_breaks: not to count a broken connection, because the caller tries again at once.

        Yields:
            seconds that were spent waiting for the place.

        Raises:
            HostThrottledError: the host is left alone at the moment, or no place became free.
        """
        started = time.monotonic()
        known = self._enter(host)
        try:
            self._take_place(host, started)
            try:
                yield time.monotonic() - started
            finally:
                self._total.release()
        except DownloadFailedError as failure:
            self._leave(host, known, failure=None if failure.cut and forgive_breaks else failure)
            raise
        except BaseException as error:
            # A refusal is an answer; a full disk or a stopped process says nothing about the host.
            self._leave(
                host, known, answered=isinstance(error, IngestError) and not isinstance(error, HostThrottledError)
            )
            raise
        else:
            self._leave(host, known, answered=True)

    def bounded(self, retry_after: timedelta | None) -> timedelta | None:
        """A host's `Retry-After`, cut to the longest that is kept to."""
        return None if retry_after is None else min(retry_after, self._limits.longest_retry_after)

    def _enter(self, host: str) -> _Host:
        until = time.monotonic() + self._limits.longest_wait.total_seconds()
        with self._lock:
            known = self._hosts.setdefault(host, _Host(threading.Condition(self._lock)))
            self._require_open(host, known)
            while known.active >= self._limits.per_host:
                self._wait(host, known, until)
                self._require_open(host, known)
            known.active += 1
            known.on_trial = known.needs_trial
        return known

    def _wait(self, host: str, known: _Host, until: float) -> None:
        known.waiting += 1
        try:
            if not known.free.wait(until - time.monotonic()):
                raise HostThrottledError(host, "too many downloads from it at a time", self._limits.pause)
        finally:
            known.waiting -= 1

    def _require_open(self, host: str, known: _Host) -> None:
        left = known.closed_until - time.monotonic()
        if left > 0:
            raise HostThrottledError(host, known.reason, timedelta(seconds=left))
        if known.on_trial:
            raise HostThrottledError(host, f"{known.reason}; one request is trying it now", self._limits.pause)

    def _leave(
        self, host: str, known: _Host, *, answered: bool = False, failure: DownloadFailedError | None = None
    ) -> None:
        with self._lock:
            known.active -= 1
            known.on_trial = False
            if answered:
                known.failures, known.needs_trial = 0, False
            if failure:
                self._remember(known, failure)
            if failure:
                # If the host is now left alone, everyone who waits for it must hear that.
                known.free.notify_all()
            else:
                known.free.notify()
            if known.unremarkable:
                self._hosts.pop(host, None)
            elif len(self._hosts) > _MAX_REMEMBERED:
                self._forget()

    def _remember(self, known: _Host, failure: DownloadFailedError) -> None:
        known.failures += 1
        pause = timedelta(0)
        if known.failures >= self._limits.failures_to_pause:
            pause, known.reason = self._limits.pause, f"it failed {known.failures} times in a row"
            known.needs_trial = True
        asked_for = self.bounded(failure.retry_after)
        if asked_for and asked_for >= pause:
            pause, known.reason = asked_for, "it asked to be left alone"
        known.closed_until = max(known.closed_until, time.monotonic() + pause.total_seconds())

    def _forget(self) -> None:
        for host in [name for name, known in self._hosts.items() if not (known.active or known.waiting)]:
            del self._hosts[host]

    def _take_place(self, host: str, started: float) -> None:
        left = started + self._limits.longest_wait.total_seconds() - time.monotonic()
        if not self._total.acquire(timeout=max(0.0, left)):
            raise HostThrottledError(host, "too many downloads at a time", self._limits.pause)
