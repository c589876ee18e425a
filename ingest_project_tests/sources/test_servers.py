"""Connections are kept, counted, shared between threads, and never used by two at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ingest_project.core.errors import SourceNotFoundError, SourceUnreachableError
from ingest_project.sources.servers import ConnectionPool, PoolLimits


class Line:
    """A connection to nowhere."""

    def __init__(self) -> None:
        self.usable = True
        self.closed = False
        self.alive = True

    def answers(self) -> bool:
        """Return the configured answer."""
        return self.alive

    def close(self) -> None:
        """Remember it."""
        self.closed = True


@dataclass(frozen=True)
class Account:
    """A login to nowhere."""

    location: str = "test://a"
    connect: Callable[[], Line] = Line


def account(name: str = "a") -> Account:
    return Account(f"test://{name}")


def pool(total: int = 4, per_server: int = 2, idle_seconds: float = 60.0, wait_seconds: float = 0.1) -> ConnectionPool:
    return ConnectionPool(PoolLimits(total, per_server, idle_seconds, wait_seconds))


def test_a_connection_is_used_again_and_a_broken_one_is_not() -> None:
    lines = pool()
    with lines.lease(account()) as first:
        assert not first.reused
    with lines.lease(account()) as second:
        assert second.reused
        assert second.connection is first.connection
        second.connection.usable = False
    assert first.connection.closed
    with lines.lease(account()) as third:
        assert not third.reused


def test_leases_beyond_the_limit_wait_and_then_fail() -> None:
    lines = pool()
    with lines.lease(account()), lines.lease(account()):
        with pytest.raises(SourceUnreachableError, match="all 2 connections to it are in use"):
            lines.lease(account())
        lines.lease(account("b")).release()
    lines.lease(account()).release()


def test_a_waiting_thread_gets_the_connection_that_another_returns() -> None:
    lines = pool(per_server=1, wait_seconds=5)
    lease = lines.lease(account())
    threading.Timer(0.1, lease.release).start()
    assert lines.lease(account()).connection is lease.connection


def test_an_idle_connection_makes_way_for_another_server() -> None:
    lines = pool(total=1, per_server=1)
    with lines.lease(account("a")) as first:
        pass
    lines.lease(account("b")).release()
    assert first.connection.closed


def test_a_connection_idle_for_too_long_is_closed() -> None:
    lines = pool(idle_seconds=0.01)
    with lines.lease(account()) as first:
        pass
    time.sleep(0.02)
    assert not lines.lease(account()).reused
    assert first.connection.closed


def test_an_operation_on_a_dead_kept_connection_runs_again_on_a_new_one() -> None:
    lines = pool()
    stale = lines.lease(account())
    stale.release()

    def work(line: Line) -> str:
        if line is stale.connection:
            line.usable = False
            raise SourceUnreachableError("test://a", "gone")
        return "done"

    assert lines.call(account(), work) == "done"
    assert stale.connection.closed


def test_a_refusal_is_passed_on_and_leaves_the_connection_usable() -> None:
    lines = pool()

    def refused(_line: Line) -> None:
        raise SourceNotFoundError("test://a")

    for _ in range(5):
        with pytest.raises(SourceNotFoundError):
            lines.call(account(), refused)
    assert lines.lease(account()).reused


def test_a_failed_connection_leaves_its_slot_free() -> None:
    def away() -> Line:
        raise SourceUnreachableError("test://a", "away")

    lines = pool(per_server=1)
    for _ in range(3):
        with pytest.raises(SourceUnreachableError, match="away"):
            lines.lease(Account("test://a", away))
    lines.lease(account()).release()


def test_no_connection_has_two_users() -> None:
    lines, clashes, deadline = pool(wait_seconds=5), [], time.monotonic() + 0.3
    busy: set[int] = set()

    def use() -> None:
        while time.monotonic() < deadline:
            with lines.lease(account()) as lease:
                if id(lease.connection) in busy:
                    clashes.append(lease)
                busy.add(id(lease.connection))
                time.sleep(0.001)
                busy.discard(id(lease.connection))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
