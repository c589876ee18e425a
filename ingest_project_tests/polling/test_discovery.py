"""Each listing leaves unsettled files for later, announces nothing twice, and counts exactly."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import ConfiguredSource
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.polling.definitions import standing_job
from ingest_project.polling.discovery import ANNOUNCED_BEFORE, UNSETTLED, discover
from ingest_project.polling.job_queue import JobOutbox, JobRecord
from ingest_project.sources import SourceFile
from ingest_project.sources.local import LocalSource
from ingest_project_tests.journeys.system import DISCOVERED, POLLING, System, changed, readings

STANDING = "standing_jobs_sensor"


def poll(system: System, sensor: str = POLLING) -> None:
    """Execute what one tick requests."""
    for request in system.requests(sensor):
        system.execute("polling_batch", request)


def only_job(system: System) -> JobRecord:
    (record,) = system.services.polling_jobs.list()
    return record


def announced(system: System) -> int:
    return len(system.on_topic(system.settings.topics.file_event_queue))


def published(system: System) -> int:
    """What all jobs say that they published."""
    return sum(record.files_published or 0 for record in system.services.polling_jobs.list())


def test_a_file_changed_just_now_is_listed_again_once_it_has_settled(system: System) -> None:
    system.settings = changed(system.settings, "polling", min_age_seconds=3.0)
    system.restart()
    old = system.write("old.csv", readings())
    os.utime(old, (1_700_000_000, 1_700_000_000))
    young = system.write("young.csv", readings())
    # As a server whose clock goes ahead of ours says it; that also leaves a slow machine the time to look.
    os.utime(young, (time.time() + 2.5, time.time() + 2.5))
    system.send_job(system.folder)
    poll(system)
    record = only_job(system)
    assert (record.state, announced(system)) == (JobState.PENDING, 1)
    assert "listed again" in (record.reason or "")
    assert record.skipped == {UNSETTLED: 1}
    assert not system.requests(POLLING)
    give_up_at = time.monotonic() + 20
    while only_job(system).state is not JobState.DONE and time.monotonic() < give_up_at:
        time.sleep(0.5)
        poll(system)
    record = only_job(system)
    assert (record.state, record.files_found, record.files_published, record.skipped) == (JobState.DONE, 2, 2, {})
    assert announced(system) == 2


def test_a_job_without_matches_reports_files_in_subfolders_and_the_pattern_for_them(system: System) -> None:
    for number in range(3):
        system.write(f"hall/{number}.csv", readings(1, str(number)))
    system.write("here.txt", "not a file that is taken")
    system.send_job(system.folder, "*")
    poll(system)
    record = only_job(system)
    assert (record.state, record.files_found, announced(system)) == (JobState.DONE, 0, 0)
    refused = "Only csv, xlsx, xls are ingested, not 'txt'."
    assert record.skipped == {refused: 1, "In a folder that the pattern '*' does not reach; '**/*' takes it.": 3}


def test_found_files_are_published_or_skipped(system: System) -> None:
    for number in range(5):
        system.write(f"{number}.csv", readings(1, str(number)))
    system.send_job(system.folder)
    poll(system)
    system.write("new.csv", readings(1, "new"))
    system.write("3.csv", readings(2, "changed"))
    system.write("b.zip", "x")
    system.send_job(system.folder)
    poll(system)
    record = next(record for record in system.services.polling_jobs.list() if record.skipped)
    assert (record.files_found, record.files_published) == (6, 2)
    assert (record.skipped or {})[ANNOUNCED_BEFORE] == 4
    assert sum((record.skipped or {}).values()) == 5
    assert published(system) == 7


def test_a_listing_killed_half_way_continues_and_counts_all_that_it_published(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No other publisher is alive.
    monkeypatch.setattr("ingest_project.platform.kafka.publisher.YOUNG_SECONDS", 0.0)
    system.settings = changed(system.settings, "polling", page_files=10)
    system.restart()
    for number in range(35):
        system.write(f"{number:02}.csv", readings(1, str(number)))
    system.send_job(system.folder)
    marked = 0

    class Killed(JobOutbox):
        """Dies after the second page is on the topic and before that is remembered."""

        def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
            nonlocal marked
            marked += 1
            if marked == 2:
                raise BrokerUnavailableError("test", "as if the process had ended here")
            super().mark_sent(topic, message_ids)

    with monkeypatch.context() as patch:
        patch.setattr("ingest_project.polling.discovery.JobOutbox", Killed)
        poll(system)
    record = only_job(system)
    assert (record.state, record.files_published, announced(system)) == (JobState.PENDING, 10, 20)
    poll(system)
    record = only_job(system)
    assert (record.state, record.attempts) == (JobState.DONE, 2)
    assert (record.files_found, record.files_published, record.skipped) == (35, 35, {})
    assert announced(system) == 35


def test_files_that_the_consumer_would_refuse_are_not_announced_and_the_job_says_why(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.write("a.csv", readings())
    odd = [
        SourceFile("/in/b\x00.csv", "b\x00.csv", 1, None),
        SourceFile("/in/c.csv", "c.csv", -1, None),
        SourceFile("/in/d.csv", "d.csv", 1, None, etag="e" * 2_000),
    ]
    listed = LocalSource.list_files
    monkeypatch.setattr(LocalSource, "list_files", lambda self, pattern: chain(odd, listed(self, pattern)))
    for _ in range(2):
        system.send_job(system.folder)
        poll(system)
    assert announced(system) == 1
    records = system.services.polling_jobs.list()
    assert [record.files_found for record in records] == [1, 1]
    for record in records:
        refused = [reason for reason in record.skipped or {} if reason.startswith("It cannot be announced: ")]
        assert sorted(reason.partition("FileEvent: ")[2].split()[0] for reason in refused) == [
            "etag",
            "file_path",
            "size_bytes",
        ]
    assert system.on_topic(system.settings.topics.file_event_queue_dlq) == []


def test_two_simultaneous_listings_announce_each_file_once(system: System) -> None:
    for number in range(300):
        system.write(f"sub/{number}.csv", readings(1, str(number)))
    for path in (system.folder, system.folder / "sub", system.folder):
        system.send_job(path)
    system.tick(POLLING)
    keys = [record.job_key for record in system.services.polling_jobs.list()]
    records = system.services.polling_jobs.begin(keys, "run", datetime.now(UTC))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda record: discover(system.services, record), records))
    assert announced(system) == 300
    assert published(system) == 300


def test_a_failure_says_whether_it_is_tried_again(system: System) -> None:
    system.send_job(system.folder / "gone")
    poll(system)
    record = only_job(system)
    assert (record.state, record.error_class) == (JobState.FAILED, "SourceNotFoundError")
    assert "Not retried automatically" in (record.reason or "")
    away = {"source_type": "s3", "path": "s3://bucket/x", "endpoint_url": "http://127.0.0.1:9", "region": "eu-west-1"}
    system.settings = changed(
        system.settings, "polling", allowed_source_hosts=["127.0.0.1"], allowed_buckets=["bucket"]
    )
    system.restart()
    system.send_job("", source_config=away)
    poll(system)
    record = next(record for record in system.services.polling_jobs.list() if record.job.source_type == "s3")
    assert (record.state, record.error_class) == (JobState.PENDING, "SourceUnreachableError")
    assert "Retried automatically" in (record.reason or "")


def standing(system: System, **more: object) -> None:
    config = {"source_type": "local", "path": str(system.folder)}
    source = ConfiguredSource.model_validate({"source_config": config, "every_seconds": 60, **more})
    system.settings = system.settings.model_copy(update={"sources": {"inbox": source}})
    system.restart()


def test_a_configured_source_is_listed_once_in_each_interval_whatever_process_ticks(system: System) -> None:
    standing(system)
    system.write("a.csv", readings())
    beginning = datetime(2026, 1, 15, 10, 30, 5, tzinfo=UTC)
    queue = system.services.polling_jobs
    source = system.settings.sources["inbox"]

    def enter(now: datetime) -> int:
        return len(queue.begin_intervals([standing_job("inbox", source, 60, now)], now))

    assert [enter(beginning), enter(beginning), enter(beginning + timedelta(seconds=54))] == [1, 0, 0]
    (due,) = queue.due("standing-jobs", 10, datetime.now(UTC))
    assert enter(beginning + timedelta(seconds=60)) == 0, "one that is not finished is not entered again"
    queue.claim("batch", [due.key], beginning)
    queue.begin([due.key], "run", beginning)
    queue.finish_listing(due.key, 1, {}, beginning)
    queue.mark_reported([due.key], beginning)
    with ThreadPoolExecutor(2) as pool:
        moments = [beginning + timedelta(seconds=seconds) for seconds in (60, 61)]
        assert sum(pool.map(enter, moments)) == 1


def test_a_standing_job_ingests_what_arrives_and_is_one_job_and_one_partition(system: System) -> None:
    # So long that no interval ends while a slow machine works.
    length = 1_000_000_000
    standing(system, every_seconds=length)
    system.write("a.csv", readings())
    poll(system, STANDING)
    assert not system.requests(STANDING)
    system.drive()
    assert system.states() == {"a.csv": "ingested"}
    record = only_job(system)
    assert (record.state, record.files_published, record.standing) == (JobState.DONE, 1, True)
    assert system.times_materialized(DISCOVERED) == 1
    later = datetime.now(UTC) + timedelta(seconds=length)
    next_look = standing_job("inbox", system.settings.sources["inbox"], length, later)
    assert system.services.polling_jobs.begin_intervals([next_look], datetime.now(UTC))
    poll(system, STANDING)
    assert only_job(system).skipped == {ANNOUNCED_BEFORE: 1}
    assert system.times_materialized(DISCOVERED) == 1, "a look that found nothing new leaves no event"
