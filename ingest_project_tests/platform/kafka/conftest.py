"""Both brokers, a fresh topic name for each test, and the reader and writer under test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from ingest_project.platform.kafka.producer import TopicWriter
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.services.kafka import EmbeddedServer, Server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def embedded_server() -> EmbeddedServer:
    """The embedded broker, which ends with this process: after all tests its end took minutes at times."""
    return EmbeddedServer()


@pytest.fixture(params=["kafka_server", "embedded_server"])
def broker(request: pytest.FixtureRequest) -> Server:
    """Apache Kafka, then the embedded broker; both are shared, so tests leave them running."""
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def topic() -> str:
    """A name that no other test uses."""
    return f"events-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def reader(broker: Server) -> Iterator[TopicReader]:
    reader = TopicReader(broker.settings)
    yield reader
    reader.close()


@pytest.fixture
def writer(broker: Server) -> Iterator[TopicWriter]:
    writer = TopicWriter(broker.settings)
    yield writer
    writer.close()
