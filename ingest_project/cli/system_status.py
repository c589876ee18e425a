"""How far everything is: what waits on the topics, in the ledger and in Dagster, and whether anything still goes on.

The parts are looked at in the order the data goes. Work moves on to a later part, so what has left one part before it
was looked at is seen in the next, and a system that looks idle was idle. Downloads also go back, to topics of their
own: those are looked at once more.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from ingest_project.backpressure import fullest_disk
from ingest_project.cli.attachment_status import AttachmentStatus, attachment_status, going_on_with
from ingest_project.cli.output import counted, length_of
from ingest_project.errors import IngestError
from ingest_project.kafka.committed_offsets import committed_positions
from ingest_project.kafka.positions import Positions
from ingest_project.ledger.attachment_record import PENDING_LANE, RETRY_LANE
from ingest_project.ledger.states import PENDING
from ingest_project.monitor.dagster_records import DagsterRecords, DagsterRecordsUnavailable, RunsInFlight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ingest_project.kafka.reading import TopicReader
    from ingest_project.ledger.states import FileState, JobState
    from ingest_project.resources import Services
    from ingest_project.settings import KafkaSettings, TopicSettings

Answer = TypeVar("Answer")


class Intake(NamedTuple):
    """A topic and the sensor that reads it.

    Args:
        several: whether that sensor reads more than one topic, and its cursor has a part for each.
    """

    sensor: str
    topic_of: Callable[[TopicSettings], str]
    several: bool = False


class Place(NamedTuple):
    """A topic in the cluster that has it."""

    topic: str
    reader: TopicReader
    settings: KafkaSettings


POLLING_INTAKE = Intake("polling_queue_sensor", lambda topics: topics.polling_queue)
FILE_INTAKES = (
    Intake("file_event_queue_sensor", lambda topics: topics.file_event_queue),
    Intake("file_events_sensor", lambda topics: topics.file_events),
)
EVENT_INTAKE = Intake("attachment_events_sensor", lambda topics: topics.events_raw)
DOWNLOAD_INTAKES = (
    Intake("downloads_pending_sensor", lambda topics: topics.downloads_pending, several=True),
    Intake("downloads_retry_sensor", lambda topics: topics.downloads_retry_5m, several=True),
    Intake("downloads_retry_sensor", lambda topics: topics.downloads_retry_10m, several=True),
    Intake("downloads_retry_sensor", lambda topics: topics.downloads_retry_20m, several=True),
    Intake("downloads_retry_sensor", lambda topics: topics.downloads_retry_40m, several=True),
)


class MeasuredFrom(StrEnum):
    """What a topic's lag is measured from."""

    SAVED_CURSOR = "saved cursor"
    COMMITTED_OFFSETS = "committed offsets"


class TopicLag(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages of a topic are not taken yet.

    Args:
        sensor: which takes them.
        waiting: over all partitions; None where it cannot be told.
        partitions: by partition; none where the topic does not exist.
        measured_from: the cursor is exact, the committed offsets are one tick behind.
        problem: why it is not measured from the cursor, or not at all.
    """

    topic: str
    sensor: str
    waiting: int | None = None
    partitions: Mapping[int, int] = {}
    measured_from: MeasuredFrom | None = None
    problem: str | None = None


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
        unreported: finished jobs, files, events and attachments that are not yet shown in Dagster.
        problems: one sentence for each part that did not answer, and one where a disk is nearly full.
    """

    at: datetime
    topics: tuple[TopicLag, ...] = ()
    polling_jobs: Mapping[JobState, int] | None = None
    files: Mapping[FileState, int] | None = None
    attachments: AttachmentStatus | None = None
    unreported: int | None = None
    oldest_unfinished: Waiting | None = None
    runs: RunsInFlight | None = None
    problems: tuple[str, ...] = ()

    @property
    def going_on(self) -> list[str]:
        """What is not finished, a phrase for each; empty when the system is idle."""
        return list(_going_on(self))

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing works, as far as every part could be asked."""
        return not self.going_on


def look(services: Services, records: DagsterRecords) -> SystemStatus:
    """Ask every part; one that does not answer leaves the others be."""
    problems: list[str] = []

    def asked(question: Callable[[Services], Answer]) -> Answer | None:
        try:
            return question(services)
        except IngestError as error:
            if str(error) not in problems:
                problems.append(str(error))
            return None

    polling = lag_of(POLLING_INTAKE, services, records)
    jobs = asked(lambda of: of.polling_jobs.counts_by_state())
    file_topics = [lag_of(intake, services, records) for intake in FILE_INTAKES]
    files = asked(lambda of: of.files.counts_by_state())
    download_topics = [lag_of(intake, services, records) for intake in (EVENT_INTAKE, *DOWNLOAD_INTAKES)]
    attachments = asked(attachment_status)
    held = asked(held_entries)
    oldest = asked(oldest_unfinished)
    runs = asked(lambda _: records.runs_in_flight())
    disk = asked(lambda of: fullest_disk(of.settings))
    if disk and disk.is_nearly_full:
        problems.append(str(disk))
    seen = SystemStatus(
        at=datetime.now(UTC),
        topics=(polling, *file_topics, *download_topics),
        polling_jobs=jobs,
        files=files,
        attachments=attachments,
        unreported=None if held is None else max(0, held - _in_hand(jobs, files, attachments)),
        oldest_unfinished=oldest,
        runs=runs,
        problems=tuple(problems),
    )
    if seen.idle:
        # Runs put tasks on topics that were looked at before: these go forward and back.
        download_topics = [lag_of(intake, services, records) for intake in (EVENT_INTAKE, *DOWNLOAD_INTAKES)]
        seen = msgspec.structs.replace(seen, topics=(polling, *file_topics, *download_topics))
    return seen


def lag_of(intake: Intake, services: Services, records: DagsterRecords) -> TopicLag:
    """How many messages of one topic are not taken yet, as exactly as can be told."""
    topic = intake.topic_of(services.settings.topics)
    problem = None
    try:
        topic, reader, kafka = place_of(intake, services)
        try:
            positions = _saved_positions(intake, topic, records)
            measured_from = MeasuredFrom.SAVED_CURSOR
        except DagsterRecordsUnavailable as error:
            problem = str(error)
            positions = committed_positions(kafka, topic, reader.end_offsets(topic))
            measured_from = MeasuredFrom.COMMITTED_OFFSETS
        partitions = reader.lags({topic: positions})[topic]
    except IngestError as error:
        return TopicLag(topic=topic, sensor=intake.sensor, problem=str(error))
    return TopicLag(
        topic=topic,
        sensor=intake.sensor,
        waiting=sum(partitions.values()),
        partitions=partitions,
        measured_from=measured_from,
        problem=problem,
    )


def place_of(intake: Intake, services: Services) -> Place:
    """Where a topic is: attachment events may be read from an event hub in place of the main cluster.

    Raises:
        SettingsError, BrokerUnavailable: not enough is set to reach it.
    """
    settings = services.settings
    if intake is EVENT_INTAKE and settings.attachments.event_source == "eventhub":
        return Place(services.event_hub.topic, services.event_hub_reader, services.event_hub.settings)
    return Place(intake.topic_of(settings.topics), services.reader, settings.kafka)


def _saved_positions(intake: Intake, topic: str, records: DagsterRecords) -> Positions | None:
    cursor = records.cursor(intake.sensor)
    if intake.several and cursor:
        cursor = msgspec.json.decode(cursor, type=dict[str, str]).get(topic)
    return Positions.from_cursor(cursor)


def held_entries(services: Services) -> int:
    """Entries of every ledger that are asked for, in a run's hands, or finished and not yet shown in Dagster."""
    topics = services.settings.topics
    whenever = datetime.now(UTC) + timedelta(days=1)
    held = [
        *services.polling_jobs.held(POLLING_INTAKE.topic_of(topics), whenever),
        *(holding for intake in FILE_INTAKES for holding in services.files.held(intake.topic_of(topics), whenever)),
        *services.attachment_events.held(place_of(EVENT_INTAKE, services).topic, whenever),
        *(holding for lane in (PENDING_LANE, RETRY_LANE) for holding in services.attachments.held(lane, whenever)),
    ]
    return sum(holding.entries for holding in held)


def oldest_unfinished(services: Services) -> Waiting | None:
    """The file that has waited longest; None when none waits."""
    record = services.files.oldest_unfinished()
    if record is None:
        return None
    return Waiting(
        record.file_key, record.state, record.created_at, record.attempts, record.next_attempt_at, record.reason
    )


def _going_on(status: SystemStatus) -> Iterator[str]:
    for lag in status.topics:
        if lag.waiting is None:
            yield f"{lag.topic} cannot be read"
        elif lag.waiting:
            yield f"{counted(lag.waiting, 'message')} waiting on {lag.topic}"
    yield from _unfinished(status.polling_jobs, "polling job")
    yield from _unfinished(status.files, "file")
    if status.attachments is None:
        yield "the ledger of attachments cannot be read"
    else:
        for number, noun, state in going_on_with(status.attachments):
            yield f"{counted(number, noun)} {state}"
    if status.unreported:
        yield f"{counted(status.unreported, 'finished entry', 'finished entries')} not yet shown in Dagster"
    if status.runs is None:
        yield "Dagster's runs cannot be read"
        return
    for state, number in (("queued", status.runs.queued), ("started", status.runs.started)):
        if number:
            yield f"{counted(number, 'run')} {state}"


def _in_hand(
    jobs: Mapping[JobState, int] | None, files: Mapping[FileState, int] | None, attachments: AttachmentStatus | None
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
