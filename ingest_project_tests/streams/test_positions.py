"""Positions of a stream: each move once, a topic that was created again from its start, failures on record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.core.settings import RetrySettings
from ingest_project.platform.database import open_engine, writing
from ingest_project.platform.database.sql import metadata
from ingest_project.platform.kafka.reader import Backlog
from ingest_project.streams.positions import (
    LostOffsets,
    OffsetRange,
    PositionConflictError,
    SinkPosition,
    StreamPositions,
    epochs,
    joined,
    message_totals,
    move,
    removed,
)
from ingest_project_tests.fuzz import examples

NOW = datetime(2026, 1, 15, tzinfo=UTC)
RETRIES = RetrySettings(max_attempts=8, delay_seconds=10, max_delay_seconds=600)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    opened = open_engine(database_url)
    yield opened
    opened.dispose()


@pytest.fixture
def positions(engine: sa.Engine) -> StreamPositions:
    return StreamPositions(engine, "a_stream", "topic")


def backlog(
    topic_id: str, ends: Mapping[int, int], starts: Mapping[int, int] | None = None, log_start: int = 0
) -> Backlog:
    log_starts = dict.fromkeys(ends, log_start)
    return Backlog(topic_id, starts={**log_starts, **(starts or {})}, log_starts=log_starts, ends=ends, notices=[])


def moved(engine: sa.Engine, position: SinkPosition, to: int, **outcome: int) -> SinkPosition:
    with writing(engine) as connection:
        return move(connection, position, to, outcome, NOW)


def test_the_second_of_two_moves_from_one_position_is_refused_and_counts_nothing(
    engine: sa.Engine, positions: StreamPositions
) -> None:
    position = positions.begin(backlog("a", {0: 9}), NOW)[0]
    moved(engine, position, 4, events=4)
    for to in (4, 7):
        with pytest.raises(PositionConflictError):
            moved(engine, position, to, events=to)
    (found,) = positions.all()
    assert (found.next_offset, found.outcome) == (4, {"events": 4})


def test_a_rolled_back_transaction_does_not_move_the_position(engine: sa.Engine, positions: StreamPositions) -> None:
    position = positions.begin(backlog("a", {0: 9}), NOW)[0]
    with engine.connect() as connection:
        move(connection, position, 4, {}, NOW)
        connection.rollback()
    assert positions.current()[0].next_offset == 0


def test_reading_begins_where_the_setting_says_once_and_new_partitions_from_their_beginning(
    positions: StreamPositions,
) -> None:
    positions.begin(backlog("a", {0: 9}, {0: 9}), NOW)
    positions.begin(backlog("a", {0: 12, 1: 3}, {0: 5}), NOW)
    assert {one.partition: one.next_offset for one in positions.all()} == {0: 9, 1: 0}


def test_a_topic_that_was_created_again_is_read_from_its_start_in_the_next_epoch(
    engine: sa.Engine, positions: StreamPositions
) -> None:
    old = positions.begin(backlog("a", {0: 9, 1: 9}), NOW)
    moved(engine, old[0], 9)
    new = positions.begin(backlog("b", {0: 2}), NOW)
    assert [(one.topic_id, one.epoch, one.next_offset) for one in new.values()] == [("b", 1, 0)]
    assert positions.current().keys() == {0}
    with engine.connect() as connection:
        assert epochs(connection, "topic") == {"a": 0, "b": 1}


def test_where_a_broker_names_no_topic_a_log_that_ends_too_early_is_another_one(
    engine: sa.Engine, positions: StreamPositions
) -> None:
    first = positions.begin(backlog("", {0: 9, 1: 9}), NOW)
    moved(engine, first[0], 9)
    assert positions.begin(backlog("", {0: 9, 1: 20}), NOW)[0].next_offset == 9
    again = positions.begin(backlog("", {0: 3, 1: 20}, {0: 0, 1: 5}), NOW)
    assert [(one.topic_id, one.next_offset) for one in again.values()] == [("unnamed-2", 0), ("unnamed-2", 0)]


def test_failures_are_counted_until_the_position_moves_and_the_pause_grows(
    engine: sa.Engine, positions: StreamPositions
) -> None:
    position = positions.begin(backlog("a", {0: 9}), NOW)[0]
    pauses = []
    for number in range(3):
        positions.lease([position], f"run {number}")
        positions.fail([(position, f"reason {number}")], f"run {number}", RETRIES, NOW)
        (failed,) = positions.all()
        pauses.append((failed.next_attempt_at or NOW) - NOW)
    assert pauses == [timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40)]
    assert (failed.attempts, failed.reason, failed.run_id) == (3, "reason 2", None)
    positions.lease([position], "run")
    position = moved(engine, position, 1)
    assert positions.current()[0].attempts == 1
    positions.release([position], "run", is_stored=True)
    (well,) = positions.all()
    assert (well.attempts, well.reason, well.next_attempt_at, well.run_id) == (0, None, None, None)


def test_a_run_settles_only_what_it_leases(positions: StreamPositions) -> None:
    position = positions.begin(backlog("a", {0: 9}), NOW)[0]
    positions.lease([position], "one")
    positions.lease([position], "other")
    positions.release([position], "one", is_stored=True)
    positions.fail([(position, "no")], "one", RETRIES, NOW)
    (held,) = positions.all()
    assert (held.run_id, held.reason, held.attempts) == ("other", None, 2)


def test_times_that_a_clock_ahead_has_set_are_brought_back(positions: StreamPositions) -> None:
    position = positions.begin(backlog("a", {0: 9}), NOW)[0]
    positions.lease([position], "run")
    positions.fail([(position, "no")], "run", RETRIES, NOW + timedelta(days=1))
    assert not positions.all()[0].is_due(NOW)
    assert positions.correct_future_times(NOW, 60) == 1
    assert positions.all()[0].is_due(NOW)
    assert positions.correct_future_times(NOW, 60) == 0


def test_lost_offsets_are_on_record_once_also_where_retention_went_on(positions: StreamPositions) -> None:
    for end in (8, 8, 9, 7):
        positions.add_lost([removed(OffsetRange("topic", "a", 0, 5, end), NOW)])
    (lost,) = positions.lost()
    assert (lost.offsets.end, lost.messages) == (9, 4)
    assert positions.lost(since=NOW + timedelta(seconds=1)) == ()
    assert isinstance(lost, LostOffsets)


def test_messages_are_counted_over_partitions_and_topics_of_one_name(
    engine: sa.Engine, positions: StreamPositions
) -> None:
    for topic_id in ("a", "b"):
        for position in positions.begin(backlog(topic_id, {0: 9, 1: 9}), NOW).values():
            moved(engine, position, 3, events=2, dead_letters=1)
    with engine.connect() as connection:
        assert message_totals(connection)[0] == {("topic", "events"): 8, ("topic", "dead_letters"): 4}


def test_ranges_that_follow_one_another_are_read_as_one() -> None:
    ranges = [OffsetRange("t", "a", 0, 0, 5), OffsetRange("t", "a", 0, 5, 9), OffsetRange("t", "a", 0, 10, 12)]
    assert joined([*reversed(ranges), OffsetRange("t", "b", 0, 12, 13)]) == [
        OffsetRange("t", "a", 0, 0, 9),
        OffsetRange("t", "a", 0, 10, 12),
        OffsetRange("t", "b", 0, 12, 13),
    ]


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 30))
def test_pieces_of_an_offset_range_cover_it_once(first: int, length: int, size: int) -> None:
    pieces = OffsetRange("t", "a", 0, first, first + length).pieces(size)
    assert [offset for one in pieces for offset in range(one.first, one.end)] == list(range(first, first + length))
    assert all(0 < len(one) <= size for one in pieces)


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=30))
def test_concurrent_writers_in_any_order_pass_each_offset_once(steps: list[tuple[int, int, bool]]) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    metadata.create_all(engine)
    positions = StreamPositions(engine, "a_stream", "topic")
    first = positions.begin(backlog("a", {0: 1_000}), NOW)[0]
    seen = dict.fromkeys(range(4), first)
    stored: list[int] = []
    for writer, size, looks in steps:
        position = positions.current()[0] if looks else seen[writer]
        offsets = range(position.next_offset, position.next_offset + size)
        try:
            with engine.begin() as connection:
                seen[writer] = move(connection, position, offsets.stop, {"events": size}, NOW)
        except PositionConflictError:
            continue
        stored += offsets
    assert stored == list(range(len(stored)))
    assert positions.current()[0].outcome.get("events", 0) == len(stored)
