"""A backlog decoded by several processes has the same result as with one, also after a kill."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ingest_project.core.errors import BrokerUnavailableError, IngestError, UnreadableMessageError
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.runtime import processors
from ingest_project.streams.delta.rows import StreamRows
from ingest_project.streams.delta.sink import DeltaSink
from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.engine import Batch, StreamRun, settle, store_stream
from ingest_project.streams.parallel import DecodingStoppedError, forked, processes_of
from ingest_project.streams.positions import SinkPosition
from ingest_project.streams.user_activity.event_table import SCHEMA, event_rows
from ingest_project_tests.crashes.deadly_process import DeadlyProcess
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.streams.user_activity.events import event, received
from ingest_project_tests.streams.user_activity.system import ActivitySystem

PER_PARTITION, PER_COMMIT = 130, 20
KEYS = (b"one", b"three", b"a", b"b", b"c", b"d")


def in_two_processes(stream: DeltaStream, folder: Path) -> DeltaStream:
    """Return the stream with small commits, decoded in two processes, each of which leaves a file with its id."""

    def decode(messages: Sequence[ConsumerRecord], topic_id: str) -> StreamRows:
        (folder / f"{os.getpid()}.pid").touch()
        return event_rows(messages, topic_id)

    return replace(stream, processes=2, commit_messages=PER_COMMIT, decode=decode)


def decoders(folder: Path) -> set[int]:
    return {int(path.stem) for path in folder.glob("*.pid")}


def sent(activity: ActivitySystem) -> list[str]:
    """Send as many events to each of two partitions, and messages that are none among them; return the ids."""
    number = 0
    while len(activity.partitions_with_messages) < 2:
        activity.put(*(event(f"{KEYS[number]!r}{one}") for one in range(PER_PARTITION)), b"no JSON", key=KEYS[number])
        activity.put(*(event(f"{KEYS[number]!r}{PER_PARTITION + one}") for one in range(PER_COMMIT)), key=KEYS[number])
        number += 1
    return sorted(f"{key!r}{one}" for key in KEYS[:number] for one in range(PER_PARTITION + PER_COMMIT))


def stored(activity: ActivitySystem, sink: DeltaSink, run_id: str = "one") -> StreamRun:
    run = store_stream(activity.services, activity.positions, sink, run_id=run_id)
    settle(activity.services, activity.positions, run)
    return run


def require_each_once(activity: ActivitySystem, ids: list[str]) -> None:
    assert (
        sorted(row["event_id"] for row in activity.rows("event_id, kafka_topic_id, kafka_partition, kafka_offset"))
        == ids
    )
    assert len(activity.dead_letters) == len(ids) // (PER_PARTITION + PER_COMMIT)
    assert activity.passed("no_gap_in_offsets", "no_duplicate_offsets") == [True, True]


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_two_processes_decode_and_each_message_is_stored_once(activity: ActivitySystem, tmp_path: Path) -> None:
    ids = sent(activity)
    run = stored(activity, DeltaSink(in_two_processes(activity.services.user_activity, tmp_path)))
    assert (run.failures, run.conflicts) == ({}, set())
    assert len(decoders(tmp_path)) == 2
    assert os.getpid() not in decoders(tmp_path)
    assert all(map(has_ended, decoders(tmp_path)))
    require_each_once(activity, ids)


def test_a_killed_child_fails_the_run_and_the_next_one_decodes_in_its_own_process(
    activity: ActivitySystem, tmp_path: Path
) -> None:
    ids = sent(activity)
    stream, calls = in_two_processes(activity.services.user_activity, tmp_path), iter(range(10_000))
    first, _ = activity.partitions_with_messages

    def die(messages: Sequence[ConsumerRecord], topic_id: str) -> StreamRows:
        if next(calls) == 3 and messages[0].partition == first:
            os.kill(os.getpid(), signal.SIGKILL)
        return stream.decode(messages, topic_id)

    run = stored(activity, DeltaSink(replace(stream, decode=die)))
    assert {type(failure) for failure in run.failures.values()} == {DecodingStoppedError}
    assert "exit code -9" in str(run.failure)
    assert all(map(has_ended, decoders(tmp_path)))
    for one in decoders(tmp_path):
        (tmp_path / f"{one}.pid").unlink()

    assert stored(activity, DeltaSink(stream), "two").failures == {}
    assert decoders(tmp_path) == {os.getpid()}
    require_each_once(activity, ids)


def test_a_child_that_loses_the_broker_stops_the_run(activity: ActivitySystem, tmp_path: Path) -> None:
    sent(activity)

    def fail(messages: Sequence[ConsumerRecord], topic_id: str) -> StreamRows:
        raise BrokerUnavailableError("kafka:9092", f"no answer over {len(messages)} messages of {topic_id}")

    stream = in_two_processes(activity.services.user_activity, tmp_path)
    run = stored(activity, DeltaSink(replace(stream, decode=fail)))
    assert {type(failure) for failure in run.failures.values()} == {BrokerUnavailableError}
    assert "kafka:9092" in str(run.failure)
    assert len(run.failures) == 2


def test_offsets_that_retention_removed_are_reported_by_the_child_that_misses_them(
    activity: ActivitySystem, kafka_server: Server, tmp_path: Path
) -> None:
    sent(activity)
    backlog = activity.services.range_reader.backlog(activity.topic, None, 0)
    assert backlog is not None
    activity.positions.begin(backlog, datetime.now(UTC))
    kafka_server.delete_records(activity.topic, activity.partitions_with_messages[0], 5)
    run = stored(activity, DeltaSink(in_two_processes(activity.services.user_activity, tmp_path)))
    assert run.failures == {}
    assert len(decoders(tmp_path)) == 2
    assert [(one.offsets.first, one.offsets.end) for one in activity.positions.lost()] == [(0, 5)]


class Overtaken(DeltaSink):
    """Another run stores everything before the first batch of this one is stored."""

    def __init__(self, stream: DeltaStream, overtake: Callable[[], object]) -> None:
        super().__init__(stream)
        self._overtake: Callable[[], object] | None = overtake

    def store(self, batch: Batch[StreamRows], position: SinkPosition) -> SinkPosition:
        """Let the other run store first."""
        if (overtake := self._overtake) is not None:
            self._overtake = None
            overtake()
        return super().store(batch, position)


def test_partitions_that_another_run_stores_are_left_to_it(activity: ActivitySystem, tmp_path: Path) -> None:
    ids = sent(activity)
    stream = in_two_processes(activity.services.user_activity, tmp_path)
    alone = DeltaSink(replace(stream, processes=1))
    run = stored(activity, Overtaken(stream, lambda: stored(activity, alone, "other")))
    assert run.conflicts == set(run.begun)
    assert all(map(has_ended, decoders(tmp_path) - {os.getpid()}))
    require_each_once(activity, ids)


def store_and_die(folder: str, step: str, call: str) -> None:
    """Store a stream in this process, which is killed after a call of a method of the sink."""
    environ = json.loads((Path(folder) / "environ").read_text("utf-8"))
    services = SystemResources(load_settings(environ, Path(folder)).settings)
    sink = DeltaSink(in_two_processes(services.user_activity, Path(folder)))
    original, calls = getattr(sink, step), count(1)

    def deadly(*arguments: Any) -> Any:  # noqa: ANN401 - stands for any method
        result = original(*arguments)
        if next(calls) == int(call):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(sink, step, deadly)
    store_stream(services, sink.stream.positions, sink, run_id="killed")


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("_append", 1),
        pytest.param("store", 1, marks=pytest.mark.long),
        pytest.param("_append", 5, marks=pytest.mark.long),
        pytest.param("_record", 7, marks=pytest.mark.long),
    ],
)
def test_with_a_killed_run_its_children_end_and_the_next_one_goes_on(  # noqa: PLR0913, PLR0917 - fixtures
    activity: ActivitySystem,
    environ: dict[str, str],
    deadly_process: DeadlyProcess,
    tmp_path: Path,
    step: str,
    call: int,
) -> None:
    ids = sent(activity)
    (tmp_path / "environ").write_text(json.dumps(environ))
    assert deadly_process.call(f"{__name__}:store_and_die", str(tmp_path), step, str(call)) == -signal.SIGKILL
    assert decoders(tmp_path)
    wait_until(lambda: all(map(has_ended, decoders(tmp_path))))

    assert stored(activity, DeltaSink(in_two_processes(activity.services.user_activity, tmp_path))).failures == {}
    require_each_once(activity, ids)


def test_messages_that_are_refused_count_for_the_size_of_a_commit(activity: ActivitySystem) -> None:
    sink = DeltaSink(activity.services.user_activity)
    (large,) = received(bytes(1024**2))
    few, many = (StreamRows(SCHEMA.empty_table(), [(large, UnreadableMessageError("no JSON"))] * n) for n in (9, 64))
    assert not sink.is_full(Batch(0, 0, [few]))
    assert sink.is_full(Batch(0, 0, [few, many]))


def test_a_child_is_one_item_ahead_and_ends_with_the_block() -> None:
    made = mmap.mmap(-1, 16)

    def items(share: int) -> Iterator[pa.Table]:
        while True:
            made[share] += 1
            made[8 + share : 9 + share] = b"1"
            yield pa.table({"column": bytes(8 * 1024**2).split(b"1")})

    with forked([0, 1], items) as tables:
        assert next(tables).nbytes > 8 * 1024**2
        time.sleep(1)
        assert max(made[:2]) <= 2
    before = made[:2]
    time.sleep(0.2)
    assert made[:2] == before


def test_every_column_and_error_arrives_as_it_was_sent() -> None:
    table = pa.table({"text": ["a", None, "ä" * 100_000], "nested": [{"x": 1}, None, {"x": None}], "empty": [None] * 3})

    def items(share: object) -> Iterator[object]:
        yield share, table.slice(1), table
        yield BrokerUnavailableError("kafka:9092", "gone")

    with forked(["share"], items) as found:
        assert next(found) == ("share", table.slice(1), table)
        with pytest.raises(BrokerUnavailableError, match="kafka:9092"):
            next(found)


def test_an_error_survives_the_way_to_another_process_whatever_its_constructor_takes() -> None:
    error = BrokerUnavailableError("kafka:9092", "gone")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - of this process
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert isinstance(again, IngestError)


def test_runs_share_the_processors_and_what_a_fork_cannot_do_is_done_by_one_process(activity: ActivitySystem) -> None:
    kafka = activity.settings.kafka
    assert processes_of(1, kafka) == min(4, processors())
    assert processes_of(1_000, kafka) == 1
    assert processes_of(1, kafka.model_copy(update={"sasl_mechanism": "OAUTHBEARER"})) == 1
