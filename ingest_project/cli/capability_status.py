"""The state of each capability, as `ingest status` shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from ingest_project.attachments.queue.record import RETRY_LANE
from ingest_project.attachments.retry_schedule import Pending, pending_at
from ingest_project.core.console import (
    counted,
)
from ingest_project.operations.resources import SystemResources
from ingest_project.operations.topics import intakes
from ingest_project.platform.work_queue.states import AttachmentState, JobState
from ingest_project.streams.range_record import RangeState

MOST_HOURS = 1_000


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Offset ranges by state, and hours.

    Args:
        ranges: by topic.
        hours_due: hours of user activity whose statistics are to be made now; those that are made again after a pause,
            as their events keep coming, are no work until then.
    """

    ranges: Mapping[str, Mapping[RangeState, int]]
    hours_due: int = 0

    @property
    def in_hand(self) -> int:
        """Ranges that are asked for, or in a run's hands."""
        counts = self.ranges.values()
        return sum(of[state] for of in counts for state in (RangeState.REQUESTED, RangeState.RUNNING))

    @property
    def going_on(self) -> Iterator[str]:
        """What is not finished, a phrase for each."""
        for topic, counts in self.ranges.items():
            for state, number in counts.items():
                if number and not state.finished:
                    yield f"{counted(number, 'offset range')} of {topic} {state}"
        if self.hours_due:
            yield f"{counted(self.hours_due, 'hour')} of user activity to be counted"


def stream_status(services: SystemResources) -> StreamStatus:
    """Count ranges and hours.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: they could not be counted.
    """
    settings = services.settings
    pause = timedelta(seconds=settings.user_activity.hourly_refresh_seconds)
    return StreamStatus(
        ranges={one.topic: services.stream_ranges.counts_by_state(one.topic) for one in intakes(settings).streams},
        # After the ranges: a range that was finished meanwhile has marked its hours before.
        hours_due=len(services.activity_hours.due(datetime.now(UTC), pause, MOST_HOURS)),
    )


class RetryTier(msgspec.Struct, frozen=True):
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
        retry tiers: the retry topics, the shortest pause first.
        uncommitted_results: ends of attempts that the Delta table does not have yet.
    """

    events: Mapping[JobState, int]
    attachments: Mapping[AttachmentState, int]
    due: int = 0
    later: int = 0
    next_due_at: datetime | None = None
    retry_tiers: tuple[RetryTier, ...] = ()
    uncommitted_results: int = 0

    @property
    def in_hand(self) -> int:
        """Events and attachments that are asked for, or in a run's hands."""
        events = sum(number for state, number in self.events.items() if _is_in_hand(state))
        return events + sum(number for state, number in self.attachments.items() if _is_in_hand(state))


def attachment_status(services: SystemResources) -> AttachmentStatus:
    """Count events and attachments.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: they could not be counted.
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
        retry_tiers=retry_tiers_of(pending, services.settings.topics.downloads_retry),
        uncommitted_results=services.outcomes.uncommitted(),
    )


def retry_tiers_of(pending: Sequence[Pending], topics: Sequence[str]) -> tuple[RetryTier, ...]:
    """The retry topics with what waits in each.

    Args:
        pending: by queue and attempt.
        topics: the one after the first failed attempt first.
    """
    tiers = []
    for place, topic in enumerate(topics):
        # Attempt 2 comes after the first topic; what has more attempts than there are topics waits in the last one.
        there = [
            p for p in pending if p.queue_name == RETRY_LANE and min(max(p.attempt - 2, 0), len(topics) - 1) == place
        ]
        tiers.append(
            RetryTier(
                topic,
                waiting=sum(one.waiting for one in there),
                due=sum(one.due for one in there),
                next_due_at=min((one.next_due_at for one in there), default=None),
            )
        )
    return tuple(tiers)


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
