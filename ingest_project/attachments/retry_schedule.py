"""When a failed attempt is retried, in which retry topic it waits, and how many wait in each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.tables import attachments
from ingest_project.platform.database.engine import reading
from ingest_project.platform.work_queue.states import AttachmentState


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


class Pending(msgspec.Struct, frozen=True):
    """Attachments that wait with one number of attempts behind them.

    Args:
        attempt: which one comes next, the first being 1.
    """

    queue_name: str
    attempt: int
    waiting: int
    due: int
    next_due_at: datetime


def pending_at(engine: sa.Engine, now: datetime) -> tuple[Pending, ...]:
    """Attachments that wait, by queue and attempt. `next_due_at` is the first time after now, where there is one.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: it could not be asked.
    """
    columns = attachments.c
    is_due = columns.next_attempt_at <= now
    query = (
        sa.select(
            columns.queue_name,
            columns.attempt,
            sa.func.count().label("waiting"),
            sa.func.count().filter(is_due).label("due"),
            sa.func.coalesce(
                sa.func.min(columns.next_attempt_at).filter(~is_due),
                sa.func.min(columns.next_attempt_at),
                type_=columns.next_attempt_at.type,
            ).label("next_due_at"),
        )
        .where(columns.state == AttachmentState.PENDING)
        .group_by(columns.queue_name, columns.attempt)
        .order_by(columns.queue_name, columns.attempt)
    )
    with reading(engine) as connection:
        return tuple(Pending(**row) for row in connection.execute(query).mappings())
