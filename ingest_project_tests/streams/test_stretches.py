"""Ranges that are long done may go: what the checks find, and where planning goes on, stay as they were."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.core.settings import RetrySettings
from ingest_project.platform.database.engine import open_engine, reading, writing
from ingest_project.platform.database.migrate import migrate
from ingest_project.streams.contiguous_intervals import Bounds, StreamIntervals, holes
from ingest_project.streams.range_record import OffsetRange, RangeState, cut
from ingest_project.streams.ranges import StreamRangeLedger
from ingest_project.streams.tables import stream_intervals, stream_ranges
from ingest_project.streams.user_activity.changed_hours import ActivityHours
from ingest_project.streams.user_activity.tables import activity_range_hours

TOPIC, LIFE = "stream", "life"
LONG_AGO = datetime(2026, 1, 15, 10, tzinfo=UTC)
SETTLED = LONG_AGO + timedelta(days=1)
TODAY = LONG_AGO + timedelta(days=60)
MOST = 1_000_000

KILLED_WHILE_LETTING_GO = """
import os, signal, sys
from datetime import datetime
import sqlalchemy as sa
from ingest_project.platform.database.engine import open_engine
from ingest_project.streams.contiguous_intervals import StreamIntervals

engine = open_engine(sys.argv[1])

@sa.event.listens_for(engine, "after_cursor_execute")
def die(connection, cursor, statement, *_):
    if statement.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

stretches, moment = StreamIntervals(engine), datetime.fromisoformat(sys.argv[3])
stretches.extend(moment)
stretches.purge(moment, 1_000)
"""


class Ledgers(NamedTuple):
    """Of ranges, of stretches and of hours, over one database."""

    engine: sa.Engine
    ranges: StreamRangeLedger
    intervals: StreamIntervals
    hours: ActivityHours


@pytest.fixture
def ledgers(database_url: str) -> Iterator[Ledgers]:
    engine = open_engine(database_url)
    yield opened(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def in_memory() -> Iterator[Ledgers]:
    engine = open_engine("sqlite://")
    migrate(engine)
    yield opened(engine)
    engine.dispose()


def opened(engine: sa.Engine) -> Ledgers:
    return Ledgers(engine, StreamRangeLedger(engine), StreamIntervals(engine), ActivityHours(engine))


def ten_each(end: int, partition: int = 0, start: int = 0) -> list[OffsetRange]:
    return cut(TOPIC, LIFE, partition, start, end, 10)


def store(ledgers: Ledgers, ranges: Sequence[OffsetRange], now: datetime = LONG_AGO) -> None:
    """Plan, read and report ranges."""
    ledgers.ranges.plan(ranges, [], now)
    for one in ranges:
        ledgers.ranges.finish(one.key, len(one), 0, {"events": len(one)}, now)
    ledgers.ranges.mark_reported([one.key for one in ranges], now)


def purge(ledgers: Ledgers) -> int:
    ledgers.intervals.extend(SETTLED)
    return ledgers.intervals.purge(SETTLED, MOST)


def on_record(ledgers: Ledgers) -> list[OffsetRange]:
    return sorted(record.offsets for record in ledgers.ranges.list(TOPIC, limit=MOST))


def gaps_and_doubles(ledgers: Ledgers) -> tuple[set[int], set[int]]:
    """The offsets that the checks find in no range, and those that they find in two."""
    gaps: set[int] = set()
    doubles: set[int] = set()
    for seam in ledgers.intervals.seams(TOPIC):
        (gaps if seam.is_gap else doubles).update(range(seam.offsets.first, seam.offsets.end))
    return gaps, doubles


def test_of_every_partition_the_newest_range_stays_and_the_next_plan_begins_where_it_did(ledgers: Ledgers) -> None:
    for partition, end in ((0, 95), (1, 40), (2, 7)):
        store(ledgers, ten_each(end, partition))
    before = ledgers.ranges.planned_ends(TOPIC, LIFE, range(3))
    assert ledgers.intervals.count_old(SETTLED, MOST) == purge(ledgers) == 9 + 3
    assert ledgers.ranges.planned_ends(TOPIC, LIFE, range(3)) == before == {0: 95, 1: 40, 2: 7}
    assert ledgers.ranges.first_planned(TOPIC, LIFE, 0) == 0
    assert [str(one) for one in on_record(ledgers)] == ["stream[0] 90 to 94", "stream[1] 30 to 39", "stream[2] 0 to 6"]
    assert ledgers.intervals.count_old(SETTLED, MOST) == purge(ledgers) == 0
    assert ledgers.intervals.seams(TOPIC) == ()


def test_what_failed_got_lost_waits_or_is_in_a_runs_hands_stays_however_old_it_is(ledgers: Ledgers) -> None:
    done, failed, lost, waits, running, unreported, newest = ranges = ten_each(70)
    store(ledgers, ranges)
    ledgers.ranges.begin([failed.key, waits.key, running.key, unreported.key], "run", LONG_AGO)
    ledgers.ranges.requeue_later([failed.key], "broken", "X", RetrySettings(max_attempts=1, delay_seconds=0), LONG_AGO)
    ledgers.ranges.requeue_later([waits.key], "broken", "X", RetrySettings(max_attempts=9, delay_seconds=0), LONG_AGO)
    ledgers.ranges.finish(unreported.key, 10, 0, {}, LONG_AGO)
    ledgers.ranges.finish(lost.key, 5, 5, {}, LONG_AGO)
    assert purge(ledgers) == 1
    assert on_record(ledgers) == [failed, lost, waits, running, unreported, newest]
    assert ledgers.ranges.get_many([done.key]) == ()
    ledgers.ranges.finish(failed.key, 10, 0, {}, LONG_AGO)
    ledgers.ranges.mark_reported([failed.key], LONG_AGO)
    assert purge(ledgers) == 1
    assert ledgers.intervals.seams(TOPIC) == ()


def test_nothing_goes_that_was_done_later_or_planned_so_late_that_a_tick_may_still_be_at_it(ledgers: Ledgers) -> None:
    old, new = ten_each(50), ten_each(90, start=50)
    store(ledgers, old)
    store(ledgers, new, TODAY)
    assert purge(ledgers) == 4
    ledgers.intervals.purge(TODAY + timedelta(days=1), MOST)
    assert on_record(ledgers) == [old[-1], *new]


def test_a_range_that_was_let_go_is_not_planned_again_however_late_and_however_it_is_cut(ledgers: Ledgers) -> None:
    store(ledgers, ten_each(50))
    purge(ledgers)
    stays = on_record(ledgers)
    for again in (ten_each(50), cut(TOPIC, LIFE, 0, 5, 50, 7)):
        assert ledgers.ranges.plan(again, [], TODAY) == 0
    assert ledgers.ranges.plan([], [OffsetRange(TOPIC, LIFE, 0, 20, 40)], TODAY) == 0
    assert on_record(ledgers) == stays
    assert ledgers.ranges.plan(ten_each(20, partition=1), [], TODAY) == 2
    assert ledgers.ranges.plan(ten_each(70, start=50), [], TODAY) == 2


def test_what_is_planned_before_the_first_offset_joins_the_stretch_after_it(ledgers: Ledgers) -> None:
    store(ledgers, ten_each(100, start=50))
    purge(ledgers)
    assert ledgers.ranges.first_planned(TOPIC, LIFE, 0) == 50
    store(ledgers, ten_each(50))
    assert ledgers.intervals.seams(TOPIC) == ()
    purge(ledgers)
    with reading(ledgers.engine) as connection:
        assert connection.execute(sa.select(stream_intervals)).all() == [(TOPIC, LIFE, 0, 0, 100)]
    assert len(on_record(ledgers)) == 1


def test_a_gap_is_found_until_it_is_filled(ledgers: Ledgers) -> None:
    first, missing, *others = ten_each(60)
    store(ledgers, [first, *others])
    for _ in range(2):
        purge(ledgers)
        assert gaps_and_doubles(ledgers) == (set(range(10, 20)), set())
    store(ledgers, [missing])
    assert ledgers.intervals.seams(TOPIC) == ()
    purge(ledgers)
    assert ledgers.intervals.seams(TOPIC) == ()
    assert ledgers.intervals.count_old(SETTLED, MOST) == 0


def test_an_hour_is_still_rebuilt_from_the_offsets_that_had_its_events(ledgers: Ledgers) -> None:
    ranges = ten_each(80)
    store(ledgers, ranges)
    for one in ranges[2:5]:
        ledgers.hours.mark_changed(one.key, {LONG_AGO: 10}, LONG_AGO)
    ledgers.hours.mark_changed(ranges[-1].key, {LONG_AGO: 1}, LONG_AGO)
    for _ in range(2):
        purge(ledgers)
        assert ledgers.hours.ranges_of(LONG_AGO) == (OffsetRange(TOPIC, LIFE, 0, 20, 50), ranges[-1])
    store(ledgers, ten_each(100, start=80))
    purge(ledgers)
    # From the first to the last, with what lies between.
    assert ledgers.hours.ranges_of(LONG_AGO) == (OffsetRange(TOPIC, LIFE, 0, 20, 80),)
    with reading(ledgers.engine) as connection:
        assert connection.execute(sa.select(activity_range_hours)).all() == []


@pytest.mark.parametrize("last_words", ["INSERT INTO stream_intervals", "DELETE FROM stream_ranges"])
def test_killed_in_the_middle_everything_is_as_before_and_goes_the_next_time(ledgers: Ledgers, last_words: str) -> None:
    ranges = ten_each(100)
    store(ledgers, ranges)
    for one in ranges:
        ledgers.hours.mark_changed(one.key, {LONG_AGO: 10}, LONG_AGO)
    url = ledgers.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", KILLED_WHILE_LETTING_GO, url, last_words, SETTLED.isoformat()]
    killed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert on_record(ledgers) == ranges
    assert len(ledgers.hours.ranges_of(LONG_AGO)) == len(ranges)
    assert ledgers.intervals.seams(TOPIC) == ()
    assert purge(ledgers) == 9
    assert ledgers.hours.ranges_of(LONG_AGO) == (OffsetRange(TOPIC, LIFE, 0, 0, 90), ranges[-1])


def test_while_old_ranges_go_two_processes_plan_on_and_no_offset_is_left_out_or_planned_twice(ledgers: Ledgers) -> None:
    store(ledgers, ten_each(600))

    def plan_on(_: int) -> None:
        planner = StreamRangeLedger(ledgers.engine)
        for _ in range(15):
            end = planner.planned_ends(TOPIC, LIFE, [0])[0]
            planner.plan(cut(TOPIC, LIFE, 0, end, end + 20, 10), [], TODAY)

    def remove(_: int) -> None:
        for _ in range(10):
            ledgers.intervals.extend(SETTLED)
            ledgers.intervals.purge(SETTLED, 4)
            assert ledgers.intervals.seams(TOPIC) == ()

    with ThreadPoolExecutor(4) as threads:
        for work in [threads.submit(what, number) for number in range(2) for what in (plan_on, remove)]:
            work.result()
    purge(ledgers)
    assert ledgers.intervals.seams(TOPIC) == ()
    first, *others = on_record(ledgers)
    assert (first.first, first.end) == (590, 600)
    assert [one.first for one in others] == list(range(600, ledgers.ranges.planned_ends(TOPIC, LIFE, [0])[0], 10))


ANY_RANGE = st.tuples(
    st.integers(0, 40), st.integers(1, 12), st.integers(0, 9), st.integers(0, 9), st.sampled_from(["done", "failed"])
)
ANY_TIMES = st.tuples(st.integers(0, 10), st.integers(0, 10))


@settings(deadline=None, max_examples=60)
@given(
    ranges=st.lists(ANY_RANGE, min_size=1, max_size=12, unique_by=lambda one: one[0]),
    times=st.lists(ANY_TIMES, max_size=5),
)
def test_in_whatever_order_ranges_go_the_checks_find_the_same_gaps_and_doubles(
    in_memory: Ledgers, ranges: list[tuple[int, int, int, int, str]], times: list[tuple[int, int]]
) -> None:
    forget_all(in_memory.engine)
    for first, length, planned_at, took, state in ranges:
        one, now = OffsetRange(TOPIC, LIFE, 0, first, first + length), LONG_AGO + timedelta(hours=planned_at)
        in_memory.ranges.plan([one], [], now)
        if state == "done":
            in_memory.ranges.finish(one.key, length, 0, {}, now + timedelta(hours=took))
            in_memory.ranges.mark_reported([one.key], now)
    covered = [offset for first, length, *_ in ranges for offset in range(first, first + length)]
    missing = set(range(min(covered), max(covered))) - set(covered)
    twice = {offset for offset in covered if covered.count(offset) > 1}
    for settled, before in times:
        assert gaps_and_doubles(in_memory) == (missing, twice)
        in_memory.intervals.extend(LONG_AGO + timedelta(hours=settled))
        in_memory.intervals.purge(LONG_AGO + timedelta(hours=before), MOST)
    assert gaps_and_doubles(in_memory) == (missing, twice)
    assert in_memory.ranges.planned_ends(TOPIC, LIFE, [0]) == {0: max(covered) + 1}
    assert in_memory.ranges.first_planned(TOPIC, LIFE, 0) == min(covered)
    unfinished = in_memory.ranges.counts_by_state(TOPIC)[RangeState.PENDING]
    assert unfinished == sum(state == "failed" for *_, state in ranges)


def forget_all(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        for table in (stream_ranges, stream_intervals):
            connection.execute(sa.delete(table))


@pytest.mark.parametrize(
    ("known", "found"),
    [
        ([], [(0, None)]),
        ([(0, 10)], [(10, None)]),
        ([(5, 10), (20, 30)], [(0, 5), (10, 20), (30, None)]),
        ([(0, 30), (5, 10), (30, 40)], [(40, None)]),
    ],
)
def test_holes_are_what_no_stretch_has(known: list[tuple[int, int]], found: list[tuple[int, int | None]]) -> None:
    told = holes([Bounds(*one) for one in known])
    assert [(one.first, None if one.end > 10**9 else one.end) for one in told] == found


def test_the_tenth_life_without_a_name_comes_after_the_ninth(ledgers: Ledgers) -> None:
    for number in range(1, 11):
        ledgers.ranges.plan([OffsetRange(TOPIC, f"life-{number}", 0, 0, 10)], [], LONG_AGO)
    ledgers.ranges.plan([OffsetRange(TOPIC, "named", 0, 0, 10)], [], LONG_AGO)
    assert ledgers.ranges.latest_life(TOPIC, {0: 10}) == "life-10"
    assert ledgers.ranges.latest_life(TOPIC, {0: 9}) == "life-11"
    assert ledgers.ranges.latest_life("another", {0: 9}) == "life-1"
