"""Requests of a tick: runs up to the topic's ends, each partition in one of them, and pauses after failures."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import load_settings
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.parallel import split
from ingest_project.streams.positions import SinkPosition, StreamPositions
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.sensor import PARTITIONS_TAG, StreamLimits, StreamSensor, end_of, tick
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.services.kafka import FaultyBroker

TOPIC = "stream"
LIMITS = StreamLimits(batch_messages=100, max_parallel_batches=2, max_unfinished_seconds=900)
NOW = datetime(2026, 1, 15, tzinfo=UTC)
POSITION = SinkPosition(
    stream="s", topic=TOPIC, topic_id="a", partition=0, epoch=0, first_offset=0, next_offset=5, outcome={},
    updated_at=NOW,
)  # fmt: skip


@pytest.fixture
def services(embedded_broker: FaultyBroker, tmp_path: Path) -> Iterator[StreamResources]:
    """A topic of two partitions and a database."""
    embedded_broker.create_topic(TOPIC, 2)
    environ = {
        "KAFKA_BOOTSTRAP_SERVERS": embedded_broker.bootstrap_servers,
        "KAFKA_REQUEST_TIMEOUT_SECONDS": "3",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'positions.db'}",
        "INGEST_TICK_WAIT_SECONDS": "0",
    }
    services = StreamResources(load_settings(environ, tmp_path).settings)
    yield services
    services.engine.dispose()
    services.reader.close()
    services.writer.close()


@pytest.fixture
def positions(services: StreamResources) -> StreamPositions:
    """Of the topic."""
    return StreamPositions(services.engine, "a_stream", TOPIC)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Dagster's records of one test."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def ticked(
    services: StreamResources, positions: StreamPositions, instance: dg.DagsterInstance, cursor: str | None = None
) -> dg.SensorResult:
    stream = StreamSensor("a_sensor", "a_job", "an_op", lambda _services: positions, LIMITS, 10)
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        result = tick(stream, context, services)
    assert isinstance(result, dg.SensorResult)
    return result


def send(services: StreamResources, *keys: bytes) -> None:
    services.writer.send_all(TOPIC, [ProducerRecord(b"x", key=key) for key in keys])


def ends(result: dg.SensorResult) -> list[dict[str, int]]:
    return [one.run_config["ops"]["an_op"]["config"]["end_offsets"] for one in result.run_requests or []]


def test_ticks_outlive_an_unavailable_broker_and_continue_when_it_is_back(
    services: StreamResources, positions: StreamPositions, instance: dg.DagsterInstance, embedded_broker: FaultyBroker
) -> None:
    send(services, b"one")
    first = ticked(services, positions, instance)
    embedded_broker.go_down()
    with pytest.raises(BrokerUnavailableError):
        ticked(services, positions, instance, first.cursor)
    embedded_broker.come_up()
    send(services, b"one")
    assert [list(one.values()) for one in ends(ticked(services, positions, instance, first.cursor))] == [[2]]


def test_the_cursor_is_where_the_sink_is_and_lags_until_messages_are_stored(
    services: StreamResources, positions: StreamPositions, instance: dg.DagsterInstance
) -> None:
    send(services, b"one")
    result = ticked(services, positions, instance)
    assert result.cursor is not None
    assert set(msgspec.json.decode(result.cursor)["next_offsets"].values()) == {0}


def test_a_partition_that_a_run_works_on_is_left_alone_and_the_others_are_requested(
    services: StreamResources, positions: StreamPositions, instance: dg.DagsterInstance
) -> None:
    send(services, *(b"%d" % number for number in range(20)))
    ticked(services, positions, instance)
    instance.create_run_for_job(a_job(), tags={PARTITIONS_TAG: "0"}, status=dg.DagsterRunStatus.STARTED)
    assert [set(one) for one in ends(ticked(services, positions, instance))] == [{"1"}]
    instance.create_run_for_job(a_job(), status=dg.DagsterRunStatus.STARTED)
    assert ends(ticked(services, positions, instance)) == []


def test_the_work_of_a_dead_run_is_requested_after_a_pause_with_its_reason_recorded(
    services: StreamResources, positions: StreamPositions, instance: dg.DagsterInstance
) -> None:
    send(services, b"one")
    (request,) = ticked(services, positions, instance).run_requests or []
    partition = int(request.tags[PARTITIONS_TAG])
    positions.lease([positions.current()[partition]], "a run that is gone")
    assert ends(ticked(services, positions, instance)) == []
    left = positions.current()[partition]
    assert (left.attempts, left.run_id) == (1, None)
    assert "a run that is gone ended before" in (left.reason or "")
    assert not left.is_due(datetime.now(UTC))
    assert ends(ticked(services, positions, instance)) == []
    services.settings = changed(services.settings, "retries", delay_seconds=0.0)
    positions.lease([left], "another")
    positions.fail([(left, "no")], "another", services.settings.retries, datetime.now(UTC))
    assert len(ends(ticked(services, positions, instance))) == 1


def test_after_each_failure_a_run_goes_half_as_far_so_that_a_poison_message_ends_up_alone() -> None:
    def reach(attempts: int) -> int:
        return end_of(msgspec.structs.replace(POSITION, attempts=attempts), 1_000, 100)

    assert [reach(attempts) for attempts in (0, 1, 2, 6, 7, 100)] == [105, 55, 30, 6, 6, 6]
    assert end_of(POSITION, 7, 100) == 7


@given(
    waiting=st.dictionaries(st.integers(0, 50), st.integers(0, 10**7), min_size=1), most=st.integers(1, 5),
    worth=st.integers(1, 10**6),
)  # fmt: skip
def test_each_partition_is_in_one_run_and_none_is_without_work(waiting: dict[int, int], most: int, worth: int) -> None:
    shares = split(waiting, most, worth)
    assert sorted(partition for share in shares for partition in share) == sorted(waiting)
    assert 1 <= len(shares) <= most
    assert all(shares)


def test_partitions_are_divided_evenly_and_little_work_is_one_run() -> None:
    assert sorted(map(sorted, split({0: 400, 1: 100, 2: 100, 3: 200}, 2, 100))) == [[0], [1, 2, 3]]
    assert len(split(dict.fromkeys(range(4), 10), 2, 100)) == 1


@dg.op
def an_op() -> None:
    """Do nothing."""


def a_job() -> dg.JobDefinition:
    @dg.job(name="a_job")
    def job() -> None:
        an_op()

    return job
