"""Health of a stream by its positions, for the checks of every stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ingest_project.platform.runtime import Runtime
from ingest_project.streams.positions import SinkPosition, StreamPositions

RECENT = timedelta(hours=24)
MOST_SHOWN = 20
# A failure may pass; after so many in a row a person should look.
MOST_FAILURES = 3


@dataclass(frozen=True)
class StreamHealth:
    """Lines for a person, at most as many as are worth showing.

    Args:
        failing: partitions whose last runs failed, with the reason.
        late: partitions with messages that should have been stored by now.
        lost: offsets that were found to be lost of late.
    """

    failing: list[str]
    late: list[str]
    lost: list[str]

    def metadata(self) -> Mapping[str, list[str]]:
        """Return what Dagster shows."""
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
        late=list(_late(services, positions, now - timedelta(seconds=max_waiting_seconds)))[:MOST_SHOWN],
        lost=[str(one) for one in positions.lost(now - RECENT, MOST_SHOWN)],
    )


def is_failing(position: SinkPosition) -> bool:
    """Return whether the last runs over a partition failed one after the other."""
    return position.attempts >= MOST_FAILURES and position.reason is not None


def _late(services: Runtime, positions: StreamPositions, moment: datetime) -> Iterator[str]:
    """Yield partitions that have not moved since a moment although a message of before then waits."""
    if all(one.updated_at >= moment for one in positions.current().values()):
        return
    backlog = services.range_reader.backlog(positions.topic, positions.saved(), 0)
    for partition, one in positions.current().items():
        end = backlog.ends.get(partition, 0) if backlog else 0
        if one.updated_at >= moment or one.next_offset >= end:
            continue
        chunks = services.range_reader.read(*one.topic_partition, one.next_offset, one.next_offset + 1, 1, 1)
        written = [message.timestamp for chunk in chunks for message in chunk.messages]
        if not any(at and at >= moment for at in written):
            yield f"{one.until(end)}, since {one.updated_at:%Y-%m-%d %H:%M:%S}"
