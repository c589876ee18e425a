"""Connections to file servers, kept for the next use: a batch of a thousand files logs in a few times.

One pool per process and limits, safe for threads. A connection has one user at a time. Idle ones are closed after a
while, by whoever comes next, and at the end of the process.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Generic, Protocol, Self, TypeVar

from ingest_project.core.errors import SourceUnreachableError

# A connection that rested for less is taken as it is: to ask whether it is there costs as much as most commands.
TRUSTED_IDLE_SECONDS = 5.0


class Poolable(Protocol):
    """What the pool asks of a connection."""

    usable: bool

    def answers(self) -> bool:
        """Whether the other side is still there."""
        ...

    def close(self) -> None:
        """End it; never raises."""
        ...


C = TypeVar("C", bound=Poolable)
T = TypeVar("T")


@dataclass(frozen=True)
class PoolLimits:
    """How many connections there may be, and for how long.

    Args:
        total: open in this process.
        per_server: open to one server as one user.
        idle_seconds: how long an unused one is kept.
        wait_seconds: how long to wait for a free one.
    """

    total: int
    per_server: int
    idle_seconds: float
    wait_seconds: float


@dataclass(frozen=True)
class Account(Generic[C]):
    """What connections are kept under, and how one is made.

    Args:
        location: server and user, for messages.
        key: of two accounts with the same key the connections are the same.
        connect: makes one; raises SourceUnreachableError and the permanent errors of a source.
    """

    location: str
    key: Hashable
    connect: Callable[[], C]


class Lease(Generic[C]):
    """A connection in use; goes back, or is closed when it broke, at the end of the `with` or by `release`."""

    def __init__(self, pool: ConnectionPool, key: Hashable, connection: C, *, reused: bool) -> None:
        self._pool = pool
        self._key = key
        self._released = False
        self.connection = connection
        self.reused = reused

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if not self._released:
            self._released = True
            self._pool._requeue(self._key, self.connection)  # noqa: SLF001 - the two are one


@dataclass
class _Idle:
    connection: Poolable
    since: float


class ConnectionPool:
    """The connections of this process.

    Args:
        limits: how many, how long.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self._forget()

    def lease(self, account: Account[C]) -> Lease[C]:
        """An idle connection that answers, or a new one.

        Raises:
            SourceUnreachableError: none became free in time, or no new one can be made.
        """
        while (idle := self._taken_idle(account)) is not None:
            if time.monotonic() - idle.since < TRUSTED_IDLE_SECONDS or idle.connection.answers():
                # What is kept under a key was made by that key's account.
                return Lease(self, account.key, idle.connection, reused=True)  # type: ignore[arg-type]
            idle.connection.usable = False
            self._requeue(account.key, idle.connection)
        try:
            return Lease(self, account.key, account.connect(), reused=False)
        except BaseException:
            self._requeue(account.key, None)
            raise

    def begin(self, account: Account[C], operation: Callable[[C], T]) -> tuple[Lease[C], T]:
        """Run an operation and keep its connection leased, for what goes on after it.

        Where a kept connection turns out to be dead, the operation runs again on a new one.
        """
        while True:
            lease = self.lease(account)
            try:
                return lease, operation(lease.connection)
            except SourceUnreachableError:
                lease.release()
                if not lease.reused or lease.connection.usable:
                    raise
                self.close_idle(account.key)
            except BaseException:
                lease.release()
                raise

    def call(self, account: Account[C], operation: Callable[[C], T]) -> T:
        """Run an operation as `begin` does, and give the connection back."""
        lease, result = self.begin(account, operation)
        lease.release()
        return result

    def close_idle(self, key: Hashable | None = None) -> None:
        """Close what is not in use, of one key or of all."""
        with self._changed:
            keys = list(self._idle) if key is None else [key]
            closing = [self._dropped(key) for key in keys for _ in range(len(self._idle.get(key, ())))]
        _close(closing)

    def _taken_idle(self, account: Account[C]) -> _Idle | None:
        """An idle connection, or None and the right to make one."""
        closing: list[Poolable] = []
        until = time.monotonic() + self._limits.wait_seconds
        try:
            with self._changed:
                closing += self._expired()
                while True:
                    if self._idle.get(account.key):
                        return self._idle[account.key].pop()
                    closing += self._make_room(account.key)
                    if self._has_room(account.key):
                        self._open[account.key] += 1
                        return None
                    if not self._changed.wait(until - time.monotonic()):
                        raise SourceUnreachableError(
                            account.location, f"all {self._open[account.key]} connections to it are in use"
                        )
        finally:
            _close(closing)

    def _requeue(self, key: Hashable, connection: Poolable | None) -> None:
        keep = connection is not None and connection.usable
        with self._changed:
            if connection is not None and keep:
                self._idle.setdefault(key, deque()).append(_Idle(connection, time.monotonic()))
            else:
                self._open[key] -= 1
            self._changed.notify_all()
        if connection is not None and not keep:
            connection.close()

    def _has_room(self, key: Hashable) -> bool:
        return self._open[key] < self._limits.per_server and self._open.total() < self._limits.total

    def _make_room(self, wanted: Hashable) -> list[Poolable]:
        """Where the process has all it may have, an idle connection to another server makes way."""
        resting = [key for key, idle in self._idle.items() if idle]
        full = self._open.total() >= self._limits.total
        if not full or not resting or self._open[wanted] >= self._limits.per_server:
            return []
        return [self._dropped(min(resting, key=lambda key: self._idle[key][0].since))]

    def _expired(self) -> list[Poolable]:
        before = time.monotonic() - self._limits.idle_seconds
        return [
            self._dropped(key)
            for key, idle in self._idle.items()
            for _ in range(sum(resting.since < before for resting in idle))
        ]

    def _dropped(self, key: Hashable) -> Poolable:
        """Take the one that has rested longest out of the books; the caller closes it."""
        self._open[key] -= 1
        return self._idle[key].popleft().connection

    def _forget(self) -> None:
        self._idle: dict[Hashable, deque[_Idle]] = {}
        self._open: Counter[Hashable] = Counter()
        self._changed = threading.Condition()


@cache
def pool_of(limits: PoolLimits) -> ConnectionPool:
    """The pool of this process with these limits."""
    pool = ConnectionPool(limits)
    atexit.register(pool.close_idle)
    # Two processes that speak over one socket hear each other's answers.
    os.register_at_fork(after_in_child=pool._forget)  # noqa: SLF001 - the two are one
    return pool


def _close(connections: list[Poolable]) -> None:
    for connection in connections:
        connection.close()
