"""A publisher in a process of its own, which is suspended as a laptop or a virtual machine is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.database import open_engine
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.publisher import MessageOutbox, PublisherReplacedError, StillOwns, publish_once
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.platform.kafka.sqlite_outbox import messages
from ingest_project_tests.services.kafka import settings_for

HALF = 500
REPLACED = 3


def suspend() -> None:
    """Stop this process; it goes on when it gets SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


class SuspendedOutbox(MessageOutbox):
    """Stops when the intent is on record."""

    def record_intent(self, topic: str, message_ids: Sequence[str], since: Mapping[int, int]) -> StillOwns:
        """Record it, and stop."""
        still_owns = super().record_intent(topic, message_ids, since)
        suspend()
        return still_owns


class SuspendedWriter(TopicWriter):
    """Stops when it is connected, or when the first half of the messages is on the topic."""

    def __init__(self, settings: KafkaSettings, before: int) -> None:
        super().__init__(settings)
        self._before = before

    def send_all(self, topic: str, messages: Iterable[ProducerRecord]) -> int:
        """Send some, and stop."""
        return super().send_all(topic, self._suspended(topic, messages))

    def _suspended(self, topic: str, messages: Iterable[ProducerRecord]) -> Iterator[ProducerRecord]:
        if not self._before:
            suspend()
        for number, message in enumerate(messages, 1):
            yield message
            if number == self._before:
                self._connected(topic).flush(10)
                suspend()


def publish(servers: str, database_url: str, topic: str, count: int, step: str) -> int:
    """Publish messages, for `Forks`.

    Args:
        servers: of the broker.
        database_url: of the outbox.
        topic: of the messages.
        count: of the messages.
        step: at which this process stops itself (SIGSTOP): `intended`, `connected` or `half`.

    Returns:
        REPLACED if another publisher has done its work meanwhile, else zero.
    """
    settings, engine = settings_for(servers), open_engine(database_url)
    writer = TopicWriter(settings) if step == "intended" else SuspendedWriter(settings, HALF if step == "half" else 0)
    outbox = SuspendedOutbox(engine) if step == "intended" else MessageOutbox(engine)
    try:
        publish_once(writer, TopicReader(settings), outbox, topic, messages(count))
    except PublisherReplacedError:
        return REPLACED
    return 0
