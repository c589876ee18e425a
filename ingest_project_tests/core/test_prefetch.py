"""The next thing is made while the one before it is used, and nothing goes on once nobody wants it."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
from structlog.contextvars import get_contextvars

from ingest_project.core.logging import bound
from ingest_project.core.prefetch import prefetch

SECONDS = 30.0


def test_everything_comes_in_its_order() -> None:
    with prefetch(number for number in range(100)) as numbers:
        assert list(numbers) == list(range(100))


def test_the_next_one_is_made_while_the_caller_works() -> None:
    second_begun = threading.Event()

    def made() -> Generator[str, None, None]:
        yield "first"
        second_begun.set()
        yield "second"

    with prefetch(made()) as items:
        for item in items:
            assert item == "second" or second_begun.wait(SECONDS)


def test_what_the_maker_raises_comes_after_what_it_made() -> None:
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
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_lines_of_the_maker_carry_what_is_bound_around_it() -> None:
    def made() -> Generator[dict[str, object], None, None]:
        yield get_contextvars()

    with bound(run_id="r1"), prefetch(made()) as items:
        assert [item["run_id"] for item in items] == ["r1"]
