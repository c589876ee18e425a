"""Each id exactly once on the topic, wherever the publisher is killed."""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest_project.platform.database import open_engine
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import TopicWriter
from ingest_project.platform.kafka.publisher import MESSAGE_ID_HEADER, MessageOutbox, publish_once
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.platform.kafka.interrupted_publisher import messages
from ingest_project_tests.services.kafka import Server

COUNT = 1_500
PUBLISHER = "ingest_project_tests.platform.kafka.interrupted_publisher"


@pytest.fixture
def outbox(postgres_url: str) -> Iterator[MessageOutbox]:
    engine = open_engine(postgres_url)
    yield MessageOutbox(engine)
    engine.dispose()


def start_publisher(broker: Server, database_url: str, topic: str, interruption: str) -> subprocess.Popen[str]:
    """Start a publisher that sends itself a signal at a step, e.g. `SIGKILL half`."""
    arguments = [broker.bootstrap_servers, database_url, topic, str(COUNT), *interruption.split()]
    return subprocess.Popen([sys.executable, "-m", PUBLISHER, *arguments], stdout=subprocess.PIPE, text=True)


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


@pytest.mark.parametrize("step", ["intended", "sending", "written"])
def test_a_publisher_killed_at_any_step_leaves_each_id_once_when_run_again(  # noqa: PLR0913, PLR0917 - fixtures
    broker: Server,
    reader: TopicReader,
    writer: TopicWriter,
    topic: str,
    postgres_url: str,
    outbox: MessageOutbox,
    step: str,
) -> None:
    broker.create_topic(topic, 2)
    killed = start_publisher(broker, postgres_url, topic, f"SIGKILL {step}")
    killed.communicate(timeout=20)
    assert killed.returncode == -signal.SIGKILL

    publish_once(writer, reader, outbox, topic, messages(COUNT))

    assert ids_on(reader, topic) == once()


def test_a_publisher_killed_at_random_leaves_each_id_once_when_run_again(  # noqa: PLR0913, PLR0917 - fixtures
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str, postgres_url: str, outbox: MessageOutbox
) -> None:
    broker.create_topic(topic, 2)
    for _ in range(3):
        publisher = start_publisher(broker, postgres_url, topic, "SIGKILL never")
        time.sleep(random.uniform(0.3, 1.2))  # noqa: S311 - no secret
        publisher.kill()
        publisher.communicate()

    publish_once(writer, reader, outbox, topic, messages(COUNT))

    assert ids_on(reader, topic) == once()


@pytest.mark.parametrize("step", ["intended", "connected", "half"])
def test_a_publisher_that_is_suspended_and_goes_on_after_its_successor_writes_nothing_twice(  # noqa: PLR0913, PLR0917 - fixtures
    broker: Server,
    reader: TopicReader,
    writer: TopicWriter,
    topic: str,
    postgres_url: str,
    outbox: MessageOutbox,
    step: str,
) -> None:
    broker.create_topic(topic, 2)
    suspended = start_publisher(broker, postgres_url, topic, f"SIGSTOP {step}")
    try:
        _, status = os.waitpid(suspended.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

        publish_once(writer, reader, outbox, topic, messages(COUNT))
        suspended.send_signal(signal.SIGCONT)
        said, _ = suspended.communicate(timeout=60)
    finally:
        suspended.kill()
        suspended.wait()

    assert said.split() == ["published"], "by its successor"
    assert ids_on(reader, topic) == once()


def test_publishers_of_the_same_messages_at_the_same_time_write_them_once_and_none_of_them_fails(
    broker: Server, reader: TopicReader, topic: str, outbox: MessageOutbox
) -> None:
    broker.create_topic(topic, 2)

    def publish(_number: int) -> int:
        writer = TopicWriter(broker.settings)
        try:
            return publish_once(writer, TopicReader(broker.settings), outbox, topic, messages(COUNT))
        finally:
            writer.close()

    with ThreadPoolExecutor(4) as publishers:
        written = list(publishers.map(publish, range(4)))

    assert max(written) == COUNT
    assert ids_on(reader, topic) == once()


def test_publishing_again_writes_nothing(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str, outbox: MessageOutbox
) -> None:
    broker.create_topic(topic)
    twice_in_one_call = messages(10) + messages(20)

    written = [publish_once(writer, reader, outbox, topic, twice_in_one_call) for _ in range(2)]

    assert written == [20, 0]
    assert ids_on(reader, topic) == once(20)
