"""Which topics are read by which sensor, and how far it has read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ingest_project.errors import IngestError
from ingest_project.kafka.positions import Positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest_project.monitor.dagster_records import SensorOnRecord
    from ingest_project.settings import Settings


class Intake(NamedTuple):
    """A topic and the sensor that reads it."""

    topic: str
    sensor: str


def intakes(settings: Settings) -> tuple[Intake, ...]:
    """Every topic of the main broker that is read, in the order the data goes."""
    topics = settings.topics
    raw = () if settings.attachments.event_source == "eventhub" else (topics.events_raw,)
    return (
        Intake(topics.polling_queue, "polling_queue_sensor"),
        Intake(topics.file_event_queue, "file_event_queue_sensor"),
        Intake(topics.file_events, "file_events_sensor"),
        *(Intake(topic, "attachment_events_sensor") for topic in raw),
        Intake(topics.downloads_pending, "downloads_pending_sensor"),
        *(Intake(topic, "downloads_retry_sensor") for topic in topics.downloads_retry),
        Intake(topics.user_activity_events, "user_activity_events_sensor"),
        Intake(topics.sales_events, "sales_events_sensor"),
    )


def saved_positions(intake: Intake, sensors: Mapping[str, SensorOnRecord]) -> Positions | None:
    """Where the sensor's saved cursor is in this topic; None where it has saved nothing.

    A sensor that reads several topics keeps one cursor for each, by the topic's name.

    Raises:
        IngestError: the cursor holds no positions.
    """
    sensor = sensors.get(intake.sensor)
    if sensor is None or not sensor.cursor:
        return None
    try:
        of_each = msgspec.json.decode(sensor.cursor, type=dict[str, str])
    except msgspec.MsgspecError:
        return Positions.from_cursor(sensor.cursor)
    try:
        return Positions.from_cursor(of_each.get(intake.topic))
    except IngestError:
        return None
