"""Choose which offset ranges go into one run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ingest_project.streams.range_record import RangeRecord, RangeState
from ingest_project.streams.runs import Batch

# Fewer events than this are stored sooner than a second run has started.
WORTH_SPLITTING = 100_000


def ready(unfinished: Sequence[RangeRecord], due: frozenset[str]) -> list[list[RangeRecord]]:
    """The ranges that may be asked for, by partition: as many as follow one another without one that is not due.

    Args:
        unfinished: every range of the topic that is not finished.
        due: keys of the pending ones whose time has come.
    """
    topic_partitions = []
    for _, topic_partition in groupby(
        sorted(unfinished, key=lambda record: record.offsets), key=lambda record: record.offsets.topic_partition
    ):
        records = list(topic_partition)
        if all(record.state is RangeState.PENDING for record in records):
            not_due = (place for place, record in enumerate(records) if record.range_key not in due)
            topic_partitions.append(records[: next(not_due, len(records))])
    return [topic_partition for topic_partition in topic_partitions if topic_partition]


def batches_of(topic_partitions: Sequence[Sequence[RangeRecord]], most_offsets: int, parallel: int) -> list[Batch]:
    """Divide partitions between runs, about evenly, the runs with most to do first.

    Args:
        topic_partitions: what may be asked for, by partition.
        most_offsets: in one run.
        parallel: runs that work side by side.
    """
    total = sum(_size(topic_partition) for topic_partition in topic_partitions)
    wanted = min(parallel, len(topic_partitions), max(1, total // WORTH_SPLITTING))
    heaps: list[list[Sequence[RangeRecord]]] = []
    for topic_partition in sorted(topic_partitions, key=_size, reverse=True):
        same_life = [heap for heap in heaps if heap[0][0].offsets.topic_id == topic_partition[0].offsets.topic_id]
        if len(heaps) < wanted or not same_life:
            heaps.append([topic_partition])
        else:
            min(same_life, key=lambda heap: sum(map(_size, heap))).append(topic_partition)
    return [Batch(tuple(_in_turn(heap, most_offsets))) for heap in heaps]


def _in_turn(topic_partitions: Sequence[Sequence[RangeRecord]], most_offsets: int) -> list[RangeRecord]:
    """The first ranges of every partition, as many as one run may have."""
    share = max(1, most_offsets // len(topic_partitions))
    chosen: list[RangeRecord] = []
    for topic_partition in topic_partitions:
        room = share
        for record in topic_partition:
            if room < share and room < len(record.offsets):
                break
            chosen.append(record)
            room -= len(record.offsets)
    return chosen


def _size(topic_partition: Sequence[RangeRecord]) -> int:
    return sum(len(record.offsets) for record in topic_partition)
