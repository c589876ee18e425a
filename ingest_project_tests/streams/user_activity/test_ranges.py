"""What a tick asks for: each partition's ranges in order, never two runs at one partition."""

from __future__ import annotations

from datetime import UTC, datetime

from ingest_project.streams.range_record import OffsetRange, RangeRecord, RangeState
from ingest_project.streams.user_activity.range_batches import batches_of, ready
from ingest_project.streams.user_activity.recompute_hours import joined

NOW = datetime(2026, 1, 15, tzinfo=UTC)


def record(
    partition: int, first: int, state: RangeState = RangeState.PENDING, size: int = 100_000, life: str = "a"
) -> RangeRecord:
    offsets = OffsetRange("t", life, partition, first * size, (first + 1) * size)
    return RangeRecord(
        range_key=offsets.key, offsets=offsets, state=state, attempts=0, reason=None, run_id=None, messages=None,
        outcome=None, created_at=NOW, finished_at=None,
    )  # fmt: skip


def keys(records: list[RangeRecord]) -> frozenset[str]:
    return frozenset(one.range_key for one in records)


def test_a_partition_that_a_run_works_on_is_left_alone() -> None:
    busy = [record(0, 0, RangeState.RUNNING), record(0, 1)]
    free = [record(1, 0), record(1, 1)]
    assert ready([*busy, *free], keys([*busy, *free])) == [free]


def test_a_range_that_has_to_wait_holds_up_those_behind_it() -> None:
    records = [record(0, number) for number in range(4)]
    assert ready(records, keys([*records[:2], records[3]])) == [records[:2]]
    assert ready(records, keys(records[1:])) == []


def test_partitions_are_divided_evenly_and_none_is_in_two_runs() -> None:
    topic_partitions = [
        [record(partition, number) for number in range(size)] for partition, size in enumerate([4, 1, 1, 2])
    ]
    batches = batches_of(topic_partitions, 10_000_000, 2)
    assert sorted(batch.offsets for batch in batches) == [400_000, 400_000]
    parts = [{one.offsets.partition for one in batch.records} for batch in batches]
    assert parts[0].isdisjoint(parts[1])
    assert len({batch.batch_id for batch in batches}) == 2


def test_little_work_is_one_run_and_two_lives_of_a_topic_are_never_in_one() -> None:
    few = [[record(partition, 0, size=10)] for partition in range(4)]
    assert len(batches_of(few, 1_000, 2)) == 1
    lives = [[record(0, 0, size=10, life="a")], [record(0, 0, size=10, life="b")]]
    assert len(batches_of(lives, 1_000, 1)) == 2


def test_a_run_has_a_bounded_number_of_offsets_and_at_least_one_range_of_each_partition() -> None:
    topic_partitions = [[record(partition, number) for number in range(10)] for partition in range(2)]
    (batch,) = batches_of(topic_partitions, 400_000, 1)
    assert batch.offsets == 400_000
    (tiny,) = batches_of(topic_partitions, 1, 1)
    assert [one.offsets.first for one in tiny.records] == [0, 0]


def test_ranges_that_follow_one_another_are_read_as_one() -> None:
    ranges = [OffsetRange("t", "a", 0, 0, 5), OffsetRange("t", "a", 0, 5, 9), OffsetRange("t", "a", 0, 10, 12)]
    assert joined([*reversed(ranges), OffsetRange("t", "b", 0, 12, 13)]) == [
        OffsetRange("t", "a", 0, 0, 9),
        OffsetRange("t", "a", 0, 10, 12),
        OffsetRange("t", "b", 0, 12, 13),
    ]
