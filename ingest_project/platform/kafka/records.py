"""Messages as they are read and sent."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

_logger = logging.getLogger(__name__)

Headers = tuple[tuple[str, bytes | None], ...]


class ConsumerRecord(msgspec.Struct, frozen=True, gc=False):
    """A message and its position.

    Args:
        topic: its topic.
        partition: its partition.
        offset: its position in the partition.
        timestamp_ms: when it was written, in milliseconds since 1970; None where the broker does not say.
        key: as it was sent.
        value: as it was sent; None is a tombstone.
        headers: in the order they were sent; a name may occur more than once.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def timestamp(self) -> datetime | None:
        """When it was written, UTC; None where the broker does not say or says something outside the calendar."""
        if self.timestamp_ms is None:
            return None
        try:
            return datetime.fromtimestamp(self.timestamp_ms / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            return None

    def header(self, name: str) -> bytes | None:
        """Return the last value under a name, which is the one that counts; None where there is none."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


def received(message: Message) -> ConsumerRecord:
    """Convert a message of the client library."""
    kind, timestamp_ms = message.timestamp()
    # The stubs describe messages to be sent as well, of which nothing need be known yet; these come from a broker.
    record: Any = message
    return ConsumerRecord(
        record.topic(),
        record.partition(),
        record.offset(),
        None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms,
        record.key(),
        record.value(),
        _headers(record),
    )


def _headers(message: Any) -> Headers:  # noqa: ANN401 - as above
    """In the order they were sent; none where a name is not UTF-8, which the client library cannot tell."""
    try:
        return tuple(message.headers() or ())
    except (UnicodeDecodeError, SystemError) as error:
        position = f"{message.topic()}[{message.partition()}]@{message.offset()}"
        _logger.warning("Headers of %s cannot be read and are left out: %s", position, error)
        return ()
