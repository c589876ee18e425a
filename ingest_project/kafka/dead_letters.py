"""Dead letters: a message that cannot be processed, unchanged, with the reason beside it.

Key, value and headers are the original's, so that a replay is exact. What went wrong is in further headers:

    dlq.original-topic        dlq.original-partition      dlq.original-offset     dlq.original-timestamp
    dlq.error-class           dlq.reason                  dlq.attempt             dlq.trace-id (where known)
    dlq.first-failed-at       dlq.last-failed-at

All are UTF-8 text; times are ISO 8601 in UTC, with milliseconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ingest_project.kafka.writing import Outgoing

if TYPE_CHECKING:
    from ingest_project.kafka.received import Received

HEADER_PREFIX = "dlq."
MAX_REASON_BYTES = 2_048
MAX_HEADER_BYTES = 512


def dead_letter(  # noqa: PLR0913 - one argument for each header of the contract
    message: Received,
    *,
    error_class: str,
    reason: str,
    first_failed_at: datetime,
    last_failed_at: datetime,
    generation: str,
    attempt: int = 1,
    trace_id: str | None = None,
) -> tuple[str, Outgoing]:
    """The dead letter of one message, ready for `publish_once`.

    Args:
        message: as it was read.
        error_class: name of the error, e.g. `UnreadableMessage`.
        reason: what is wrong, for a person; cut at 2 KiB.
        first_failed_at: when it failed for the first time, UTC-aware.
        last_failed_at: when it failed for the last time, UTC-aware.
        generation: life of the topic it was read from, see `Positions`.
        attempt: how many times it was tried.
        trace_id: where the message has one.

    Returns:
        an id that is the same for the same place on the same topic, and the message.
    """
    facts = {
        "original-topic": message.topic,
        "original-partition": str(message.partition),
        "original-offset": str(message.offset),
        "original-timestamp": _iso(message.timestamp) if message.timestamp else "",
        "error-class": error_class,
        "reason": reason,
        "attempt": str(attempt),
        "trace-id": trace_id or "",
        "first-failed-at": _iso(first_failed_at),
        "last-failed-at": _iso(last_failed_at),
    }
    headers = tuple(
        (HEADER_PREFIX + name, _bounded(text, MAX_REASON_BYTES if name == "reason" else MAX_HEADER_BYTES))
        for name, text in facts.items()
        if text
    )
    message_id = f"dlq:{message.topic}:{generation}:{message.partition}:{message.offset}"
    return message_id, Outgoing(message.value, message.key, (*message.headers, *headers))


def _bounded(text: str, max_bytes: int) -> bytes:
    """UTF-8 of at most this length, cut between characters."""
    encoded = text.encode("utf-8", "replace")
    return encoded if len(encoded) <= max_bytes else encoded[:max_bytes].decode("utf-8", "ignore").encode()


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
