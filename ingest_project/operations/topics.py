"""What the broker tells: how many messages of each topic wait, and how many dead letters there are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import msgspec

from ingest_project.core.settings import Settings
from ingest_project.operations.resources import SystemResources
from ingest_project.operations.topic_lag import ConsumedTopic, LagMeter, TopicLag
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.kafka.topics import TopicStates


class Intakes(NamedTuple):
    """Every topic that is read, by what its messages become, in the order the data goes."""

    polling: tuple[ConsumedTopic, ...]
    files: tuple[ConsumedTopic, ...]
    attachments: tuple[ConsumedTopic, ...]
    streams: tuple[ConsumedTopic, ...]

    @property
    def all(self) -> tuple[ConsumedTopic, ...]:
        """Of every capability."""
        return tuple(chain(*self))


def intakes(settings: Settings) -> Intakes:
    """The topics that these settings name."""
    topics = settings.topics
    return Intakes(
        polling=(ConsumedTopic(topics.polling_queue, "polling_queue_sensor"),),
        files=(
            ConsumedTopic(topics.file_event_queue, "file_event_queue_sensor"),
            ConsumedTopic(topics.file_events, "file_events_sensor"),
        ),
        attachments=(
            events_intake(settings),
            ConsumedTopic(topics.downloads_pending, "downloads_pending_sensor"),
            *(ConsumedTopic(topic, "downloads_retry_sensor") for topic in topics.downloads_retry),
        ),
        streams=(
            ConsumedTopic(topics.user_activity_events, "user_activity_events_sensor"),
            ConsumedTopic(topics.sales_events, "sales_events_sensor"),
        ),
    )


def events_intake(settings: Settings) -> ConsumedTopic:
    """Where the events with attachments come from."""
    sensor = "attachment_events_sensor"
    if settings.attachments.event_source == "eventhub":
        return ConsumedTopic(settings.eventhubs.topic or "Event Hubs", sensor, on_event_hub=True)
    return ConsumedTopic(settings.topics.events_raw, sensor)


Place = tuple[str, int]


class StalledTopic(msgspec.Struct, frozen=True):
    """A topic of which at least one partition stands still while messages wait in it.

    Args:
        sensor: that takes them.
        partitions: the partitions that stand still.
        waiting: messages in these.
        seconds: how long the first of them has stood still, as far as it was looked at.
    """

    topic: str
    sensor: str
    partitions: tuple[int, ...]
    waiting: int
    seconds: float

    def __str__(self) -> str:
        """As people read it."""
        where = ", ".join(map(str, self.partitions))
        return f"{self.topic} has stood still for {self.seconds:.0f} s with {self.waiting} waiting (partition {where})"


class Movement:
    """Remembers where each partition was, and since when."""

    def __init__(self) -> None:
        self._since: dict[Place, tuple[int, float]] = {}

    def stalled(self, topics: Sequence[TopicLag], now: float) -> tuple[StalledTopic, ...]:
        """The topics with partitions that have stood still since an earlier look.

        Args:
            topics: as they are now.
            now: a clock that nobody sets.
        """
        found = tuple(stalled for lag in topics if (stalled := self._look_at(lag, now)))
        seen = {(lag.topic, partition) for lag in topics for partition in lag.partitions}
        self._since = {place: since for place, since in self._since.items() if place in seen}
        return found

    def _look_at(self, lag: TopicLag, now: float) -> StalledTopic | None:
        standing: dict[int, float] = {}
        for partition, waiting in lag.partitions.items():
            position = lag.next_offsets.get(partition, 0)
            before = self._since.get((lag.topic, partition))
            if not waiting or before is None or before[0] != position:
                self._since[lag.topic, partition] = (position, now)
            elif now > before[1]:
                standing[partition] = now - before[1]
        if not standing:
            return None
        waiting = sum(lag.partitions[partition] for partition in standing)
        return StalledTopic(lag.topic, lag.sensor, tuple(sorted(standing)), waiting, max(standing.values()))


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
    stalled: tuple[StalledTopic, ...]
    dead_letters: tuple[DeadLetters, ...]


class BrokerLook:
    """Looks at the broker. Asks Dagster for the saved cursors at the same moment: numbers of two moments do not fit."""

    def __init__(self, services: SystemResources, records: DagsterRecords) -> None:
        self._services = services
        self._records = records
        self._states = TopicStates(services.settings.kafka)
        self._movement = Movement()

    def __call__(self) -> BrokerSeen:
        """Raises BrokerUnavailableError where it does not answer; the main one: an event hub may be away."""
        settings = self._services.settings
        # These first: they find out whether the broker answers.
        letters = tuple(self._dead_letters(topic) for topic in settings.topics.dead_letters)
        topics = LagMeter(self._services, self._records).lags_of(intakes(settings).all)
        return BrokerSeen(topics, self._movement.stalled(topics, time.monotonic()), letters)

    def _dead_letters(self, topic: str) -> DeadLetters:
        state = self._states.look_up(topic)
        bounds = state.bounds.values() if state else ()
        return DeadLetters(topic, sum(one.end for one in bounds), sum(one.end - one.start for one in bounds))
