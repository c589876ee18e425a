"""When a failed attempt is followed by another one, and in which retry topic it waits until then."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta


def next_attempt_at(
    failed_at: datetime, attempt: int, delays: Sequence[timedelta], asked_for: timedelta | None = None
) -> datetime | None:
    """When to try again, or None once every delay is used up.

    Args:
        failed_at: when the attempt ended.
        attempt: which one that was, the first being 1.
        delays: of the retry topics, in order.
        asked_for: how long the host wants to be left alone; a longer pause than ours is kept.
    """
    if attempt > len(delays):
        return None
    return failed_at + max(delays[attempt - 1], asked_for or delays[attempt - 1])


def retry_topic(attempt: int, topics: Sequence[str]) -> str:
    """The topic in which a task waits after so many attempts, the first being 1."""
    return topics[min(attempt, len(topics)) - 1]
