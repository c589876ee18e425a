"""News of topics, without reading them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.reader import TopicWatch
from ingest_project_tests.services.kafka import Server, settings_for

PATIENCE_SECONDS = 20.0


@pytest.fixture
def watch(broker: Server) -> Iterator[TopicWatch]:
    watch = TopicWatch(settings_for(broker.bootstrap_servers))
    yield watch
    watch.close()


def news(watch: TopicWatch) -> set[str]:
    """The topics of the first news."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if found := watch.wait(0.2):
            return set(found)
    return set()


def test_a_topic_with_news_is_named_once_until_it_is_watched_again(
    broker: Server, watch: TopicWatch, writer: TopicWriter, topic: str
) -> None:
    other = f"{topic}-other"
    broker.create_topic(topic, 3)
    broker.create_topic(other)
    writer.send_all(topic, [ProducerRecord(b"before")])
    assert watch.watch(topic)
    assert watch.watch(other)
    assert not watch.wait(0.3), "what was there before is no news"
    writer.send_all(topic, [ProducerRecord(b"1"), ProducerRecord(b"2")])
    assert news(watch) == {topic}
    writer.send_all(topic, [ProducerRecord(b"3")])
    writer.send_all(other, [ProducerRecord(b"1")])
    assert news(watch) == {other}
    assert watch.watch(topic)
    assert not watch.wait(0.3)
    writer.send_all(topic, [ProducerRecord(b"4")])
    assert news(watch) == {topic}


def test_a_topic_that_does_not_exist_is_not_watched(watch: TopicWatch, topic: str) -> None:
    assert not watch.watch(topic)
    assert not watch.wait(0.1)
