"""Which topics are read by which sensor, and how far it has read them."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ingest_project.settings import Settings


class Intake(NamedTuple):
    """A topic and the sensor that reads it.

    Args:
        on_event_hub: it is in the namespace of Event Hubs, not in the main cluster.
    """

    topic: str
    sensor: str
    on_event_hub: bool = False


class Intakes(NamedTuple):
    """Every topic that is read, by what its messages become, in the order the data goes."""

    polling: tuple[Intake, ...]
    files: tuple[Intake, ...]
    attachments: tuple[Intake, ...]
    streams: tuple[Intake, ...]

    @property
    def all(self) -> tuple[Intake, ...]:
        """Of every capability."""
        return tuple(chain(*self))


def intakes(settings: Settings) -> Intakes:
    """The topics that these settings name."""
    topics = settings.topics
    return Intakes(
        polling=(Intake(topics.polling_queue, "polling_queue_sensor"),),
        files=(
            Intake(topics.file_event_queue, "file_event_queue_sensor"),
            Intake(topics.file_events, "file_events_sensor"),
        ),
        attachments=(
            events_intake(settings),
            Intake(topics.downloads_pending, "downloads_pending_sensor"),
            *(Intake(topic, "downloads_retry_sensor") for topic in topics.downloads_retry),
        ),
        streams=(
            Intake(topics.user_activity_events, "user_activity_events_sensor"),
            Intake(topics.sales_events, "sales_events_sensor"),
        ),
    )


def events_intake(settings: Settings) -> Intake:
    """Where the events with attachments come from."""
    sensor = "attachment_events_sensor"
    if settings.attachments.event_source == "eventhub":
        return Intake(settings.eventhubs.topic or "Event Hubs", sensor, on_event_hub=True)
    return Intake(settings.topics.events_raw, sensor)
