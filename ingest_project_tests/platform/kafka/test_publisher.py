"""Each id exactly once on the topic, wherever the publisher is killed."""

from __future__ import annotations

import collections
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest

from ingest_project.platform.database import open_engine
from ingest_project.platform.kafka import publisher
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import TopicWriter
from ingest_project.platform.kafka.publisher import MESSAGE_ID_HEADER, MessageOutbox, publish_once
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.platform.kafka import interrupted_publisher
from ingest_project_tests.platform.kafka.interrupted_publisher import messages
from ingest_project_tests.services.forks import Forks
from ingest_project_tests.services.kafka import Server

COUNT = 1_500


@pytest.fixture
def outbox(postgres_url: str) -> Iterator[MessageOutbox]:
    engine = open_engine(postgres_url)
    yield MessageOutbox(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Publishers that may be killed and suspended."""
    forks = Forks(interrupted_publisher.__name__)
    yield forks
    forks.close()


@dataclass(frozen=True)
class Publishers:
    """Processes that publish the same messages, and this one, which publishes them after the others.

    Args:
        start: starts a process that sends itself a signal at a step; returns its id.
        wait: waits until it has ended or is stopped; returns its exit code, negative if a signal did it.
        publish: publishes in this process.
        ids: returns the ids that are on the topic.
    """

    start: Callable[[str, str], int]
    wait: Callable[[int], int]
    publish: Callable[[], int]
    ids: Callable[[], collections.Counter[str]]


@pytest.fixture
def publishers(  # noqa: PLR0913, PLR0917 - fixtures
    broker: Server,
    forks: Forks,
    reader: TopicReader,
    writer: TopicWriter,
    topic: str,
    postgres_url: str,
    outbox: MessageOutbox,
    monkeypatch: pytest.MonkeyPatch,
) -> Publishers:
    broker.create_topic(topic, 2)
    # The others are dead or suspended: that one of them may go on by itself is not waited for.
    monkeypatch.setattr(publisher, "YOUNG_SECONDS", 0.1)
    function = f"{interrupted_publisher.__name__}:publish"
    return Publishers(
        partial(forks.start, function, broker.bootstrap_servers, postgres_url, topic, COUNT),
        forks.wait,
        lambda: publish_once(writer, reader, outbox, topic, messages(COUNT)),
        lambda: ids_on(reader, topic),
    )


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
def test_a_publisher_killed_at_any_step_leaves_each_id_once_when_run_again(publishers: Publishers, step: str) -> None:
    assert publishers.wait(publishers.start("SIGKILL", step)) == -signal.SIGKILL

    publishers.publish()

    assert publishers.ids() == once()


def test_a_publisher_killed_at_random_leaves_each_id_once_when_run_again(publishers: Publishers) -> None:
    for _ in range(3):
        started = publishers.start("SIGKILL", "never")
        time.sleep(random.uniform(0.0, 0.5))  # noqa: S311 - no secret
        # It may have ended, and is there until somebody waits for it.
        os.kill(started, signal.SIGKILL)
        publishers.wait(started)

    publishers.publish()

    assert publishers.ids() == once()


@pytest.mark.parametrize("step", ["intended", "connected", "half"])
def test_a_publisher_that_is_suspended_and_goes_on_after_its_successor_writes_nothing_twice(
    publishers: Publishers, step: str
) -> None:
    suspended = publishers.start("SIGSTOP", step)
    assert publishers.wait(suspended) == -signal.SIGSTOP
    try:
        publishers.publish()
    finally:
        os.kill(suspended, signal.SIGCONT)
        how_it_ended = publishers.wait(suspended)

    assert how_it_ended == interrupted_publisher.PUBLISHED, "by its successor"
    assert publishers.ids() == once()


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

    with ThreadPoolExecutor(4) as threads:
        written = list(threads.map(publish, range(4)))

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
