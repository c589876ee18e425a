"""What the ledger says of ranges that were not read, or would be read twice: for the checks of every stream."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ingest_project.streams.range_record import OffsetRange, RangeRecord, RangeState
from ingest_project.streams.resources import StreamResources

RECENT = timedelta(hours=24)
MOST_SHOWN = 20


class Unread(NamedTuple):
    """Offsets of a topic that are in no table, at most so many of each as are worth showing.

    Args:
        gaps: between two ranges that are planned.
        given_up: ranges with no attempt left.
        late: ranges that should have been read by now.
        lost: ranges that retention removed of late before they were read.
    """

    gaps: list[OffsetRange]
    given_up: tuple[RangeRecord, ...]
    late: tuple[RangeRecord, ...]
    lost: tuple[RangeRecord, ...]


def unread(services: StreamResources, topic: str, max_unfinished_seconds: float) -> Unread:
    """Look for offsets between two ranges, and for ranges that were not read.

    Args:
        services: the ledger.
        topic: which.
        max_unfinished_seconds: how long a range may take from its planning to its end.
    """
    ledger, now = services.stream_ranges, datetime.now(UTC)
    gaps = [seam.offsets for seam in services.stream_intervals.seams(topic) if seam.is_gap]
    return Unread(
        gaps=gaps[:MOST_SHOWN],
        given_up=ledger.list(topic, [RangeState.FAILED], MOST_SHOWN),
        late=ledger.unfinished_since(topic, now - timedelta(seconds=max_unfinished_seconds), MOST_SHOWN),
        lost=ledger.list(topic, [RangeState.LOST], MOST_SHOWN, since=now - RECENT),
    )


def planned_twice(services: StreamResources, topic: str) -> list[str]:
    """Offsets that are in two ranges."""
    return [str(seam.offsets) for seam in services.stream_intervals.seams(topic) if not seam.is_gap]


def shown(ranges: Sequence[RangeRecord]) -> list[str]:
    """A line for each."""
    return [f"{record.offsets}{f': {record.reason}' if record.reason else ''}" for record in ranges]
