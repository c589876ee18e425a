"""Learn that messages have arrived on topics, without reading topics that others read.

One consumer watches the ends of any number of topics, in one request that the broker holds back until something comes.
A topic in which a message was seen is left alone until it is watched again: who reads a busy topic reads it once.
"""

from __future__ import annotations

from collections.abc import Collection

from confluent_kafka import Consumer, KafkaException, TopicPartition

from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka import PresentPassword, client_config
from ingest_project.platform.kafka.offsets import TopicStates

# How long the broker holds back an answer. The embedded broker holds it back as long even if a message comes meanwhile.
FETCH_WAIT_MS = 100
# One message is enough to know of it.
FETCH_BYTES = 1_024
MESSAGES_AT_A_TIME = 100


class TopicWatch:
    """Watches topics of one cluster. Not safe to share between threads.

    Args:
        settings: of the cluster.

    Raises:
        BrokerUnavailableError: from `watch`, where the broker does not answer.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._states = TopicStates(settings)
        self._partitions: dict[str, list[int]] = {}
        self._consumer = Consumer(
            {
                **client_config(settings),
                # Required, and never used: nothing is committed, and no group is joined.
                "group.id": settings.group_id,
                "enable.auto.commit": False,
                # A topic that was created again has news.
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "fetch.message.max.bytes": FETCH_BYTES,
                "queued.min.messages": 1,
            }
        )
        self._password = PresentPassword(settings)

    def watch(self, topic: str) -> bool:
        """Notice every message that arrives on a topic from now on; return False where the topic does not exist."""
        self._leave(topic)
        state = self._states.look_up(topic)
        if state is None:
            return False
        self._password.give(self._consumer)
        self._consumer.incremental_assign(
            [TopicPartition(topic, partition, end) for partition, end in state.ends.items()]
        )
        self._partitions[topic] = list(state.ends)
        return True

    def wait(self, seconds: float) -> Collection[str]:
        """Return the topics on which messages have arrived, as soon as there are some; they are left alone then.

        Raises:
            KafkaException: the cluster refuses.
        """
        self._password.give(self._consumer)
        found: set[str] = set()
        for message in [*self._consumer.consume(1, seconds), *self._consumer.consume(MESSAGES_AT_A_TIME, 0)]:
            problem = message.error()
            if problem is None:
                found.add(message.topic() or "")
            elif problem.fatal():
                raise KafkaException(problem)
        for topic in found:
            self._leave(topic)
        return found

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _leave(self, topic: str) -> None:
        if partitions := self._partitions.pop(topic, None):
            self._consumer.incremental_unassign([TopicPartition(topic, partition) for partition in partitions])
