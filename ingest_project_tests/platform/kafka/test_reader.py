"""Bounded reads: their messages, when they return, and their notes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka.consumer import ReadBounds, ReadBuffer
from ingest_project.platform.kafka.offsets import Positions, TopicState, TopicStates
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.reader import BoundedRead, OpenRanges, TopicReader
from ingest_project_tests.services.kafka import Server, settings_for

PLENTY = 100 * 1024**2


def read(
    reader: TopicReader, topic: str, positions: Positions | None = None, *, limit: int = 1_000, wait: float = 0.0
) -> BoundedRead:
    return reader.read(topic, positions, max_messages=limit, max_bytes=PLENTY, wait_seconds=wait)


def values(brought: BoundedRead) -> list[bytes | None]:
    return [message.value for message in brought.messages]


def numbered(count: int) -> Iterable[ProducerRecord]:
    return (ProducerRecord(b"%d" % number) for number in range(count))


def test_a_message_is_read_back_with_its_key_headers_and_time(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    before = time.time()
    writer.send_all(topic, [ProducerRecord(b"\x00\xff", b"key", (("a", b"1"), ("a", b"2"), ("none", None)))])

    (message,) = read(reader, topic).messages

    assert (message.value, message.key) == (b"\x00\xff", b"key")
    assert message.headers == (("a", b"1"), ("a", b"2"), ("none", None))
    assert message.header("a") == b"2"
    assert message.timestamp is not None
    assert before - 1 <= message.timestamp.timestamp() <= time.time() + 1


def test_an_invalid_offset_counts_as_no_answer(
    embedded_server: Server, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded_server.create_topic(topic, 2)
    states = TopicStates(embedded_server.settings.model_copy(update={"request_timeout_seconds": 1.0}))
    known, ask, answers = states.look_up(topic), AdminClient.list_offsets, 0

    def as_where_the_broker_is_killed(
        client: AdminClient,
        wanted: dict[TopicPartition, Any],
        **how: Any,  # noqa: ANN401 - handed on
    ) -> object:
        nonlocal answers
        answers += 1
        found = ask(client, wanted, **how)
        return {one: _Unknown() for one in found} if answers <= unknown else found

    monkeypatch.setattr(AdminClient, "list_offsets", as_where_the_broker_is_killed)
    unknown = 2
    assert states.look_up(topic) == known
    unknown = 1_000
    with pytest.raises(BrokerUnavailableError):
        states.look_up(topic)


class _Unknown:
    """What librdkafka answers for a partition where the connection broke: no error, and an invalid offset."""

    offset = OFFSET_INVALID

    def result(self) -> _Unknown:
        return self


def test_reads_bounded_by_count_bring_each_message_once(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic, 3)
    writer.send_all(topic, numbered(1_000))
    positions: Positions | None = None
    seen: list[bytes | None] = []
    left: list[int] = []
    while not left or left[-1]:
        brought = read(reader, topic, positions, limit=300)
        assert len(brought.messages) <= 300
        positions = Positions.from_cursor(brought.positions.to_cursor())
        seen += values(brought)
        left.append(brought.remaining)

    assert len(seen) == 1_000
    assert set(seen) == {message.value for message in numbered(1_000)}
    assert left == [700, 400, 100, 0]


def test_reading_the_same_positions_again_brings_the_same_messages(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, numbered(50))
    start = read(reader, topic, limit=10).positions

    assert values(read(reader, topic, start, limit=20)) == values(read(reader, topic, start, limit=20))


def test_a_limit_on_bytes_is_kept_and_a_larger_message_still_passes(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, [ProducerRecord(b"x" * size) for size in (400, 400, 400, 2_000_000, 400)])
    positions, sizes = None, []
    for _ in range(4):
        brought = reader.read(topic, positions, max_messages=100, max_bytes=1_000, wait_seconds=0)
        positions = brought.positions
        sizes.append([len(value or b"") for value in values(brought)])

    assert sizes == [[400, 400], [400], [2_000_000], [400]]


def test_a_partition_with_a_long_backlog_does_not_starve_the_others(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic, 4)
    writer.send_all(topic, (ProducerRecord(b"x" * 1_000, b"same key") for _ in range(3_000)))
    writer.send_all(topic, (ProducerRecord(b"y", b"%d" % number) for number in range(100)))

    brought = read(reader, topic, limit=400)

    partitions = [message.partition for message in brought.messages]
    assert len(partitions) == 400
    assert len(set(partitions)) == 4


def test_a_waiting_read_returns_as_soon_as_a_message_arrives(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic, 4)
    writer.send_all(topic, numbered(1))
    positions = read(reader, topic).positions
    threading.Timer(0.3, writer.send_all, (topic, [ProducerRecord(b"news")])).start()
    started = time.monotonic()

    brought = read(reader, topic, positions, wait=60)

    assert values(brought) == [b"news"]
    assert time.monotonic() - started < 30


def test_a_quiet_topic_is_an_empty_read_after_the_wait(broker: Server, reader: TopicReader, topic: str) -> None:
    broker.create_topic(topic)
    started = time.monotonic()

    brought = read(reader, topic, wait=0.3)

    assert (brought.messages, brought.notices, brought.remaining) == ([], [], 0)
    assert 0.3 <= time.monotonic() - started < 10


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_codec_is_read(broker: Server, reader: TopicReader, topic: str, codec: str) -> None:
    broker.create_topic(topic)
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "compression.type": codec, "linger.ms": 50})
    for _ in range(100):
        producer.produce(topic, b"again and again" * 10)
    producer.flush(10)

    assert values(read(reader, topic)) == [b"again and again" * 10] * 100


def test_a_topic_that_does_not_exist_is_an_empty_read_that_says_so(reader: TopicReader, topic: str) -> None:
    brought = read(reader, topic, wait=5)

    assert brought.messages == []
    assert brought.notices == [f"Topic {topic} does not exist yet."]


def test_a_topic_that_appears_later_is_read_from_its_beginning(broker: Server, writer: TopicWriter, topic: str) -> None:
    latest = KafkaSettings(**{**broker.settings.model_dump(), "auto_offset_reset": "latest"})
    reader = TopicReader(latest)
    absent = read(reader, topic)
    broker.create_topic(topic)
    writer.send_all(topic, numbered(3))

    assert len(read(reader, topic, absent.positions).messages) == 3
    assert read(reader, topic, None).messages == []
    reader.close()


def test_a_recreated_topic_is_read_from_its_beginning_and_reported(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, numbered(2))
    positions = read(reader, topic).positions
    broker.delete_topic(topic)
    broker.create_topic(topic)
    # As many messages as before and more: the offsets alone would not show it.
    with_fresh_writer(broker, topic, 5)

    brought = read(reader, topic, positions, wait=5)

    assert values(brought) == [b"0", b"1", b"2", b"3", b"4"]
    assert brought.notices == [f"{topic} was created again since it was last read; reading it from its beginning."]
    assert read(reader, topic, brought.positions).notices == []


def test_messages_that_retention_removed_are_counted_and_the_rest_is_read(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    for number in range(10):
        writer.send_all(topic, [ProducerRecord(b"%d" % number)])
    positions = read(reader, topic, limit=2).positions
    broker.delete_records(topic, 0, 7)

    brought = read(reader, topic, positions)

    assert values(brought) == [b"7", b"8", b"9"]
    assert len(brought.notices) == 1
    assert "5 messages were removed before they were read" in brought.notices[0]


def test_retention_that_overtakes_a_range_between_look_up_and_fetch_ends_no_read(
    broker: Server, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    for number in range(10):
        writer.send_all(topic, [ProducerRecord(b"%d" % number)])
    removed = iter([2, 5, 7])

    class Overtaken(TopicStates):
        def look_up(self, topic: str) -> TopicState | None:
            found = super().look_up(topic)
            if before := next(removed, None):
                broker.delete_records(topic, 0, before)
            return found

    ranges = OpenRanges(broker.settings, Overtaken(broker.settings))
    chunks = list(ranges.read(topic, "", 0, 0, 10, 100, PLENTY))
    ranges.close()

    assert [message.value for chunk in chunks for message in chunk.messages] == [b"7", b"8", b"9"]
    assert sum(chunk.lost for chunk in chunks) == 7


def test_a_position_beyond_the_end_goes_on_from_the_beginning_and_is_said(
    broker: Server, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, numbered(3))
    fresh = TopicReader(broker.settings)

    brought = read(fresh, topic, Positions("", {0: 500}))

    assert len(brought.messages) == 3
    assert "before the saved position 500" in brought.notices[0]
    fresh.close()


def test_an_added_partition_is_read_from_its_beginning(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, numbered(1))
    positions = read(reader, topic).positions
    broker.add_partitions(topic, 3)
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    producer.produce(topic, b"new", partition=2)
    producer.flush(10)

    brought = read(reader, topic, positions, wait=2)

    assert values(brought) == [b"new"]
    assert set(brought.positions.next_offsets) == {0, 1, 2}


def test_transactions_are_read_once_committed_and_their_marks_are_no_lag(kafka_server: Server, topic: str) -> None:
    if not kafka_server.keeps_messages:
        pytest.skip("the embedded broker has no transactions")
    kafka_server.create_topic(topic)
    producer = Producer({"bootstrap.servers": kafka_server.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(20)
    for word, finish in ((b"kept", producer.commit_transaction), (b"dropped", producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(topic, word)
        producer.flush(5)
        finish(10)
    reader = TopicReader(kafka_server.settings)

    brought = read(reader, topic)

    assert values(brought) == [b"kept"]
    assert brought.remaining == 0
    assert reader.lag(topic, brought.positions) == {0: 0}
    reader.close()


def test_committed_offsets_follow_and_lag_is_counted(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, numbered(10))
    positions = read(reader, topic, limit=4).positions
    reader.commit(topic, positions)

    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": broker.settings.group_id})
    (committed,) = consumer.committed([TopicPartition(topic, 0)], timeout=10)
    consumer.close()
    assert committed.offset == 4
    assert reader.end_offsets(topic) == {0: 10}
    assert reader.lag(topic, positions) == {0: 6}
    assert reader.lag("absent", None) == {}


def test_a_commit_that_fails_is_logged_and_stops_nothing(logged: Callable[[], str]) -> None:
    nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_seconds=0.5)
    TopicReader(nowhere).commit("events", Positions("", {0: 1}))
    assert "Offsets of events were not committed" in logged()


def test_threads_read_different_topics_at_the_same_time(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    topics = [f"{topic}-{number}" for number in range(4)]
    for name in topics:
        broker.create_topic(name)
        writer.send_all(name, numbered(20))
    brought: dict[str, int] = {}

    def keep(name: str) -> None:
        brought[name] = len(read(reader, name).messages)

    threads = [threading.Thread(target=keep, args=(name,)) for name in topics]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert brought == dict.fromkeys(topics, 20)


def with_fresh_writer(broker: Server, topic: str, count: int) -> None:
    """Write with a producer that does not know an earlier life of the topic."""
    writer = TopicWriter(settings_for(broker.bootstrap_servers))
    writer.send_all(topic, numbered(count))
    writer.close()


ARRIVALS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from([None, b"", b"k"]),
        st.sampled_from([None, b"", b"x" * 10]),
        st.sampled_from([None, [("a", b"1")]]),
        st.integers(0, 9),
    ),
    max_size=12,
)


@given(
    ARRIVALS,
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(1, 120),
    st.one_of(st.none(), st.integers(1, 30)),
    st.integers(0, 5),
)
def test_messages_kept_together_leave_what_keeping_each_of_them_does(  # noqa: PLR0913, PLR0917 - all that bounds a read
    arrivals: list[tuple[int, bytes | None, bytes | None, Any, int]],
    share: int,
    max_messages: int,
    max_bytes: int,
    end: int | None,
    first: int,
) -> None:
    arrived, offset = [], first
    for step, key, value, headers, kind in arrivals:
        if kind == 0:
            arrived.append(Message("t", 0, offset, error=KafkaError(KafkaError._PARTITION_EOF)))
            continue
        partition = 1 if kind == 1 and step == 1 else 0
        arrived.append(
            Message("t", partition, offset, key=key, value=value, headers=headers, timestamp=(kind % 3, 1_000 + offset))
        )
        offset += step
    bounds = ReadBounds(max_messages, max_bytes, 0)
    ends = None if end is None else {0: end}
    together, each = (ReadBuffer({0: first}, {0: share}, bounds, ends) for _ in range(2))
    count = together.take_first(arrived)
    assert all(each.take(message) for message in arrived[:count])
    for message in arrived[count:]:
        if message.error() is None:
            assert together.take(message) == each.take(message)
    assert vars(together) == vars(each)
