"""Dead letters as people look at them: how the newest of each topic begin, and a single one whole, by its place."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from ingest_project.kafka.dead_letters import HEADER_PREFIX
from ingest_project.kafka.positions import Positions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingest_project.kafka.offset_ranges import Backlog, RangeReader
    from ingest_project.kafka.received import Received

# Read backwards in parts of this size: a topic may hold millions, and only the newest are asked for.
OFFSETS_AT_A_TIME = 500
MAX_BYTES_AT_A_TIME = 32 * 1024**2
BEGINNING_BYTES = 60


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was put aside, and what its headers say of it; None where they say nothing.

    Args:
        place: where it is now, `topic/partition/offset`.
        original_place: where it had been, in the same form.
        failed_at: when it failed for the last time; without that, when it was put aside.
        key: as text, see `as_text`.
        size_bytes: of its value.
        begins: the beginning of its value as text, see `as_text`; None is a tombstone.
        value: its bytes, unchanged, where it was asked for alone.
    """

    place: str
    original_place: str | None
    failed_at: datetime | None
    error_class: str | None
    reason: str | None
    attempt: str | None
    trace_id: str | None
    key: str | None
    size_bytes: int
    begins: str | None
    value: bytes | None = None


def newest_letters(
    reader: RangeReader, topic: str, limit: int, wanted: Callable[[bytes | None], bool]
) -> Iterator[DeadLetter]:
    """The newest letters of each partition of a topic, a topic that does not exist having none.

    Args:
        reader: of the cluster.
        topic: of dead letters.
        limit: most of one partition.
        wanted: whether a letter of this value is meant.

    Raises:
        BrokerUnavailable: the broker does not answer.
    """
    backlog = _everything(reader, topic)
    if backlog is None:
        return
    for partition in sorted(backlog.ends):
        letters = _newest_first(reader, topic, backlog, partition)
        yield from map(letter_of, islice((letter for letter in letters if wanted(letter.value)), limit))


def letter_at(reader: RangeReader, topic: str, partition: int, offset: int) -> DeadLetter | None:
    """The letter at a place; None where there is none, or none any more.

    Raises:
        BrokerUnavailable: the broker does not answer.
    """
    backlog = _everything(reader, topic)
    if backlog is None or not backlog.log_starts.get(partition, 0) <= offset < backlog.ends.get(partition, 0):
        return None
    found = _between(reader, topic, backlog, partition, offset, offset + 1)
    return msgspec.structs.replace(letter_of(found[0]), value=found[0].value) if found else None


def letter_of(received: Received) -> DeadLetter:
    """What is known of a message on a topic of dead letters; without its value, which may be large."""
    said = {name: _said(received, name) for name in ("error-class", "reason", "attempt", "trace-id")}
    original = [_said(received, f"original-{part}") for part in ("topic", "partition", "offset")]
    return DeadLetter(
        place=f"{received.topic}/{received.partition}/{received.offset}",
        original_place="/".join(map(str, original)) if None not in original else None,
        failed_at=_moment(_said(received, "last-failed-at")) or received.timestamp,
        error_class=said["error-class"],
        reason=said["reason"],
        attempt=said["attempt"],
        trace_id=said["trace-id"],
        key=as_text(received.key),
        size_bytes=len(received.value or b""),
        begins=as_text(received.value and received.value[:BEGINNING_BYTES]),
    )


def as_text(content: bytes | None) -> str | None:
    """Any bytes as text: UTF-8, and an escape for each byte that is none."""
    return None if content is None else content.decode("utf-8", "backslashreplace")


def _everything(reader: RangeReader, topic: str) -> Backlog | None:
    return reader.backlog(topic, Positions("", {}), 0)


def _newest_first(reader: RangeReader, topic: str, backlog: Backlog, partition: int) -> Iterator[Received]:
    start, end = backlog.log_starts[partition], backlog.ends[partition]
    while end > start:
        first = max(start, end - OFFSETS_AT_A_TIME)
        yield from reversed(_between(reader, topic, backlog, partition, first, end))
        end = first


def _between(  # noqa: PLR0913, PLR0917 - a range is four facts
    reader: RangeReader, topic: str, backlog: Backlog, partition: int, first: int, end: int
) -> list[Received]:
    chunks = reader.read(topic, backlog.generation, partition, first, end, OFFSETS_AT_A_TIME, MAX_BYTES_AT_A_TIME)
    return [message for chunk in chunks for message in chunk.messages]


def _said(received: Received, name: str) -> str | None:
    return as_text(received.header(HEADER_PREFIX + name))


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
