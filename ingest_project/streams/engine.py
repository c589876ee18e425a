"""Store the messages of a topic in a sink, each offset exactly once.

A run reads each partition from the sink's own position up to the requested offsets, and passes batches to the sink,
which stores rows and position together. Whatever is killed, repeated, lost or run at the same time, the next run
goes on where the sink is. While one batch is stored, the next one is read and decoded.

What fails costs its partition alone, unless a service is away: then the run stops. A tick requests the rest again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np

from ingest_project.core.console import moment
from ingest_project.core.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    IngestError,
    TransientError,
    UnexpectedError,
)
from ingest_project.core.items import prefetch, rarely_collected
from ingest_project.core.logging import get_logger
from ingest_project.platform import tracing
from ingest_project.platform.capability import BEYOND, EVENT_TO_STORED, LATENCY_BUCKETS, PROCESSING, latency_bucket
from ingest_project.platform.kafka.consumer import ConsumerRecord, log_each
from ingest_project.platform.kafka.reader import OpenRanges, RangeReader
from ingest_project.platform.runtime import Runtime
from ingest_project.streams.parallel import forked, split
from ingest_project.streams.positions import (
    LOST,
    LostOffsets,
    OffsetRange,
    PositionConflictError,
    SinkPosition,
    StreamPositions,
    removed,
)

logger = get_logger(__name__)


CHUNK_BYTES = 16 * 1024**2
# Fewer chunks are decoded faster than a further process starts.
CHUNKS_PER_PROCESS = 5
MAX_SHOWN = 20
# One failure may be transient; after this many in a row a person should look.
MAX_FAILURES = 3
RECENT = timedelta(hours=24)
# Errors that concern all partitions.
SERVICES_AWAY = (BrokerUnavailableError, DatabaseUnavailableError)

Rows = TypeVar("Rows")


@dataclass
class Batch(Generic[Rows]):
    """Messages of one partition that are stored together.

    Args:
        partition: of the topic.
        next_offset: of the first message after them.
        rows: what the sink decoded, one item per chunk that was read.
        messages: number of messages that were read.
        lost: offsets among them that retention had removed.
        written_ms: when they were written, in milliseconds since 1970, where the broker says so.
        began: when the first one was requested, by the clock of `time.monotonic`.
        traced: keys of the messages that have their own trace, see `platform.tracing`.
    """

    partition: int
    next_offset: int
    rows: list[Rows] = field(default_factory=list)
    messages: int = 0
    lost: list[LostOffsets] = field(default_factory=list)
    traced: list[str] = field(default_factory=list)
    written_ms: list[int] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def seconds(self, now: datetime) -> dict[str, float]:
        """Return the batch's additions to the histograms if it is stored now, see `positions.sink_positions`."""
        processing = time.monotonic() - self.began
        found = {f"{PROCESSING.bucket}/{latency_bucket(processing)}": 1.0, PROCESSING.sum: processing}
        written = np.array(self.written_ms, np.int64)
        # Clocks of producers may be ahead of ours.
        # Messages of a partition are nearly in the order of their times: sorting them is quick.
        latencies = np.sort(np.maximum(0, now.timestamp() - written[written > 0] / 1000))
        within = np.searchsorted(latencies, LATENCY_BUCKETS, side="right")
        ends = (*(f"{end:g}" for end in LATENCY_BUCKETS), BEYOND)
        for end, number in zip(ends, np.diff(within, prepend=0, append=len(latencies)), strict=True):
            if number:
                found[f"{EVENT_TO_STORED.bucket}/{end}"] = float(number)
        return found | {EVENT_TO_STORED.sum: float(latencies.sum())}

    @property
    def outcome(self) -> Counter[str]:
        """Number of offsets that were lost."""
        return Counter({LOST: sum(one.messages for one in self.lost)})


class Sink(Protocol[Rows]):
    """Stores rows, and owns the position up to which each partition is stored.

    Args:
        chunk_messages: most messages to decode at a time.
        processes: in how many processes messages may be decoded, see `parallel`.
        operation: of `store`, in one word.
    """

    chunk_messages: int
    processes: int
    operation: str

    def prepare(self, positions: Sequence[SinkPosition]) -> None:
        """Inspect the sink before partitions are resumed."""

    def resume(self, position: SinkPosition) -> SinkPosition:
        """Repair what the sink lacks in a partition, and return its position."""

    def decode(self, messages: Sequence[ConsumerRecord], position: SinkPosition) -> Rows:
        """Turn messages into rows. No message makes it fail."""

    def is_full(self, batch: Batch[Rows]) -> bool:
        """Return whether a batch is to be stored before more is read."""

    def store(self, batch: Batch[Rows], position: SinkPosition) -> SinkPosition:
        """Store rows and move the position in one transaction.

        Args:
            batch: decoded from the messages after the position.
            position: where the sink must be.

        Returns:
            the new position.

        Raises:
            PositionConflictError: another run has moved the position; nothing was stored.
            IngestError: nothing was stored beyond the position that the sink has now.
        """


@dataclass
class StreamRun:
    """The result of one run.

    Args:
        run_id: of the run.
        begun: position of each partition before the run.
        positions: present position of each partition.
        messages: number of messages read.
        failures: why a partition was not stored up to the end that was requested.
        conflicts: partitions that another run stores.
        ends: the offset after the last message of each partition of the topic.
    """

    run_id: str
    begun: dict[int, SinkPosition] = field(default_factory=dict)
    positions: dict[int, SinkPosition] = field(default_factory=dict)
    messages: int = 0
    failures: dict[int, IngestError] = field(default_factory=dict)
    conflicts: set[int] = field(default_factory=set)
    ends: Mapping[int, int] = field(default_factory=dict)

    @property
    def outcome(self) -> Counter[str]:
        """Number of messages by outcome."""
        before = sum((Counter(one.outcome) for one in self.begun.values()), Counter[str]())
        return sum((Counter(one.outcome) for one in self.positions.values()), Counter[str]()) - before

    @property
    def stored(self) -> list[OffsetRange]:
        """The offsets that were stored."""
        ranges = [self.begun[partition].until(now.next_offset) for partition, now in sorted(self.positions.items())]
        return [one for one in ranges if len(one)]

    @property
    def failure(self) -> IngestError | None:
        """The first failure."""
        return next(iter(self.failures.values()), None)

    def metadata(self) -> dict[str, str | int]:
        """Return the metadata for Dagster: offsets by partition, and the number of messages that still wait."""
        waiting = sum(max(0, self.ends.get(one, 0) - now.next_offset) for one, now in self.positions.items())
        shown: dict[str, str | int] = {"messages_read": self.messages, "consumer_lag": waiting}
        if self.stored:
            shown["offsets"] = ", ".join(map(str, self.stored[:MAX_SHOWN]))
        if self.conflicts:
            shown["stored_by_another_run"] = ", ".join(str(self.positions[one]) for one in sorted(self.conflicts))
        return shown


def store_stream(
    services: Runtime,
    positions: StreamPositions,
    sink: Sink[Rows],
    *,
    run_id: str,
    ends: Mapping[int, int] | None = None,
) -> StreamRun:
    """Store the messages of a topic beyond the sink's positions. Call `settle` once the result is reported.

    Args:
        services: Kafka.
        positions: of the stream.
        sink: the sink that owns the positions.
        run_id: of the run.
        ends: up to which offset of which partitions; None: up to the present ends of all.

    Raises:
        BrokerUnavailableError, DatabaseUnavailableError: nothing was begun.
    """
    run = StreamRun(run_id)
    try:
        backlog = services.range_reader.backlog(positions.topic, positions.saved(), 0)
    except BrokerUnavailableError as away:
        known = positions.current()
        run.begun = {partition: one for partition, one in known.items() if ends is None or partition in ends}
        run.positions, run.failures = dict(run.begun), dict.fromkeys(run.begun, away)
        if not run.failures:
            raise
        positions.lease(run.begun.values(), run_id)
        return run
    if backlog is None:
        return run
    known = positions.begin(backlog, datetime.now(UTC))
    chosen = [one for partition, one in known.items() if ends is None or partition in ends]
    run.ends = backlog.ends
    run.begun = {one.partition: one for one in chosen}
    run.positions = dict(run.begun)
    positions.lease(chosen, run_id)
    bounds = backlog.ends if ends is None else ends
    wanted = {one.partition: min(bounds[one.partition], backlog.ends[one.partition]) for one in chosen}
    try:
        with tracing.items(f"store {positions.stream}", ()), rarely_collected():
            _store(services, sink, run, wanted)
    except Exception as error:  # noqa: BLE001 - whatever it is, the positions must say so
        failure = as_ingest_error(error, f"Storing messages of {positions.topic}")
        for partition, position in run.positions.items():
            if position.next_offset < wanted[partition] and partition not in run.conflicts:
                run.failures.setdefault(partition, failure)
    return run


def settle(services: Runtime, positions: StreamPositions, run: StreamRun) -> None:
    """Record the result of a run: partitions that failed are tried again after a pause."""
    failed = [(run.positions[partition], str(error)) for partition, error in run.failures.items()]
    done = [one for partition, one in run.positions.items() if partition not in run.failures.keys() | run.conflicts]
    try:
        positions.fail(failed, run.run_id, services.settings.retries, datetime.now(UTC))
        positions.release(done, run.run_id, is_stored=True)
        positions.release((run.positions[partition] for partition in run.conflicts), run.run_id, is_stored=False)
    except TransientError as away:
        # The database itself is away: a tick finds that the run has ended.
        logger.warning("partitions_not_released", reason=str(away))


def as_ingest_error(error: Exception, doing: str) -> IngestError:
    """Return an error of ours; an unexpected one is logged with its traceback."""
    if isinstance(error, IngestError):
        return error
    logger.error("run_failed_unexpectedly", doing=doing, exc_info=error)
    return UnexpectedError(doing, error)


def _store(services: Runtime, sink: Sink[Rows], run: StreamRun, wanted: Mapping[int, int]) -> None:
    sink.prepare(list(run.positions.values()))
    for partition in wanted:
        _attempt(run, partition, sink.resume)
    with _decoded(services, sink, run, wanted) as decoded, prefetch(decoded) as batches:
        for batch in batches:
            if _is_open(run, batch.partition):
                run.messages += batch.messages
                _attempt(run, batch.partition, partial(_store_batch, sink, batch))
            elif not any(_is_open(run, partition) for partition in wanted):
                return


def _store_batch(sink: Sink[Rows], batch: Batch[Rows], position: SinkPosition) -> SinkPosition:
    with tracing.step(sink.operation, batch.traced, of_run=True):
        stored = sink.store(batch, position)
    tracing.finish_messages(batch.traced)
    return stored


def _attempt(run: StreamRun, partition: int, step: Callable[[SinkPosition], SinkPosition]) -> None:
    """Run one step in a partition; a failure closes the partition for this run."""
    position = run.positions[partition]
    try:
        run.positions[partition] = step(position)
    except SERVICES_AWAY:
        raise
    except PositionConflictError as conflict:
        logger.info("partition_left_to_another_run", partition=str(position), reason=str(conflict))
        run.conflicts.add(partition)
    except Exception as error:  # noqa: BLE001 - of one partition
        run.failures[partition] = as_ingest_error(error, f"Storing {position}")
        logger.warning("partition_not_stored", partition=str(position), reason=str(run.failures[partition]))


def _is_open(run: StreamRun, partition: int) -> bool:
    return partition not in run.failures and partition not in run.conflicts


@contextmanager
def _decoded(
    services: Runtime, sink: Sink[Rows], run: StreamRun, wanted: Mapping[int, int]
) -> Iterator[Generator[Batch[Rows], None, None]]:
    """Read and decode: much in several processes, unless a run failed before, which may have been the reason."""
    waiting = {one: max(0, end - run.positions[one].next_offset) for one, end in wanted.items() if _is_open(run, one)}
    most = 1 if any(position.reason for position in run.begun.values()) else sink.processes
    shares = split(waiting, most, CHUNKS_PER_PROCESS * sink.chunk_messages)
    if len(shares) > 1:
        parts = [{partition: wanted[partition] for partition in share} for share in shares]
        with forked(parts, partial(_in_child, services, sink, run)) as batches:
            yield batches
    else:
        yield _batches(services.range_reader, sink, run, wanted)


def _in_child(
    services: Runtime, sink: Sink[Rows], run: StreamRun, wanted: Mapping[int, int]
) -> Iterator[Batch[Rows] | IngestError]:
    try:
        yield from _batches(RangeReader(services.settings.kafka), sink, run, wanted)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        yield as_ingest_error(error, "Decoding messages")


def _batches(
    reader: RangeReader, sink: Sink[Rows], run: StreamRun, wanted: Mapping[int, int]
) -> Generator[Batch[Rows], None, None]:
    """Read and decode one partition after the other, up to the offsets wanted."""
    with reader.opened() as ranges:
        for partition, end in wanted.items():
            if _is_open(run, partition):
                yield from _batches_of(ranges, sink, run, run.positions[partition].until(end))


def _batches_of(ranges: OpenRanges, sink: Sink[Rows], run: StreamRun, offsets: OffsetRange) -> Iterable[Batch[Rows]]:
    partition, reached = offsets.partition, offsets.first
    position = run.positions[partition]
    batch: Batch[Rows] = Batch(partition, reached)
    for chunk in ranges.read(*offsets.topic_partition, reached, offsets.end, sink.chunk_messages, CHUNK_BYTES):
        if not _is_open(run, partition):
            return
        if chunk.lost:
            lost = OffsetRange(*offsets.topic_partition, reached, reached + chunk.lost)
            batch.lost.append(removed(lost, datetime.now(UTC)))
        if chunk.messages:
            log_each(chunk.messages)
            traced = tracing.add_messages(chunk.messages)
            with tracing.step("decode", traced, of_run=True):
                batch.rows.append(sink.decode(chunk.messages, position))
            batch.traced += traced
            batch.written_ms += [message.timestamp_ms or 0 for message in chunk.messages]
        batch.messages += len(chunk.messages)
        batch.next_offset = reached = chunk.next_offset
        if reached >= offsets.end or sink.is_full(batch):
            yield batch
            batch = Batch(partition, reached)


@dataclass(frozen=True)
class StreamHealth:
    """Bounded lists of problems, one line each.

    Args:
        failing: partitions whose last runs failed, with the reason.
        late: partitions with messages that should have been stored by now.
        lost: offsets that were found to be lost recently.
    """

    failing: list[str]
    late: list[str]
    lost: list[str]

    def metadata(self) -> Mapping[str, list[str]]:
        """Return the metadata for Dagster."""
        return {"failing": self.failing, "waiting": self.late, "lost": self.lost}


def health_of(services: Runtime, positions: StreamPositions, max_waiting_seconds: float) -> StreamHealth:
    """Compare the positions of a stream with its topic.

    Args:
        services: Kafka.
        positions: of the stream.
        max_waiting_seconds: how long a message may wait to be stored.

    Raises:
        BrokerUnavailableError, DatabaseUnavailableError: a service is away.
    """
    current = positions.current().values()
    now = datetime.now(UTC)
    return StreamHealth(
        failing=[f"{one}: {one.attempts} runs in a row: {one.reason}" for one in current if is_failing(one)],
        late=list(_late(services, positions, now - timedelta(seconds=max_waiting_seconds)))[:MAX_SHOWN],
        lost=[str(one) for one in positions.lost(now - RECENT, MAX_SHOWN)],
    )


def is_failing(position: SinkPosition) -> bool:
    """Return whether the last runs over a partition failed one after the other."""
    return position.attempts >= MAX_FAILURES and position.reason is not None


def _late(services: Runtime, positions: StreamPositions, since: datetime) -> Iterator[str]:
    """Yield partitions that have not moved since a moment although a message of before then waits."""
    if all(one.updated_at >= since for one in positions.current().values()):
        return
    backlog = services.range_reader.backlog(positions.topic, positions.saved(), 0)
    if backlog is None:
        yield f"{positions.topic} does not exist any more"
        return
    for partition, one in positions.current().items():
        end = backlog.ends.get(partition, 0)
        if one.updated_at >= since or one.next_offset >= end:
            continue
        chunks = services.range_reader.read(*one.topic_partition, one.next_offset, one.next_offset + 1, 1, 1)
        written = [message.timestamp for chunk in chunks for message in chunk.messages]
        if not any(at and at >= since for at in written):
            yield f"{one.until(end)}, since {moment(one.updated_at)}"
