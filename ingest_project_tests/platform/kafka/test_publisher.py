"""Each id exactly once on the topic, wherever the publisher is killed."""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingest_project.platform.database import migrate, open_engine
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import TopicWriter
from ingest_project.platform.kafka.publisher import MESSAGE_ID_HEADER, MessageOutbox, publish_once
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.platform.kafka.sqlite_outbox import SqliteOutbox, messages
from ingest_project_tests.services.kafka import Server

COUNT = 1_500


def start_publisher(broker: Server, outbox: Path, topic: str, die_at: str) -> subprocess.Popen[bytes]:
    module = "ingest_project_tests.platform.kafka.sqlite_outbox"
    arguments = [broker.bootstrap_servers, str(outbox), topic, str(COUNT), die_at]
    return subprocess.Popen([sys.executable, "-m", module, *arguments])


def ids_on(reader: TopicReader, topic: str) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    positions, remaining = Positions("", {}), 1
    while remaining:
        step = reader.read(topic, positions, max_messages=5_000, max_bytes=50_000_000, wait_seconds=0)
        positions, remaining = step.positions, step.remaining
        found.update((message.header(MESSAGE_ID_HEADER) or b"").decode() for message in step.messages)
    return found


def once(count: int = COUNT) -> collections.Counter[str]:
    return collections.Counter(f"id-{number}" for number in range(count))


@pytest.mark.parametrize("step", ["after_intend", "in_produce", "before_mark"])
def test_a_publisher_killed_at_any_step_leaves_each_id_once_when_run_again(  # noqa: PLR0913, PLR0917 - fixtures
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str, tmp_path: Path, step: str
) -> None:
    broker.create_topic(topic, 2)
    killed = start_publisher(broker, tmp_path / "outbox", topic, step)
    assert killed.wait(20) == -signal.SIGKILL
    outbox = SqliteOutbox(str(tmp_path / "outbox"))

    publish_once(writer, reader, outbox, topic, messages(COUNT))

    outbox.close()
    assert ids_on(reader, topic) == once()


def test_a_publisher_killed_at_random_leaves_each_id_once_when_run_again(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str, tmp_path: Path
) -> None:
    broker.create_topic(topic, 2)
    for _ in range(3):
        publisher = start_publisher(broker, tmp_path / "outbox", topic, "never")
        time.sleep(random.uniform(0.3, 1.2))  # noqa: S311 - no secret
        publisher.kill()
        publisher.wait()
    outbox = SqliteOutbox(str(tmp_path / "outbox"))

    publish_once(writer, reader, outbox, topic, messages(COUNT))

    outbox.close()
    assert ids_on(reader, topic) == once()


@pytest.mark.parametrize("step", ["intended", "connected", "half"])
def test_a_publisher_that_is_suspended_and_goes_on_after_its_successor_writes_nothing_twice(  # noqa: PLR0913, PLR0917 - fixtures
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str, postgres_url: str, step: str
) -> None:
    broker.create_topic(topic, 2)
    engine = open_engine(postgres_url)
    migrate(engine)
    module = "ingest_project_tests.platform.kafka.suspended_publisher"
    arguments = [broker.bootstrap_servers, postgres_url, topic, str(COUNT), step]
    suspended = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        _, status = os.waitpid(suspended.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

        publish_once(writer, reader, MessageOutbox(engine), topic, messages(COUNT))
        suspended.send_signal(signal.SIGCONT)
        said, _ = suspended.communicate(timeout=60)
    finally:
        suspended.kill()
        suspended.wait()
        engine.dispose()

    assert said.split() == ["published"], "by its successor"
    assert ids_on(reader, topic) == once()


def test_publishers_of_the_same_messages_at_the_same_time_write_them_once_and_none_of_them_fails(
    broker: Server, reader: TopicReader, topic: str, postgres_url: str
) -> None:
    broker.create_topic(topic, 2)
    engine = open_engine(postgres_url)
    migrate(engine)

    def publish(_number: int) -> int:
        writer = TopicWriter(broker.settings)
        try:
            return publish_once(writer, TopicReader(broker.settings), MessageOutbox(engine), topic, messages(COUNT))
        finally:
            writer.close()

    try:
        with ThreadPoolExecutor(4) as publishers:
            written = list(publishers.map(publish, range(4)))
    finally:
        engine.dispose()

    assert max(written) == COUNT
    assert ids_on(reader, topic) == once()


def test_publishing_again_writes_nothing(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str, tmp_path: Path
) -> None:
    broker.create_topic(topic)
    outbox = SqliteOutbox(str(tmp_path / "outbox"))
    twice_in_one_call = messages(10) + messages(20)

    written = [publish_once(writer, reader, outbox, topic, twice_in_one_call) for _ in range(2)]

    outbox.close()
    assert written == [20, 0]
    assert ids_on(reader, topic) == once(20)
