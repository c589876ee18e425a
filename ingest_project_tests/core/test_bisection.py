"""One bad item of a batch costs itself alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.core.bisection import store_bisecting


class StoreAwayError(Exception):
    """The store itself fails, whatever is stored."""


def bad_value(error: Exception) -> bool:
    return isinstance(error, ValueError)


def all_or_nothing(bad: set[int], stored: list[int], calls: list[int]) -> Callable[[Sequence[int]], None]:
    """A store that refuses a whole call for the sake of one bad item."""

    def store(items: Sequence[int]) -> None:
        calls.append(len(items))
        if culprits := bad.intersection(items):
            raise ValueError(f"{min(culprits)} cannot be stored")
        stored.extend(items)

    return store


def test_one_bad_item_among_99_good_ones_fails_alone_and_the_others_are_stored_at_once() -> None:
    stored: list[int] = []
    calls: list[int] = []
    failures = store_bisecting(range(100), all_or_nothing({41}, stored, calls), bad_value)
    assert [(item, str(error)) for item, error in failures] == [(41, "41 cannot be stored")]
    assert stored == [number for number in range(100) if number != 41]
    assert len(calls) <= 2 * ceil(log2(100)) + 1


def test_a_batch_without_a_bad_item_is_one_call_and_an_empty_one_none() -> None:
    calls: list[int] = []
    assert store_bisecting(range(100), all_or_nothing(set(), [], calls), bad_value) == []
    assert store_bisecting([], all_or_nothing(set(), [], calls), bad_value) == []
    assert calls == [100]


def test_a_store_that_is_away_is_told_at_once_and_not_asked_for_each_item() -> None:
    calls: list[int] = []

    def away(items: Sequence[int]) -> None:
        calls.append(len(items))
        raise StoreAwayError

    with pytest.raises(StoreAwayError):
        store_bisecting(range(100), away, bad_value)
    assert calls == [100]


@given(count=st.integers(0, 60), bad=st.sets(st.integers(0, 59)))
def test_each_item_is_either_stored_once_or_a_failure_in_the_items_order(count: int, bad: set[int]) -> None:
    stored: list[int] = []
    failures = store_bisecting(range(count), all_or_nothing(bad, stored, []), bad_value)
    assert [item for item, _ in failures] == sorted(bad.intersection(range(count)))
    assert stored == [item for item in range(count) if item not in bad]
