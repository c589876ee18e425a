"""Each id exactly once on the topic, wherever the publisher is killed."""

from __future__ import annotations

import collections
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project.platform.database import open_engine
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import TopicWriter
from ingest_project.platform.kafka.publisher import MESSAGE_ID_HEADER, MessageOutbox, publish_once
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.platform.kafka import sqlite_outbox, suspended_publisher
from ingest_project_tests.platform.kafka.sqlite_outbox import SqliteOutbox, messages
from ingest_project_tests.services.forks import Forks
from ingest_project_tests.services.kafka import Server

COUNT = 1_500


@pytest.fixture(scope="module")
def publishers() -> Iterator[Forks]:
    """Publishers that may be killed and suspended."""
    forks = Forks(sqlite_outbox.__name__, suspended_publisher.__name__)
    yield forks
    forks.close()


def start_publisher(publishers: Forks, broker: Server, outbox: Path, topic: str, die_at: str) -> int:
    function = f"{sqlite_outbox.__name__}:publish"
    return publishers.start(function, broker.bootstrap_servers, str(outbox), topic, COUNT, die_at)


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
    broker: Server,
    publishers: Forks,
    reader: TopicReader,
    writer: TopicWriter,
    topic: str,
    tmp_path: Path,
    step: str,
) -> None:
    broker.create_topic(topic, 2)
    killed = start_publisher(publishers, broker, tmp_path / "outbox", topic, step)
    assert publishers.wait(killed) == -signal.SIGKILL
    outbox = SqliteOutbox(str(tmp_path / "outbox"))

    publish_once(writer, reader, outbox, topic, messages(COUNT))

    outbox.close()
    assert ids_on(reader, topic) == once()


def test_a_publisher_killed_at_random_leaves_each_id_once_when_run_again(  # noqa: PLR0913, PLR0917 - fixtures
    broker: Server, publishers: Forks, reader: TopicReader, writer: TopicWriter, topic: str, tmp_path: Path
) -> None:
    broker.create_topic(topic, 2)
    for _ in range(3):
        publisher = start_publisher(publishers, broker, tmp_path / "outbox", topic, "never")
        time.sleep(random.uniform(0.0, 0.5))  # noqa: S311 - no secret
        # It may have ended, and is there until somebody waits for it.
        os.kill(publisher, signal.SIGKILL)
        publishers.wait(publisher)
    outbox = SqliteOutbox(str(tmp_path / "outbox"))

    publish_once(writer, reader, outbox, topic, messages(COUNT))

    outbox.close()
    assert ids_on(reader, topic) == once()


@pytest.mark.parametrize("step", ["intended", "connected", "half"])
def test_a_publisher_that_is_suspended_and_goes_on_after_its_successor_writes_nothing_twice(  # noqa: PLR0913, PLR0917 - fixtures
    broker: Server,
    publishers: Forks,
    reader: TopicReader,
    writer: TopicWriter,
    topic: str,
    postgres_url: str,
    step: str,
) -> None:
    broker.create_topic(topic, 2)
    engine = open_engine(postgres_url)
    function = f"{suspended_publisher.__name__}:publish"
    suspended = publishers.start(function, broker.bootstrap_servers, postgres_url, topic, COUNT, step)
    assert publishers.wait(suspended) == -signal.SIGSTOP
    try:
        publish_once(writer, reader, MessageOutbox(engine), topic, messages(COUNT))
    finally:
        os.kill(suspended, signal.SIGCONT)
        how_it_ended = publishers.wait(suspended)
        engine.dispose()

    assert how_it_ended == suspended_publisher.REPLACED
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
