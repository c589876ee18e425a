"""Where a read begins, and what to say when that is not where the last one ended.

A position outside the log is ordinary: retention removes what was not read in time, topics are deleted and created
again, an embedded broker starts empty. Reading goes on from the right end, and never silently.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.topics import LogBounds, TopicState


@dataclass(frozen=True)
class StartingPoints:
    """The offset each partition is read from, and one sentence for each one that is not where the last read ended."""

    offsets: Mapping[int, int]
    notices: list[str]


def starting_points(
    topic: str, saved: Positions | None, state: TopicState, first_read: Literal["earliest", "latest"]
) -> StartingPoints:
    """Decide where to begin.

    Args:
        topic: for the notices.
        saved: where the last read ended, or None before the first.
        state: the topic as it is now.
        first_read: which end of the log the very first read starts at. A partition that appears later is read from
            its beginning either way: all of it is new.
    """
    if saved is None:
        return StartingPoints(
            {p: bounds.start if first_read == "earliest" else bounds.end for p, bounds in state.bounds.items()}, []
        )
    if saved.topic_id and state.topic_id and saved.topic_id != state.topic_id:
        notice = f"{topic} was created anew since it was last read; reading it from its beginning."
        return StartingPoints({p: bounds.start for p, bounds in state.bounds.items()}, [notice])
    notices = list(_lost_partitions(topic, saved, state))
    offsets = {}
    for partition, bounds in state.bounds.items():
        offsets[partition], notice_of_partition = _within(topic, partition, saved.next_offsets.get(partition), bounds)
        notices += notice_of_partition
    return StartingPoints(offsets, notices)


def fair_shares(waiting: Mapping[int, int], limit: int) -> dict[int, int]:
    """Divide a limit between partitions so that none starves and nothing of the limit is wasted.

    Args:
        waiting: messages waiting in each partition.
        limit: messages to hand out at most.

    Returns:
        the share of each partition that gets one. Where the limit does not divide evenly, chance decides who gets one
        more, so that over many reads every partition has its turn.
    """
    served = [partition for partition, count in waiting.items() if count > 0]
    random.shuffle(served)
    served = served[:limit]
    # The smallest go first: what they leave of an even share goes to the others.
    served.sort(key=lambda partition: min(waiting[partition], limit))
    shares: dict[int, int] = {}
    for position, partition in enumerate(served):
        shares[partition] = min(waiting[partition], limit // (len(served) - position))
        limit -= shares[partition]
    return shares


def _within(topic: str, partition: int, offset: int | None, bounds: LogBounds) -> tuple[int, list[str]]:
    if offset is None:
        return bounds.start, []
    if offset > bounds.end:
        notice = f"{topic}[{partition}] ends at offset {bounds.end}, before the saved position {offset}: "
        return bounds.start, [notice + "it was emptied or created anew; reading it from its beginning."]
    if offset < bounds.start:
        notice = f"{topic}[{partition}] starts at offset {bounds.start}, after the saved position {offset}: "
        return bounds.start, [notice + f"{bounds.start - offset} messages were removed before they were read."]
    return offset, []


def _lost_partitions(topic: str, saved: Positions, state: TopicState) -> Iterator[str]:
    for partition in sorted(set(saved.next_offsets) - set(state.bounds)):
        yield f"{topic}[{partition}] no longer exists; its saved position is dropped."
