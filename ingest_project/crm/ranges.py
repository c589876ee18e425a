"""What a tick asks for: which planned ranges in which run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest_project.streams.runs import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest_project.ledger.range_record import RangeRecord

# Fewer messages than this are stored sooner than a second run has started.
WORTH_SPLITTING = 10_000
# From the third attempt on a range goes alone: it may be the one that takes its run down.
ATTEMPTS_IN_COMPANY = 2


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
