"""Times of retries, order of downloads, and hours of events."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from ingest_project.attachments.catalog import hour_of_arrival
from ingest_project.attachments.downloading import Postponed, attempts
from ingest_project.attachments.queue import AttachmentRecord, next_attempt_at, retry_topic
from ingest_project.attachments.sensors import cut_downloads
from ingest_project.core.settings import AttachmentSettings
from ingest_project.platform.work_queue.queue import Due
from ingest_project_tests.attachments.samples import NOW, record

DELAYS = tuple(timedelta(minutes=minutes) for minutes in (5, 10, 20, 40))


@pytest.mark.parametrize(("attempt", "minutes"), [(1, 5), (2, 10), (3, 20), (4, 40)])
def test_each_attempt_waits_longer(attempt: int, minutes: int) -> None:
    assert next_attempt_at(NOW, attempt, DELAYS) == NOW + timedelta(minutes=minutes)


def test_after_the_last_delay_no_attempt_follows() -> None:
    assert next_attempt_at(NOW, 5, DELAYS) is None
    assert next_attempt_at(NOW, 900, DELAYS, timedelta(hours=1)) is None


def test_a_longer_pause_of_the_host_is_kept_and_a_shorter_one_is_ignored() -> None:
    assert next_attempt_at(NOW, 1, DELAYS, timedelta(hours=1)) == NOW + timedelta(hours=1)
    assert next_attempt_at(NOW, 1, DELAYS, timedelta(seconds=1)) == NOW + timedelta(minutes=5)


def test_every_attempt_has_a_topic_to_wait_in() -> None:
    topics = ["5m", "10m", "20m", "40m"]
    assert [retry_topic(attempt, topics) for attempt in (1, 2, 3, 4, 9)] == ["5m", "10m", "20m", "40m", "40m"]


def test_a_run_that_fails_begins_no_further_download() -> None:
    begun: list[str] = []
    go_on = threading.Event()

    def attempt(one: AttachmentRecord) -> Postponed:
        begun.append(one.attachment_key)
        if len(begun) > 1:
            go_on.wait(5)
        return Postponed(one.attachment_key, "", NOW)

    groups = attempts([record(str(n)) for n in range(100)], attempt, concurrency=2)
    assert next(groups)
    go_on.set()
    groups.close()
    assert len(begun) < 100


def test_runs_get_smaller_with_each_that_is_lost_until_an_attachment_goes_alone() -> None:
    due = [Due(f"{lost}-{n}", lost) for lost in (0, 1, 2, 5) for n in range(100)]
    batches = cut_downloads(due, AttachmentSettings())
    assert {len({key[0] for key in keys}) for keys in batches} == {1}
    largest = {lost: max(len(keys) for keys in batches if keys[0][0] == lost) for lost in "0125"}
    assert largest == {"0": 100, "1": 100, "2": 34, "5": 1}


def test_an_hour_is_that_of_arrival_and_now_where_that_cannot_be() -> None:
    now = datetime(2026, 3, 1, 12, 5, tzinfo=UTC)
    assert hour_of_arrival(datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC), now) == "2026-02-28-23:00"
    assert hour_of_arrival(datetime(2026, 3, 1, 12, 0, tzinfo=UTC).astimezone(), now) == "2026-03-01-12:00"
    for impossible in (None, datetime(1970, 1, 1, tzinfo=UTC), now + timedelta(hours=2)):
        assert hour_of_arrival(impossible, now) == "2026-03-01-12:00"
