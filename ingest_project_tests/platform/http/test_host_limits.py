"""Limits on the load of hosts, and pauses of failing ones."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from ingest_project.core.errors import DownloadFailedError, DownloadRejectedError, HostThrottledError
from ingest_project.platform.http.client import HostLimits, LoadLimits
from ingest_project.platform.http.response import map_status, parse_retry_after

HOST = "example.com"
SHORT = timedelta(milliseconds=60)


def _fail(
    limits: HostLimits,
    retry_after: timedelta | None = None,
    *,
    cut: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    with pytest.raises(DownloadFailedError), limits.request_slot(HOST, forgive_breaks=True):  # noqa: PT012 - the block holds the slot
        meanwhile()
        raise DownloadFailedError("https://example.com/a", "503", 503, retry_after, cut=cut)


def _succeed(limits: HostLimits) -> None:
    with limits.request_slot(HOST):
        pass


@pytest.mark.parametrize(("hosts", "allowed"), [("a", 3), ("ab", 4)], ids=["with one host", "in total"])
def test_no_more_conversations_at_a_time_than_allowed_in_total_and_with_one_host(hosts: str, allowed: int) -> None:
    limits = HostLimits(LoadLimits(total=4, per_host=3))
    changed, now, most = threading.Condition(), Counter[str](), Counter[str]()

    def talk(host: str) -> None:
        with limits.request_slot(host):
            with changed:
                now[host] += 1
                most[host] = max(most[host], now[host])
                most["total"] = max(most["total"], now.total())
                changed.notify_all()
                # All that are allowed do talk at the same time once, however busy the machine.
                assert changed.wait_for(lambda: most["total"] >= allowed, timeout=30)
            time.sleep(0.002)
            with changed:
                now[host] -= 1

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(talk, hosts * (80 // len(hosts))))
    assert most["total"] == allowed
    assert max(most[host] for host in hosts) <= 3
    assert not limits._hosts


def test_a_request_without_a_slot_in_time_raises_a_throttling_error() -> None:
    limits = HostLimits(LoadLimits(per_host=1, longest_wait=SHORT))
    with limits.request_slot(HOST), pytest.raises(HostThrottledError), limits.request_slot(HOST):
        pass
    _succeed(limits)


def test_a_host_that_fails_in_a_row_is_left_alone_and_then_tried_by_one() -> None:
    limits = HostLimits(LoadLimits(failures_to_pause=2, pause=SHORT))
    _fail(limits)
    _succeed(limits)
    _fail(limits)
    _fail(limits)
    with pytest.raises(HostThrottledError) as busy, limits.request_slot(HOST):
        pass
    assert timedelta(0) < busy.value.retry_after <= SHORT
    time.sleep(SHORT.total_seconds())
    # One is trying it: no other may.
    with limits.request_slot(HOST), pytest.raises(HostThrottledError, match="trying it now"), limits.request_slot(HOST):
        pass
    _succeed(limits)
    assert not limits._hosts


def test_a_host_that_fails_its_trial_is_left_alone_again() -> None:
    limits = HostLimits(LoadLimits(failures_to_pause=1, pause=SHORT))
    _fail(limits)
    time.sleep(SHORT.total_seconds())
    _fail(limits)
    with pytest.raises(HostThrottledError), limits.request_slot(HOST):
        pass


def test_other_hosts_are_not_affected() -> None:
    limits = HostLimits(LoadLimits(failures_to_pause=1))
    _fail(limits)
    with limits.request_slot("other.example.com"):
        pass


def test_a_host_that_requests_a_pause_gets_it_up_to_the_longest() -> None:
    limits = HostLimits(LoadLimits(longest_retry_after=SHORT))
    _fail(limits, timedelta(days=30))
    with pytest.raises(HostThrottledError, match="requested a pause") as busy, limits.request_slot(HOST):
        pass
    assert busy.value.retry_after <= SHORT
    time.sleep(SHORT.total_seconds())
    _succeed(limits)


def test_a_refusal_and_a_forgiven_break_do_not_count_as_failures() -> None:
    limits = HostLimits(LoadLimits(failures_to_pause=1))
    _fail(limits, cut=True)
    with pytest.raises(DownloadRejectedError), limits.request_slot(HOST):
        raise DownloadRejectedError("https://example.com/a", "404", 404)
    _succeed(limits)


def test_threads_that_wait_for_a_slot_fail_with_the_host() -> None:
    limits = HostLimits(LoadLimits(per_host=1, failures_to_pause=1, longest_wait=timedelta(seconds=20)))
    inside = threading.Event()
    heard: list[HostThrottledError] = []

    def meanwhile() -> None:
        inside.set()
        time.sleep(0.05)

    def wait_for_place() -> None:
        inside.wait()
        try:
            _succeed(limits)
        except HostThrottledError as busy:
            heard.append(busy)

    threads = [threading.Thread(target=wait_for_place) for _ in range(3)]
    for thread in threads:
        thread.start()
    _fail(limits, meanwhile=meanwhile)
    for thread in threads:
        thread.join(timeout=5)
    assert len(heard) == 3


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("9" * 400, 999_999_999),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(value: str | None, seconds: int | None) -> None:
    now = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)
    assert parse_retry_after(value, now) == (None if seconds is None else timedelta(seconds=seconds))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 204, 300, 999_9])
def test_a_status_that_stays_is_permanent(status: int) -> None:
    assert isinstance(map_status(status, "u", None), DownloadRejectedError if status < 500 else DownloadFailedError)


@pytest.mark.parametrize("status", [202, 408, 425, 429, 500, 502, 503, 504])
def test_a_status_that_passes_is_transient(status: int) -> None:
    failure = map_status(status, "u", timedelta(seconds=7))
    assert isinstance(failure, DownloadFailedError)
    assert (failure.http_status, failure.retry_after) == (status, timedelta(seconds=7))
