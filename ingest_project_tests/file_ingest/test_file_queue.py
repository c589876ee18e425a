"""Promises of the queue of files alone, the same on PostgreSQL and SQLite."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import msgspec
import pytest

from ingest_project.contracts import encode
from ingest_project.file_ingest.file_queue import FileArrival, FileQueue, QuarantineShare, origin_of
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.database import open_engine
from ingest_project.platform.work_queue.queue import Recorded, RequeuedEntries
from ingest_project_tests.file_ingest.samples import NOW, TOPIC, arrival, retries

LATER = NOW + timedelta(minutes=1)


@pytest.fixture
def queue(database_url: str) -> Iterator[FileQueue]:
    engine = open_engine(database_url)
    yield FileQueue(engine)
    engine.dispose()


def state(queue: FileQueue, key: str) -> FileState:
    record = queue.get(key)
    assert record is not None
    return record.state


def due(queue: FileQueue, now: datetime, limit: int = 10) -> tuple[str, ...]:
    return tuple(entry.key for entry in queue.due(TOPIC, limit, now))


def of_folder(name: str, number: int) -> FileArrival:
    sent = arrival(f"{name}/{number}", number)
    return sent._replace(event=msgspec.structs.replace(sent.event, source_config={"path": f"/in/{name}"}))


def test_a_file_comes_back_with_its_event_and_its_kafka_position(queue: FileQueue) -> None:
    sent = arrival("a.csv~1", 7)
    assert queue.record([sent], NOW) == Recorded(new=("a.csv~1",))
    record = queue.get("a.csv~1")
    assert record is not None
    assert record.event == msgspec.structs.replace(sent.event, file_type="csv")
    assert record.kafka_position == sent.kafka_position
    assert (record.state, record.attempts, record.created_at, record.location) == ("pending", 0, NOW, sent.location)
    assert b'"file_path":"/in/a.csv~1"' in encode(record)


def test_text_that_no_database_can_hold_is_made_storable(queue: FileQueue) -> None:
    sent = arrival("a")
    event = msgspec.structs.replace(sent.event, trace_id="t\x00", metadata={"k\x00": ["v\x00", "\\u0000"]})
    queue.record([sent._replace(event=event)], NOW)
    record = queue.get("a")
    assert record is not None
    assert (record.event.trace_id, record.event.metadata) == ("t\ufffd", {"k\ufffd": ["v\ufffd", "\\u0000"]})


def test_two_ticks_that_record_the_same_files_at_once_enter_each_once(database_url: str) -> None:
    at_once = threading.Barrier(3)

    def record(order: int) -> Recorded:
        engine = open_engine(database_url)
        at_once.wait(timeout=10)
        found = FileQueue(engine).record([arrival(f"f{n}", n) for n in range(300)][::order], NOW)
        engine.dispose()
        return found

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(record, (1, -1, 1)))
    assert sorted(key for each in found for key in each.new) == sorted(f"f{n}" for n in range(300))


def test_files_wait_their_turn_the_oldest_first(queue: FileQueue) -> None:
    queue.record([arrival("late")], LATER)
    queue.record([arrival("early")], NOW)
    queue.record([arrival("elsewhere", topic="file_events")], NOW)
    assert due(queue, NOW) == ("early",)
    assert due(queue, LATER) == ("early", "late")
    assert due(queue, LATER, limit=1) == ("early",)


def test_each_origin_has_the_same_share_of_the_next_batch(queue: FileQueue) -> None:
    queue.record([of_folder("noisy", n) for n in range(5_000)], NOW)
    queue.record([of_folder("late", n) for n in range(5)], LATER)
    queue.record([of_folder("later", n) for n in range(300)], LATER)
    later_still = LATER + timedelta(minutes=1)
    asked = Counter(key.partition("/")[0] for key in due(queue, later_still, limit=400))
    assert asked == {"late": 5, "later": 133, "noisy": 262}, "what a small one leaves over goes to who waits longest"
    first = [key.partition("/")[0] for key in due(queue, later_still, limit=400)[:15]]
    assert Counter(first) == {"late": 5, "later": 5, "noisy": 5}, "by turns"
    assert Counter(key.partition("/")[0] for key in due(queue, NOW, limit=400)) == {"noisy": 400}


def test_with_more_origins_than_slots_those_that_wait_longest_are_first(queue: FileQueue) -> None:
    for minute in range(7):
        queue.record([of_folder(f"folder-{minute}", n) for n in range(3)], NOW + timedelta(minutes=minute))
    asked = due(queue, NOW + timedelta(hours=1), limit=4)
    assert [key.partition("/")[0] for key in asked] == [f"folder-{minute}" for minute in range(4)]


def test_a_location_is_one_origin_however_its_files_are_announced() -> None:
    event = arrival("a.csv").event
    assert origin_of(event, "local:/in/a.csv") == origin_of(msgspec.structs.replace(event, job_id="another"), "any")
    alone = msgspec.structs.replace(event, source_config={})
    assert origin_of(alone, "local:/in/a.csv") == origin_of(alone, "local:/in/b.csv")
    assert origin_of(alone, "local:/in/a.csv") != origin_of(alone, "local:/out/a.csv")


def test_the_same_offset_under_another_topic_id_is_another_position(queue: FileQueue) -> None:
    queue.record([arrival("a", 1)], NOW)
    queue.claim("batch", ["a"], NOW)
    assert queue.record([arrival("a", 1, topic_id="g2")], NOW) == Recorded(known=("a",))


def test_the_batch_of_a_dead_run_is_halved_until_the_culprit_is_alone(queue: FileQueue) -> None:
    keys = [f"{number:02d}" for number in range(16)]
    queue.record([arrival(key) for key in keys], NOW)
    now, sizes = NOW, []
    while due_now := queue.due(TOPIC, 100, now):
        groups: dict[str | None, list[str]] = {}
        for entry in due_now:
            groups.setdefault(entry.retry_group, []).append(entry.key)
        for batch in groups.values():
            sizes.append(len(batch))
            batch_id, run_id = f"batch-{len(sizes)}", f"run-{len(sizes)}"
            assert len(queue.claim(batch_id, batch, now)) == len(batch)
            queue.begin(batch, run_id, now)
            if "05" in batch:
                queue.requeue_lost(batch_id, run_id, "killed", retries(6), now)
            else:
                queue.fail(batch, "stands for done", "Error", now)
                queue.mark_reported(batch, now)
        now += timedelta(minutes=5)
    assert sizes == [16, 8, 8, 4, 4, 2, 2, 1, 1, 1], "alone after four losses, and then its attempts are used up"
    reasons = {key: record.reason for key in keys if (record := queue.get(key)) is not None}
    assert reasons.pop("05") == "killed"
    assert set(reasons.values()) == {"stands for done"}
    assert state(queue, "05") == "failed"


def test_a_reopened_file_is_no_longer_bound_to_the_version_that_was_announced(queue: FileQueue) -> None:
    queue.record([arrival("a")], NOW)
    queue.fail(["a"], "why", "Error", NOW)
    queue.reopen(["a"], LATER)
    record = queue.get("a")
    assert record is not None
    assert (record.event.size_bytes, record.event.modified_at, record.event.etag) == (None, None, None)
    assert (record.location, record.event.job_id, record.reason) == ("local:/in/a", "job_123", "why")


def test_files_are_listed_by_state_and_text_the_last_changed_first(queue: FileQueue) -> None:
    queue.record([arrival("a_1"), arrival("ax1"), arrival("B%")], NOW)
    queue.fail(["a_1"], "Disk on fire", "Error", LATER)
    assert [r.file_key for r in queue.list()] == ["a_1", "B%", "ax1"]
    assert [r.file_key for r in queue.list(state=FileState.PENDING)] == ["B%", "ax1"]
    assert [r.file_key for r in queue.list(text="a_")] == ["a_1"]
    assert [r.file_key for r in queue.list(text="%")] == ["B%"]
    assert [r.file_key for r in queue.list(text="DISK")] == ["a_1"]
    assert [r.file_key for r in queue.list(limit=1)] == ["a_1"]


def test_counts_name_every_state(queue: FileQueue) -> None:
    assert set(queue.counts_by_state().values()) == {0}
    queue.record([arrival("a"), arrival("b")], NOW)
    queue.fail(["a"], "why", "Error", NOW)
    counts = queue.counts_by_state()
    assert set(counts) == set(FileState)
    assert (counts[FileState.PENDING], counts[FileState.FAILED]) == (1, 1)


def test_the_share_of_quarantined_files_counts_recently_finished_ones(queue: FileQueue) -> None:
    assert queue.quarantine_share(NOW).share == 0.0
    queue.record([arrival("a"), arrival("b"), arrival("c")], NOW)
    queue.fail(["a"], "why", "Error", NOW)
    queue.fail(["b"], "why", "Error", LATER)
    assert queue.quarantine_share(LATER) == QuarantineShare(finished=1, quarantined=0)
    assert queue.quarantine_share(NOW).finished == 2


def test_the_file_that_waits_longest_is_known(queue: FileQueue) -> None:
    assert queue.oldest_unfinished() is None
    queue.record([arrival("late")], LATER)
    queue.record([arrival("early"), arrival("failed")], NOW)
    queue.fail(["failed"], "why", "Error", LATER)
    oldest = queue.oldest_unfinished()
    assert oldest is not None
    assert oldest.file_key == "early"


def test_thousands_of_files_go_through_every_step_in_bulk(queue: FileQueue) -> None:
    keys = [f"file_{number}.csv~{number:010x}" for number in range(6_000)]
    assert len(queue.record([arrival(key, number) for number, key in enumerate(keys)], NOW).new) == 6_000
    assert len(queue.due(TOPIC, 10_000, NOW)) == 6_000
    assert queue.claim("batch", keys, NOW) == tuple(keys)
    assert [record.file_key for record in queue.begin(keys, "run", NOW)] == keys
    assert queue.requeue_later(keys, "why", "Error", retries(5), NOW) == RequeuedEntries(pending=6_000)
