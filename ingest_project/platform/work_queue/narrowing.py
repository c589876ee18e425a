"""Fewer messages for a tick that did not end: the one that stops its tick is found, and put aside.

A tick contains what one message causes. This is for what no tick can contain: that it takes too long for all of its
messages together, or that not even a dead letter can be made of one. Each time a tick ends so, the next one from the
same positions takes half as many messages; the one that ends a tick alone is refused from then on. What ends well lets
the next tick take twice as many. All of it is kept in this process: after a restart it is found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ingest_project.core.errors import UnexpectedError
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.records import ConsumerRecord
from ingest_project.platform.work_queue.item_errors import is_item_fault

# A tick that was given up by the daemon tells no cause, and a database that hung looks the same.
MOST_UNFINISHED_ALONE = 3
MOST_REFUSED = 10_000

Place = tuple[int, int]


@dataclass
class Attempt:
    """One tick's look at a topic.

    Args:
        saved: where it began.
        max_messages: how many it may take.
        refused: messages, by partition and offset, that ended a tick alone, and how.
        messages: what it read.
    """

    saved: Positions | None
    max_messages: int
    refused: dict[Place, Exception]
    messages: Sequence[ConsumerRecord] = ()
    unfinished_alone: dict[Place, int] = field(default_factory=dict)

    def refusal_of(self, message: ConsumerRecord) -> Exception | None:
        """Why a message is not even looked at; None where it is."""
        return self.refused.get((message.partition, message.offset))


# The last attempt at each topic, until it has ended well.
_attempts: dict[str, Attempt] = {}


@contextmanager
def beginning(topic: str, saved: Positions | None, most: int) -> Iterator[Attempt]:
    """One attempt at a topic; how it ends decides how many messages the next one takes.

    Args:
        topic: to take from.
        saved: where it begins.
        most: messages to take, where nothing is in the way.
    """
    attempt = _next_attempt(_attempts.get(topic), saved, most)
    _attempts[topic] = attempt
    try:
        yield attempt
    except Exception as error:
        if not is_item_fault(error):
            # A service is away: that says nothing about the messages.
            attempt.messages = ()
        elif len(attempt.messages) == 1:
            _refuse(attempt, error)
        raise
    if _attempts.get(topic) is attempt:
        _end_well(topic, attempt, most)


def _next_attempt(last: Attempt | None, saved: Positions | None, most: int) -> Attempt:
    if last is None:
        return Attempt(saved, most, {})
    attempt = Attempt(saved, min(most, last.max_messages), last.refused, unfinished_alone=last.unfinished_alone)
    if last.saved == saved and last.messages:
        attempt.max_messages = max(1, len(last.messages) // 2)
        if len(last.messages) == 1:
            _count_alone(attempt, last.messages[0])
    return attempt


def _count_alone(attempt: Attempt, message: ConsumerRecord) -> None:
    place = (message.partition, message.offset)
    attempt.unfinished_alone[place] = attempt.unfinished_alone.get(place, 0) + 1
    if attempt.unfinished_alone[place] >= MOST_UNFINISHED_ALONE and place not in attempt.refused:
        cause = TimeoutError(f"{MOST_UNFINISHED_ALONE} ticks that took it alone did not end in time")
        attempt.refused[place] = UnexpectedError("Taking this message", cause)


def _refuse(attempt: Attempt, error: Exception) -> None:
    place = (attempt.messages[0].partition, attempt.messages[0].offset)
    if len(attempt.refused) < MOST_REFUSED:
        attempt.refused[place] = UnexpectedError("Taking this message", error)


def _end_well(topic: str, attempt: Attempt, most: int) -> None:
    attempt.messages = ()
    attempt.max_messages *= 2
    if attempt.max_messages >= most:
        del _attempts[topic]
