"""How far attachments are: events and attachments by state, and what waits in the retry ladder."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from ingest_project.ledger.attachment_record import RETRY_LANE
from ingest_project.ledger.attachment_waiting import pending_at
from ingest_project.ledger.states import AttachmentState, JobState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ingest_project.ledger.attachment_waiting import Pending
    from ingest_project.resources import Services


class Rung(msgspec.Struct, frozen=True):
    """What waits in one retry topic, as the ledger has it.

    Args:
        due: of those that wait, the ones whose time has come.
        next_due_at: when the first of them is due; None where none waits.
    """

    topic: str
    waiting: int
    due: int
    next_due_at: datetime | None


class AttachmentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Events and attachments by state.

    Args:
        due: attachments that wait and whose time has come: they are work.
        later: attachments that wait for a time to come: they are none.
        next_due_at: when the first of the latter is due.
        ladder: the retry topics, the shortest pause first.
        uncommitted_results: ends of attempts that the Delta table does not have yet.
    """

    events: Mapping[JobState, int]
    attachments: Mapping[AttachmentState, int]
    due: int = 0
    later: int = 0
    next_due_at: datetime | None = None
    ladder: tuple[Rung, ...] = ()
    uncommitted_results: int = 0

    @property
    def in_hand(self) -> int:
        """Events and attachments that are asked for, or in a run's hands."""
        events = sum(number for state, number in self.events.items() if _is_in_hand(state))
        return events + sum(number for state, number in self.attachments.items() if _is_in_hand(state))


def attachment_status(services: Services) -> AttachmentStatus:
    """Count events and attachments.

    Raises:
        DatabaseUnavailable, TransactionConflict: they could not be counted.
    """
    now = datetime.now(UTC)
    events = services.attachment_events.counts_by_state()
    pending = pending_at(services.engine, now)
    states = services.attachments.counts_by_state()
    due = sum(one.due for one in pending)
    later = [one for one in pending if one.waiting > one.due]
    return AttachmentStatus(
        events=events,
        attachments=states,
        due=due,
        later=sum(one.waiting for one in pending) - due,
        next_due_at=min((one.next_due_at for one in later), default=None),
        ladder=ladder_of(pending, services.settings.topics.downloads_retry),
        uncommitted_results=services.outcomes.uncommitted(),
    )


def ladder_of(pending: Sequence[Pending], topics: Sequence[str]) -> tuple[Rung, ...]:
    """The retry topics with what waits in each.

    Args:
        pending: by lane and attempt.
        topics: the one after the first failed attempt first.
    """
    rungs = []
    for place, topic in enumerate(topics):
        # Attempt 2 comes after the first topic; what has more attempts than there are topics waits in the last one.
        there = [p for p in pending if p.lane == RETRY_LANE and min(max(p.attempt - 2, 0), len(topics) - 1) == place]
        rungs.append(
            Rung(
                topic,
                waiting=sum(one.waiting for one in there),
                due=sum(one.due for one in there),
                next_due_at=min((one.next_due_at for one in there), default=None),
            )
        )
    return tuple(rungs)


def going_on_with(status: AttachmentStatus) -> Iterator[tuple[int, str, str]]:
    """What is not finished: how many, of what, and in which state. What waits for a time to come is no work."""
    for state, number in status.events.items():
        if number and not state.finished:
            yield number, "attachment event", state
    if status.due:
        yield status.due, "attachment", "due"
    for attachment_state, number in status.attachments.items():
        if number and _is_in_hand(attachment_state):
            yield number, "attachment", attachment_state


def _is_in_hand(state: JobState | AttachmentState) -> bool:
    return not state.finished and state not in {JobState.PENDING, AttachmentState.PENDING}
