"""What waits among attachments: how many with how many attempts behind them, and until when."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the fields' types when it runs

import msgspec
import sqlalchemy as sa

from ingest_project.database.attachment_tables import attachments
from ingest_project.database.engine import reading
from ingest_project.ledger.states import AttachmentState


class Pending(msgspec.Struct, frozen=True):
    """Attachments that wait with one number of attempts behind them.

    Args:
        attempt: which one comes next, the first being 1.
    """

    lane: str
    attempt: int
    waiting: int
    due: int
    next_due_at: datetime


def pending_at(engine: sa.Engine, now: datetime) -> tuple[Pending, ...]:
    """Attachments that wait, by lane and attempt. `next_due_at` is the first time after now, where there is one.

    Raises:
        DatabaseUnavailable, TransactionConflict: it could not be asked.
    """
    columns = attachments.c
    is_due = columns.next_attempt_at <= now
    query = (
        sa.select(
            columns.lane,
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
        .group_by(columns.lane, columns.attempt)
        .order_by(columns.lane, columns.attempt)
    )
    with reading(engine) as connection:
        return tuple(Pending(**row) for row in connection.execute(query).mappings())
