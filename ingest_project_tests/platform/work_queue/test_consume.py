"""After a tick that did not end, the next one consumes fewer messages, down to the one that kills it."""

from __future__ import annotations

from contextlib import suppress

import pytest

from ingest_project.core.errors import DatabaseUnavailableError, UnexpectedError
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.work_queue.consume import MAX_UNFINISHED_ALONE, Attempt, attempting

MESSAGES = [ConsumerRecord("t", 0, offset, None, None, b"", ()) for offset in range(100)]
POISON = 61


def tick(topic: str, first: int, *, most: int = 100) -> tuple[int, Attempt]:
    """One tick from an offset on, which the poisonous message ends; where the next one goes on."""
    with attempting(topic, Positions("", {0: first}), most) as attempt:
        attempt.messages = MESSAGES[first : first + attempt.max_messages]
        wanted = [message for message in attempt.messages if attempt.refusal_of(message) is None]
        if any(message.offset == POISON for message in wanted):
            raise ValueError("it cannot be dead-lettered")
        return first + len(attempt.messages), attempt
    raise AssertionError


def test_the_message_that_ends_its_tick_is_found_and_refused_and_all_others_are_taken() -> None:
    first, ticks = 0, 0
    while first < len(MESSAGES):
        ticks += 1
        assert ticks < 40
        with suppress(ValueError):
            first, _ = tick("narrowed", first)
    _, attempt = tick("narrowed", 0, most=10)
    assert attempt.max_messages in {10, 20}, "what went well takes more again"


def test_a_message_that_ended_its_tick_alone_says_why_it_is_refused() -> None:
    with suppress(ValueError):
        tick("alone", POISON, most=1)
    _, attempt = tick("alone", POISON, most=1)
    refusal = attempt.refusal_of(MESSAGES[POISON])
    assert isinstance(refusal, UnexpectedError)
    assert "it cannot be dead-lettered" in str(refusal)


def test_a_service_that_is_away_narrows_nothing_and_refuses_nothing() -> None:
    def away() -> None:
        with attempting("away", Positions("", {0: 0}), 1) as attempt:
            attempt.messages = MESSAGES[:1]
            raise DatabaseUnavailableError("db", "gone")

    for _ in range(5):
        with pytest.raises(DatabaseUnavailableError):
            away()
    with attempting("away", Positions("", {0: 0}), 100) as attempt:
        assert attempt.refusal_of(MESSAGES[0]) is None


def test_ticks_that_the_daemon_gave_up_take_half_and_in_the_end_refuse_the_one_that_hangs() -> None:
    sizes = []
    for _ in range(MAX_UNFINISHED_ALONE + 3):
        # Left without an end, as a thread that hangs leaves it.
        attempt = attempting("hanging", Positions("", {0: 0}), 4).__enter__()
        attempt.messages = MESSAGES[: attempt.max_messages]
        sizes.append(len(attempt.messages))
    assert sizes[:3] == [4, 2, 1]
    assert attempt.refusal_of(MESSAGES[0]) is not None
    assert attempt.refusal_of(MESSAGES[1]) is None
