"""An outbox in a SQLite file, and a publisher that is killed in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.services.kafka import settings_for


class SqliteOutbox:
    """The protocol of `publish_once`, durable in a file."""

    def __init__(self, path: str, die_at: str = "never") -> None:
        self._die_at = die_at
        self._rows = sqlite3.connect(path, isolation_level=None)
        self._rows.execute("create table if not exists outbox (id text primary key, since text, sent int default 0)")

    def unsent(self, message_ids: Sequence[str]) -> list[str]:
        """Those not marked."""
        sent = {row[0] for row in self._rows.execute("select id from outbox where sent = 1")}
        return [message_id for message_id in message_ids if message_id not in sent]

    def record_intent(self, topic: str, message_ids: Sequence[str], since: Mapping[int, int]) -> None:
        """Insert them; rows that are there keep their `since`."""
        del topic
        rows = [(message_id, json.dumps(since)) for message_id in message_ids]
        self._rows.execute("begin")
        self._rows.executemany("insert into outbox (id, since) values (?, ?) on conflict do nothing", rows)
        self._rows.execute("commit")
        self._die("after_intend")

    def interrupted(self, topic: str, message_ids: Sequence[str]) -> Mapping[str, Mapping[int, int]]:
        """Those with a row and no mark."""
        del topic
        wanted = set(message_ids)
        return {
            message_id: {int(partition): offset for partition, offset in json.loads(since).items()}
            for message_id, since in self._rows.execute("select id, since from outbox where sent = 0")
            if message_id in wanted
        }

    def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
        """Mark them."""
        del topic
        self._die("before_mark")
        self._rows.execute("begin")
        self._rows.executemany("update outbox set sent = 1 where id = ?", [(name,) for name in message_ids])
        self._rows.execute("commit")

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    def _die(self, step: str) -> None:
        if self._die_at == step:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingWriter(TopicWriter):
    """A writer whose process is killed when some messages have been handed to the producer."""

    def send_all(self, topic: str, messages: Iterable[ProducerRecord]) -> int:
        """Send some, and die."""
        return super().send_all(topic, self._until_death(messages))

    def _until_death(self, messages: Iterable[ProducerRecord]) -> Iterable[ProducerRecord]:
        for number, message in enumerate(messages):
            if number == 600:  # past the first report: some are written and some are not
                os.kill(os.getpid(), signal.SIGKILL)
            yield message


def messages(count: int) -> list[tuple[str, ProducerRecord]]:
    """Messages whose value is their id, large enough that they do not all leave in one request."""
    return [(f"id-{number}", ProducerRecord(b"%d " % number + b"x" * 2_000)) for number in range(count)]


def publish(servers: str, path: str, topic: str, count: int, die_at: str) -> int:
    """Publish messages, for `Forks`.

    Args:
        servers: of the broker.
        path: of the outbox.
        topic: of the messages.
        count: of the messages.
        die_at: the step at which this process kills itself: after_intend, in_produce, before_mark, or never.

    Returns:
        zero.
    """
    settings = settings_for(servers)
    writer = DyingWriter(settings) if die_at == "in_produce" else TopicWriter(settings)
    publish_once(writer, TopicReader(settings), SqliteOutbox(path, die_at), topic, messages(count))
    return 0
