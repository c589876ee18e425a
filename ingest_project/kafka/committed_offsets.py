"""Where the consumer group's committed offsets stand: the next best when the saved cursors are out of reach.

They follow the cursors one tick behind, so what they call waiting may be read already; never the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from ingest_project.kafka.client import client_config, unavailable
from ingest_project.kafka.positions import Positions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingest_project.settings import KafkaSettings


def committed_positions(settings: KafkaSettings, topic: str, partitions: Iterable[int]) -> Positions | None:
    """What the group committed for a topic; None where it committed nothing.

    Args:
        settings: name the group.
        topic: to ask about.
        partitions: of the topic; brokers differ in what they answer when none are named.

    Raises:
        BrokerUnavailable: no answer.
    """
    places = [TopicPartition(topic, partition) for partition in partitions]
    if not places:
        return None
    admin = AdminClient(client_config(settings))
    try:
        answers = admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(settings.group_id, places)], request_timeout=settings.request_timeout_seconds
        )
        committed = answers[settings.group_id].result().topic_partitions
    except KafkaException as error:
        raise unavailable(settings, error) from error
    # A negative offset says that nothing was committed.
    offsets = {place.partition: place.offset for place in committed if place.offset >= 0}
    return Positions("", offsets) if offsets else None
