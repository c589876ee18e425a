"""What the broker tells: how many messages of each topic wait, and how many dead letters there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ingest_project.errors import BrokerUnavailable, IngestError
from ingest_project.kafka.committed_offsets import committed_positions
from ingest_project.kafka.topic_state import TopicStates
from ingest_project.monitor.dagster_records import DagsterRecordsUnavailable
from ingest_project.monitor.intakes import Intake, intakes, saved_positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest_project.kafka.reading import TopicReader
    from ingest_project.monitor.dagster_records import DagsterRecords, SensorOnRecord
    from ingest_project.resources import Services
    from ingest_project.settings import KafkaSettings

SAVED_CURSOR, COMMITTED_OFFSETS = "saved cursor", "committed offsets"


class TopicLag(msgspec.Struct, frozen=True):
    """How many messages of a topic are not taken yet.

    Args:
        sensor: which takes them.
        partitions: messages that wait, by partition; none where the topic does not exist.
        measured_from: the cursor is exact, the committed offsets are one tick behind.
        problem: why it cannot be told.
    """

    topic: str
    sensor: str
    partitions: Mapping[int, int] = {}
    measured_from: str = SAVED_CURSOR
    problem: str | None = None

    @property
    def waiting(self) -> int:
        """Over all partitions."""
        return sum(self.partitions.values())


class DeadLetters(msgspec.Struct, frozen=True):
    """A dead-letter topic.

    Args:
        written: messages ever written to this life of the topic.
        kept: of those, the ones that retention has left.
    """

    topic: str
    written: int
    kept: int


class BrokerSeen(msgspec.Struct, frozen=True):
    """Everything about topics at one moment."""

    topics: tuple[TopicLag, ...]
    dead_letters: tuple[DeadLetters, ...]


class BrokerLook:
    """Looks at the broker. Asks Dagster for the saved cursors at the same moment: numbers of two moments do not fit."""

    def __init__(self, services: Services, records: DagsterRecords) -> None:
        self._services = services
        self._records = records
        self._states = TopicStates(services.settings.kafka)

    def __call__(self) -> BrokerSeen:
        """Raises BrokerUnavailable where it does not answer."""
        reader = self._services.reader
        sensors = self._sensors()
        settings = self._services.settings
        lags = [_lag(intake, reader, settings.kafka, sensors) for intake in intakes(settings)]
        if settings.attachments.event_source == "eventhub":
            lags.append(self._event_hub(sensors))
        letters = [self._dead_letters(topic) for topic in settings.topics.dead_letters]
        return BrokerSeen(tuple(lags), tuple(letters))

    def _sensors(self) -> Mapping[str, SensorOnRecord] | None:
        try:
            return self._records.sensors()
        except DagsterRecordsUnavailable:
            return None

    def _event_hub(self, sensors: Mapping[str, SensorOnRecord] | None) -> TopicLag:
        """Of the hub that is read in place of `events.raw`; the main broker's health does not depend on it."""
        sensor = "attachment_events_sensor"
        try:
            hub = self._services.event_hub
            return _lag(Intake(hub.topic, sensor), self._services.event_hub_reader, hub.settings, sensors)
        except IngestError as error:
            name = self._services.settings.eventhubs.topic or "Event Hubs"
            return TopicLag(name, sensor, problem=str(error))

    def _dead_letters(self, topic: str) -> DeadLetters:
        state = self._states.look_up(topic)
        bounds = state.bounds.values() if state else ()
        return DeadLetters(topic, sum(one.end for one in bounds), sum(one.end - one.start for one in bounds))


def _lag(
    intake: Intake, reader: TopicReader, kafka: KafkaSettings, sensors: Mapping[str, SensorOnRecord] | None
) -> TopicLag:
    measured_from = SAVED_CURSOR
    try:
        if sensors is None:
            positions = committed_positions(kafka, intake.topic, reader.end_offsets(intake.topic))
            measured_from = COMMITTED_OFFSETS
        else:
            positions = saved_positions(intake, sensors)
        partitions = reader.lags({intake.topic: positions})[intake.topic]
    except BrokerUnavailable:
        # It will not answer for the other topics either, and each would take its time.
        raise
    except IngestError as error:
        return TopicLag(intake.topic, intake.sensor, problem=str(error))
    return TopicLag(intake.topic, intake.sensor, partitions, measured_from)
