"""How far everything is: what waits on the topics, in the ledger and in Dagster, and whether anything still goes on.

The parts are looked at in the order the data goes. Work moves on to a later part, so what has left one part before it
was looked at is seen in the next, and a system that looks idle was idle. Downloads also go back, to topics of their
own: those are looked at once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

from ingest_project.attachments.queue import PENDING_QUEUE, RETRY_QUEUE, Pending, pending_at
from ingest_project.attachments.tables import AttachmentState
from ingest_project.core.console import (
    counted,
    length_of,
)
from ingest_project.core.errors import IngestError
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations.resources import SystemResources
from ingest_project.operations.topics import LagMeter, TopicLag, consumed_position, events_intake, intakes
from ingest_project.platform.dagster.run_records import DagsterRecords, RunsInFlight
from ingest_project.platform.work_queue.capacity import fullest_disk
from ingest_project.platform.work_queue.queue import PENDING, JobState
from ingest_project.streams.checks import is_failing

MOST_HOURS = 1_000


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Positions of streams, and hours.

    Args:
        stored: messages by topic and outcome.
        failing: partitions whose last runs failed one after the other, with the reason.
        lost: number of messages that were lost, by topic.
        hours_due: hours of user activity whose statistics are to be made now; those that are made again after a pause,
            as their events keep coming, are no work until then.
    """

    stored: Mapping[str, Mapping[str, int]]
    failing: tuple[str, ...] = ()
    lost: Mapping[str, int] = {}
    hours_due: int = 0

    @property
    def going_on(self) -> Iterator[str]:
        """Describe the unfinished work, one phrase per kind."""
        if self.hours_due:
            yield f"{counted(self.hours_due, 'hour')} of user activity to be counted"


def stream_status(services: SystemResources) -> StreamStatus:
    """Read positions and hours.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: they could not be read.
    """
    pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
    streams = (services.activity_positions, services.crm_positions)
    known = {stream.topic: stream.all() for stream in streams}
    return StreamStatus(
        stored={topic: sum((Counter(one.outcome) for one in found), Counter()) for topic, found in known.items()},
        failing=tuple(f"{one}: {one.reason}" for found in known.values() for one in found if is_failing(one)),
        lost={stream.topic: sum(one.messages for one in stream.lost()) for stream in streams},
        # After the positions: messages that were stored meanwhile have marked their hours before.
        hours_due=len(services.activity_hours.due(datetime.now(UTC), pause, MOST_HOURS)),
    )


class RetryTier(msgspec.Struct, frozen=True):
    """Attachments that wait in one retry topic, as the ledger has it.

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
        retry_tiers: the retry topics, the shortest pause first.
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
            p for p in pending if p.queue_name == RETRY_QUEUE and min(max(p.attempt - 2, 0), len(topics) - 1) == place
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


Answer = TypeVar("Answer")


class Waiting(msgspec.Struct, frozen=True):
    """The file that has waited longest for its end."""

    file_key: str
    state: FileState
    since: datetime
    attempts: int
    next_attempt_at: datetime
    reason: str | None


class SystemStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at about one moment. What could not be asked is None, and named among the problems.

    Args:
        topics: in the order the data goes.
        unreported: finished jobs, files, events, attachments and offset ranges that are not yet shown in Dagster.
        problems: one sentence for each part that did not answer and each sensor whose last tick failed, and one where a
            disk is nearly full.
    """

    at: datetime
    topics: tuple[TopicLag, ...] = ()
    polling_jobs: Mapping[JobState, int] | None = None
    files: Mapping[FileState, int] | None = None
    attachments: AttachmentStatus | None = None
    streams: StreamStatus | None = None
    unreported: int | None = None
    oldest_unfinished: Waiting | None = None
    runs: RunsInFlight | None = None
    problems: tuple[str, ...] = ()

    @property
    def going_on(self) -> list[str]:
        """Describe the unfinished work, one phrase per kind; empty when the system is idle."""
        return list(_going_on(self))

    @property
    def idle(self) -> bool:
        """Return whether no work waits or runs, as far as every part could be queried."""
        return not self.going_on


def look(services: SystemResources, records: DagsterRecords) -> SystemStatus:
    """Ask every part; one that does not answer leaves the others be."""
    problems: list[str] = []

    def asked(question: Callable[[SystemResources], Answer]) -> Answer | None:
        try:
            return question(services)
        except IngestError as error:
            if str(error) not in problems:
                problems.append(str(error))
            return None

    topics, meter = intakes(services.settings), LagMeter(services, records)
    polling = meter.lags_of(topics.polling)
    jobs = asked(lambda of: of.polling_jobs.counts_by_state())
    file_topics = meter.lags_of(topics.files)
    files = asked(lambda of: of.files.counts_by_state())
    download_topics = meter.lags_of(topics.attachments)
    attachments = asked(attachment_status)
    stream_topics = meter.lags_of(topics.streams)
    streams = asked(stream_status)
    held = asked(held_entries)
    oldest = asked(oldest_unfinished)
    runs = asked(lambda _: records.runs_in_flight())
    disk = asked(lambda of: fullest_disk(of.settings))
    if disk and disk.is_nearly_full:
        problems.append(str(disk))
    failing = asked(lambda _: records.failing()) or {}
    problems += [f"{sensor} {ticks}" for sensor, ticks in sorted(failing.items())]
    problems += streams.failing if streams else ()
    seen = SystemStatus(
        at=datetime.now(UTC),
        topics=(*polling, *file_topics, *download_topics, *stream_topics),
        polling_jobs=jobs,
        files=files,
        attachments=attachments,
        streams=streams,
        unreported=None if held is None else max(0, held - _in_hand(jobs, files, attachments)),
        oldest_unfinished=oldest,
        runs=runs,
        problems=tuple(problems),
    )
    if seen.idle:
        # Runs put tasks on topics that were looked at before: these go forward and back.
        download_topics = meter.lags_of(topics.attachments)
        seen = msgspec.structs.replace(seen, topics=(*polling, *file_topics, *download_topics, *stream_topics))
    return seen


def held_entries(services: SystemResources) -> int:
    """Entries of every ledger that are asked for, in a run's hands, or finished and not yet shown in Dagster."""
    topics = intakes(services.settings)
    whenever = datetime.now(UTC) + timedelta(days=1)
    held = [
        *(holding for intake in topics.polling for holding in services.polling_jobs.leases(intake.topic, whenever)),
        *(holding for intake in topics.files for holding in services.files.leases(intake.topic, whenever)),
        *services.attachment_events.leases(
            consumed_position(events_intake(services.settings), services).topic, whenever
        ),
        *(
            holding
            for queue_name in (PENDING_QUEUE, RETRY_QUEUE)
            for holding in services.attachments.leases(queue_name, whenever)
        ),
    ]
    return sum(holding.entries for holding in held)


def oldest_unfinished(services: SystemResources) -> Waiting | None:
    """The file that has waited longest; None when none waits."""
    record = services.files.oldest_unfinished()
    if record is None:
        return None
    return Waiting(
        record.file_key, record.state, record.created_at, record.attempts, record.next_attempt_at, record.reason
    )


def _going_on(status: SystemStatus) -> Iterator[str]:
    yield from _waiting(status.topics)
    yield from _unfinished(status.polling_jobs, "polling job")
    yield from _unfinished(status.files, "file")
    if status.attachments is None:
        yield "the ledger of attachments cannot be read"
    else:
        for number, noun, state in going_on_with(status.attachments):
            yield f"{counted(number, noun)} {state}"
    if status.streams is None:
        yield "the positions of streams cannot be read"
    else:
        yield from status.streams.going_on
    if status.unreported:
        yield f"{counted(status.unreported, 'finished entry', 'finished entries')} not yet shown in Dagster"
    if status.runs is None:
        yield "Dagster's runs cannot be read"
        return
    for state, number in (("queued", status.runs.queued), ("started", status.runs.started)):
        if number:
            yield f"{counted(number, 'run')} {state}"


def _waiting(topics: Iterable[TopicLag]) -> Iterator[str]:
    for lag in topics:
        if lag.waiting is None:
            yield f"{lag.topic} cannot be read"
        elif lag.waiting:
            yield f"{counted(lag.waiting, 'message')} waiting on {lag.topic}"


def _in_hand(
    jobs: Mapping[JobState, int] | None,
    files: Mapping[FileState, int] | None,
    attachments: AttachmentStatus | None,
) -> int:
    of_jobs = sum(number for state, number in (jobs or {}).items() if not state.finished and state != PENDING)
    of_files = sum(number for state, number in (files or {}).items() if not state.finished and state != PENDING)
    return of_jobs + of_files + (attachments.in_hand if attachments else 0)


def _unfinished(numbers: Mapping[FileState, int] | Mapping[JobState, int] | None, noun: str) -> Iterator[str]:
    if numbers is None:
        yield f"the ledger of {noun}s cannot be read"
        return
    for state, number in numbers.items():
        if number and not state.finished:
            yield f"{counted(number, noun)} {state}"


def described(waiting: Waiting, now: datetime) -> str:
    """One sentence about the file that has waited longest."""
    attempts = counted(waiting.attempts, "attempt")
    text = f"{waiting.file_key} is {waiting.state} since {length_of(now - waiting.since)}, {attempts}"
    if waiting.next_attempt_at > now:
        text += f", next in {length_of(waiting.next_attempt_at - now)}"
    return f"{text}: {waiting.reason}" if waiting.reason else f"{text}."


def for_scripts(status: SystemStatus) -> dict[str, object]:
    """The status as one JSON object, with what follows from it."""
    return {"idle": status.idle, "going_on": status.going_on, **msgspec.to_builtins(status)}
