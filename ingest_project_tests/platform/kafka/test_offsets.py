"""Positions to and from a cursor, and their adjustment when the log has changed."""

from __future__ import annotations

import collections

import pytest

from ingest_project.core.errors import IngestError
from ingest_project.platform.kafka.offsets import LogBounds, Positions, TopicState, fair_shares, starting_points

STATE = TopicState("life-2", {0: LogBounds(10, 20), 1: LogBounds(0, 5)})


def test_positions_survive_the_cursor() -> None:
    positions = Positions("life-1", {10: 7, 2: 2**40})
    assert positions.to_cursor() == '{"topic_id":"life-1","next_offsets":{"2":1099511627776,"10":7}}'
    assert Positions.from_cursor(positions.to_cursor()) == positions


@pytest.mark.parametrize("cursor", [None, ""])
def test_an_empty_cursor_has_no_positions(cursor: str | None) -> None:
    assert Positions.from_cursor(cursor) is None


@pytest.mark.parametrize(
    "cursor", ["garbage", "{}", '{"topic_id":"a","next_offsets":{"0":-1}}', '{"topic_id":"a","next_offsets":[1]}']
)
def test_an_unreadable_cursor_is_an_error_that_says_what_to_do(cursor: str) -> None:
    with pytest.raises(IngestError, match="Reset the sensor's cursor"):
        Positions.from_cursor(cursor)


def test_the_first_read_starts_where_the_setting_says() -> None:
    assert starting_points("t", None, STATE, "earliest").offsets == {0: 10, 1: 0}
    assert starting_points("t", None, STATE, "latest").offsets == {0: 20, 1: 5}


def test_a_position_inside_the_log_is_kept_without_a_word() -> None:
    begin = starting_points("t", Positions("life-2", {0: 10, 1: 5}), STATE, "latest")
    assert (begin.offsets, begin.notices) == ({0: 10, 1: 5}, [])


def test_each_partition_goes_on_from_its_own_right_end() -> None:
    begin = starting_points("t", Positions("life-2", {0: 3, 1: 6, 2: 9}), STATE, "earliest")
    assert begin.offsets == {0: 10, 1: 0}
    assert len(begin.notices) == 3


def test_an_unknown_topic_id_is_never_compared() -> None:
    assert starting_points("t", Positions("", {0: 15, 1: 1}), STATE, "earliest").notices == []
    assert len(starting_points("t", Positions("life-1", {0: 15, 1: 1}), STATE, "earliest").notices) == 1


def test_fair_shares_use_all_slots_and_starve_no_one() -> None:
    assert fair_shares({0: 1, 1: 100, 2: 0}, 10) == {0: 1, 1: 9}
    assert fair_shares({0: 3, 1: 2}, 100) == {0: 3, 1: 2}
    assert sum(fair_shares({0: 50, 1: 50, 2: 50}, 100).values()) == 100
    served = collections.Counter(next(iter(fair_shares({0: 1, 1: 10**6, 2: 5}, 1))) for _ in range(300))
    assert set(served) == {0, 1, 2}
