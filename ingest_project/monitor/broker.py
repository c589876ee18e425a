"""What the broker tells: how many messages of each topic wait, and how many dead letters there are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from ingest_project.kafka.topic_state import TopicStates
from ingest_project.monitor.intakes import intakes
from ingest_project.monitor.stalled_topics import Movement, StalledTopic
from ingest_project.monitor.topic_lag import LagMeter, TopicLag

if TYPE_CHECKING:
    from ingest_project.monitor.dagster_records import DagsterRecords
    from ingest_project.resources import Services


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

    def __init__(self, services: Services, records: DagsterRecords) -> None:
        self._services = services
        self._records = records
        self._states = TopicStates(services.settings.kafka)
        self._movement = Movement()

    def __call__(self) -> BrokerSeen:
        """Raises BrokerUnavailable where it does not answer; the main one: an event hub may be away."""
        settings = self._services.settings
        # These first: they find out whether the broker answers.
        letters = tuple(self._dead_letters(topic) for topic in settings.topics.dead_letters)
        topics = LagMeter(self._services, self._records).lags_of(intakes(settings).all)
        return BrokerSeen(topics, self._movement.stalled(topics, time.monotonic()), letters)

    def _dead_letters(self, topic: str) -> DeadLetters:
        state = self._states.look_up(topic)
        bounds = state.bounds.values() if state else ()
        return DeadLetters(topic, sum(one.end for one in bounds), sum(one.end - one.start for one in bounds))
