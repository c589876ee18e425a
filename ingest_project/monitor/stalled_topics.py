"""Topics that do not move although messages wait on them, as one look after the other shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest_project.monitor.topic_lag import TopicLag

Place = tuple[str, int]


class StalledTopic(msgspec.Struct, frozen=True):
    """A topic of which at least one partition stands still while messages wait in it.

    Args:
        sensor: that takes them.
        partitions: the partitions that stand still.
        waiting: messages in these.
        seconds: how long the first of them has stood still, as far as it was looked at.
    """

    topic: str
    sensor: str
    partitions: tuple[int, ...]
    waiting: int
    seconds: float

    def __str__(self) -> str:
        """As people read it."""
        where = ", ".join(map(str, self.partitions))
        return f"{self.topic} has stood still for {self.seconds:.0f} s with {self.waiting} waiting (partition {where})"


class Movement:
    """Remembers where each partition was, and since when."""

    def __init__(self) -> None:
        self._since: dict[Place, tuple[int, float]] = {}

    def stalled(self, topics: Sequence[TopicLag], now: float) -> tuple[StalledTopic, ...]:
        """The topics with partitions that have stood still since an earlier look.

        Args:
            topics: as they are now.
            now: a clock that nobody sets.
        """
        found = tuple(stalled for lag in topics if (stalled := self._look_at(lag, now)))
        seen = {(lag.topic, partition) for lag in topics for partition in lag.partitions}
        self._since = {place: since for place, since in self._since.items() if place in seen}
        return found

    def _look_at(self, lag: TopicLag, now: float) -> StalledTopic | None:
        standing: dict[int, float] = {}
        for partition, waiting in lag.partitions.items():
            position = lag.next_offsets.get(partition, 0)
            before = self._since.get((lag.topic, partition))
            if not waiting or before is None or before[0] != position:
                self._since[lag.topic, partition] = (position, now)
            elif now > before[1]:
                standing[partition] = now - before[1]
        if not standing:
            return None
        waiting = sum(lag.partitions[partition] for partition in standing)
        return StalledTopic(lag.topic, lag.sensor, tuple(sorted(standing)), waiting, max(standing.values()))
