"""Prefetching overlaps and ends cleanly, and one bad item of a batch fails alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.contextvars import get_contextvars

from ingest_project.core.items import prefetch, rarely_collected, store_bisecting
from ingest_project.core.logging import bound

SECONDS = 30.0


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


def test_a_good_batch_is_one_call_and_an_empty_one_is_none() -> None:
    calls: list[int] = []
    assert store_bisecting(range(100), all_or_nothing(set(), [], calls), bad_value) == []
    assert store_bisecting([], all_or_nothing(set(), [], calls), bad_value) == []
    assert calls == [100]


def test_a_store_that_does_not_answer_is_reported_at_once_and_not_tried_for_each_item() -> None:
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


def test_prefetched_items_keep_their_order() -> None:
    with prefetch(number for number in range(100)) as numbers:
        assert list(numbers) == list(range(100))


def test_the_next_item_is_prefetched_while_the_caller_works() -> None:
    second_begun = threading.Event()

    def made() -> Generator[str, None, None]:
        yield "first"
        second_begun.set()
        yield "second"

    with prefetch(made()) as items:
        for item in items:
            assert item == "second" or second_begun.wait(SECONDS)


def test_an_error_of_the_producer_is_raised_after_its_items() -> None:
    def made() -> Generator[int, None, None]:
        yield 1
        raise ValueError("no more")

    with prefetch(made()) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="no more"):
            next(items)


def test_a_caller_that_stops_has_the_maker_closed_and_its_thread_ended() -> None:
    closed = threading.Event()

    def made() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with prefetch(made()) as items:
        next(items)
    assert closed.is_set()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_lines_of_the_maker_carry_what_is_bound_around_it() -> None:
    def made() -> Generator[dict[str, object], None, None]:
        yield get_contextvars()

    with bound(run_id="r1"), prefetch(made()) as items:
        assert [item["run_id"] for item in items] == ["r1"]


def collections() -> list[int]:
    return [one["collections"] for one in gc.get_stats()]


def test_many_objects_set_off_no_collection_meanwhile() -> None:
    usual = gc.get_threshold()
    with suppress(StoreAwayError), rarely_collected():
        before = collections()
        made: list[list[int]] = [[] for _ in range(20_000)]
        assert collections() == before
        raise StoreAwayError(len(made))
    assert gc.get_threshold() == usual
