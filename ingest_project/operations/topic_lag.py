"""How many messages of a topic are not taken yet: by the saved cursor of its sensor, which is exact.

Where Dagster's records cannot be read, by the committed offsets, which follow the cursors one tick behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from ingest_project.core.errors import BrokerUnavailableError, IngestError
from ingest_project.core.settings import KafkaSettings
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.run_records import DagsterRecords, DagsterRecordsUnavailableError, SensorOnRecord
from ingest_project.platform.kafka.consumer import TopicReader
from ingest_project.platform.kafka.offsets import Positions, committed_positions


class ConsumedTopic(NamedTuple):
    """A topic and the sensor that reads it.

    Args:
        on_event_hub: it is in the namespace of Event Hubs, not in the main cluster.
    """

    topic: str
    sensor: str
    on_event_hub: bool = False


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
        next_offsets: where the position is, by partition.
        measured_from: the cursor is exact, the committed offsets are one tick behind.
        problem: why it is not measured from the cursor, or not at all.
    """

    topic: str
    sensor: str
    waiting: int | None = None
    partitions: Mapping[int, int] = {}
    next_offsets: Mapping[int, int] = {}
    measured_from: MeasuredFrom | None = None
    problem: str | None = None


class Place(NamedTuple):
    """A topic in the cluster that has it."""

    topic: str
    reader: TopicReader
    settings: KafkaSettings


class _OnRecord(NamedTuple):
    """The sensors, or why they are not known."""

    sensors: Mapping[str, SensorOnRecord]
    problem: str | None = None


class LagMeter:
    """Measures topics, for one look at the system: the main broker, once it did not answer, is not asked again.

    Args:
        services: the clusters.
        records: the saved cursors.
    """

    def __init__(self, services: SystemResources, records: DagsterRecords) -> None:
        self._services = services
        self._records = records
        self._away: str | None = None

    def lags_of(self, intakes: Iterable[ConsumedTopic]) -> tuple[TopicLag, ...]:
        """How many messages of each topic are not taken yet, as exactly as can be told.

        The cursors are read before the topics: what a tick takes meanwhile counts as waiting, never the other way
        round.
        """
        on_record = _on_record(self._records)
        return tuple(self._lag_of(intake, on_record) for intake in intakes)

    def _lag_of(self, intake: ConsumedTopic, on_record: _OnRecord) -> TopicLag:
        problem = None if intake.on_event_hub else self._away
        if problem is None:
            try:
                return _lag(intake, consumed_position(intake, self._services), on_record)
            except IngestError as error:
                problem = str(error)
                if isinstance(error, BrokerUnavailableError) and not intake.on_event_hub:
                    # It will not answer for the other topics either, and each would take its time.
                    self._away = problem
        return TopicLag(topic=intake.topic, sensor=intake.sensor, problem=problem)


def consumed_position(intake: ConsumedTopic, services: SystemResources) -> Place:
    """Where a topic is.

    Raises:
        SettingsError, BrokerUnavailableError: not enough is set to reach it.
    """
    if intake.on_event_hub:
        return Place(services.event_hub.topic, services.event_hub_reader, services.event_hub.settings)
    return Place(intake.topic, services.reader, services.settings.kafka)


def _lag(intake: ConsumedTopic, place: Place, on_record: _OnRecord) -> TopicLag:
    topic, reader, kafka = place
    if on_record.problem is None:
        positions, measured_from = saved_positions(intake.sensor, topic, on_record.sensors), MeasuredFrom.SAVED_CURSOR
    else:
        positions = committed_positions(kafka, topic, reader.end_offsets(topic))
        measured_from = MeasuredFrom.COMMITTED_OFFSETS
    partitions = reader.lags({topic: positions})[topic]
    return TopicLag(
        topic=topic,
        sensor=intake.sensor,
        waiting=sum(partitions.values()),
        partitions=partitions,
        next_offsets=positions.next_offsets if positions else {},
        measured_from=measured_from,
        problem=on_record.problem,
    )


def _on_record(records: DagsterRecords) -> _OnRecord:
    try:
        return _OnRecord(records.sensors())
    except DagsterRecordsUnavailableError as error:
        return _OnRecord({}, str(error))


def saved_positions(sensor: str, topic: str, sensors: Mapping[str, SensorOnRecord]) -> Positions | None:
    """Where the sensor's saved cursor is in this topic; None where it has saved nothing.

    A sensor that reads several topics keeps one cursor for each, by the topic's name.

    Raises:
        IngestError: the cursor holds no positions.
    """
    cursor = sensors[sensor].cursor if sensor in sensors else None
    if not cursor:
        return None
    try:
        of_each = msgspec.json.decode(cursor, type=dict[str, str])
    except msgspec.MsgspecError:
        return Positions.from_cursor(cursor)
    return Positions.from_cursor(of_each.get(topic))
