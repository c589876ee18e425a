"""What a tick decides: which offsets are planned, and which planned ranges are asked for in which run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ingest_project.ledger.stream_ranges import OffsetRange, RangeRecord, cut

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ingest_project.kafka.offset_ranges import Backlog

# A tick ends in time however far behind the topic is: the next one goes on.
MOST_RANGES_PER_TICK = 400
# Fewer messages than this are stored sooner than a second run has started.
WORTH_SPLITTING = 10_000
# From the third attempt on a range goes alone: it may be the one that takes its run down.
ATTEMPTS_IN_COMPANY = 2


class Plan(NamedTuple):
    """What to enter in the ledger, and the cursor to save then.

    Args:
        ranges: to be read.
        lost: offsets that retention removed before they were planned.
        next_offsets: where planning goes on, by partition.
    """

    ranges: list[OffsetRange]
    lost: list[OffsetRange]
    next_offsets: dict[int, int]


@dataclass(frozen=True)
class Batch:
    """Ranges for one run."""

    records: tuple[RangeRecord, ...]

    @property
    def keys(self) -> list[str]:
        """Of the ranges."""
        return [record.range_key for record in self.records]

    @property
    def offsets(self) -> int:
        """In all ranges."""
        return sum(len(record.offsets) for record in self.records)

    @property
    def batch_id(self) -> str:
        """The same for the same attempt at the same ranges: asked for twice it is one run."""
        attempts = [(record.range_key, record.attempts) for record in self.records]
        return hashlib.sha256(repr(attempts).encode()).hexdigest()[:16]


def plan(topic: str, generation: str, backlog: Backlog, planned_ends: Mapping[int, int], size: int) -> Plan:
    """Decide what is read next.

    Args:
        topic: which.
        generation: of the topic, as the ledger knows it.
        backlog: what waits.
        planned_ends: where the ledger's last range of each partition ends; goes before the cursor, which a crash may
            have left behind.
        size: most offsets in a range.
    """
    found = Plan([], [], {})
    for partition, start in sorted(backlog.starts.items()):
        log_start, planned_end = backlog.log_starts[partition], planned_ends.get(partition)
        if planned_end is not None:
            if log_start > planned_end:
                found.lost.append(OffsetRange(topic, generation, partition, planned_end, log_start))
            start = max(planned_end, log_start)  # noqa: PLW2901 - a better start than the cursor's
        pieces = cut(topic, generation, partition, start, backlog.ends[partition], size)
        pieces = pieces[: max(1, MOST_RANGES_PER_TICK // len(backlog.starts))]
        found.ranges.extend(pieces)
        found.next_offsets[partition] = pieces[-1].end if pieces else start
    return found


def batches_of(due: Sequence[RangeRecord], size: int, parallel: int) -> list[Batch]:
    """Put due ranges together for runs: about evenly, at most `size` offsets each, and alone what failed repeatedly.

    A batch is of one life of the topic, which its run is told once.
    """
    fresh = [record for record in due if record.attempts < ATTEMPTS_IN_COMPANY]
    total = sum(len(record.offsets) for record in fresh)
    target = min(size, max(-(-total // parallel), WORTH_SPLITTING))
    batches: list[list[RangeRecord]] = []
    room = 0
    for record in fresh:
        if not batches or room < len(record.offsets) or batches[-1][0].offsets.generation != record.offsets.generation:
            batches.append([])
            room = target
        batches[-1].append(record)
        room -= len(record.offsets)
    alone = [[record] for record in due if record.attempts >= ATTEMPTS_IN_COMPANY]
    return [Batch(tuple(records)) for records in (*batches, *alone)]
