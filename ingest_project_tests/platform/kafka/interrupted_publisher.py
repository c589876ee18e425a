"""A publisher that a test starts as a process of its own, and that sends itself a signal at one step.

The signal is SIGKILL, or SIGSTOP: as a laptop or a virtual machine is suspended. The step is `intended`, `connected`,
`half`, `sending`, `written` or `never`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import sqlalchemy as sa

from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.database import open_engine
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.publisher import MessageOutbox, StillOwns, publish_once
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.services.kafka import settings_for

PUBLISHED = 0
HALF = 500
# Later than the first half, so that some messages are written and some are not.
SOME_MORE = 600

Interrupt = Callable[[str], None]
"""Sends the signal where the step is the one that was asked for."""


class InterruptedOutbox(MessageOutbox):
    """Is interrupted when the intent is on record, or before it marks messages as sent."""

    def __init__(self, engine: sa.Engine, interrupt: Interrupt) -> None:
        super().__init__(engine)
        self._interrupt = interrupt

    def record_intent(self, topic: str, message_ids: Sequence[str], since: Mapping[int, int]) -> StillOwns:
        """Record it, and be interrupted."""
        still_owns = super().record_intent(topic, message_ids, since)
        self._interrupt("intended")
        return still_owns

    def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
        """Be interrupted, and mark them."""
        self._interrupt("written")
        super().mark_sent(topic, message_ids)


class InterruptedWriter(TopicWriter):
    """Is interrupted when it is connected, when the first half is on the topic, or when more is on its way."""

    def __init__(self, settings: KafkaSettings, interrupt: Interrupt) -> None:
        super().__init__(settings)
        self._interrupt = interrupt

    def send_all(self, topic: str, messages: Iterable[ProducerRecord]) -> int:
        """Send some, and be interrupted."""
        return super().send_all(topic, self._interrupted(topic, messages))

    def _interrupted(self, topic: str, messages: Iterable[ProducerRecord]) -> Iterator[ProducerRecord]:
        self._interrupt("connected")
        for number, message in enumerate(messages, 1):
            yield message
            if number == HALF:
                self._connected(topic).flush(10)
                self._interrupt("half")
            elif number == SOME_MORE:
                self._interrupt("sending")


def messages(count: int) -> list[tuple[str, ProducerRecord]]:
    """Messages whose value is their id, large enough that they do not all leave in one request."""
    return [(f"id-{number}", ProducerRecord(b"%d " % number + b"x" * 2_000)) for number in range(count)]


def publish(servers: str, database_url: str, topic: str, count: int, signal_name: str, chosen: str) -> int:  # noqa: PLR0913, PLR0917 - of a process
    """Publish; returns the exit code: PUBLISHED, or another one if the call failed."""

    def interrupt(step: str) -> None:
        if step == chosen:
            os.kill(os.getpid(), signal.Signals[signal_name])

    settings = settings_for(servers)
    writer, outbox = InterruptedWriter(settings, interrupt), InterruptedOutbox(open_engine(database_url), interrupt)
    publish_once(writer, TopicReader(settings), outbox, topic, messages(count))
    return PUBLISHED
