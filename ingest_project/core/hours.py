"""Hours as keys of partitions, as Dagster writes them: `2026-01-15-10:00`, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_KEY = "%Y-%m-%d-%H:00"


def hour_key(moment: datetime) -> str:
    """The key of the hour that a moment is in."""
    return moment.astimezone(UTC).strftime(_KEY)


def parse_hour_key(partition: str) -> datetime:
    """When the hour of a key begins.

    Raises:
        ValueError: it is no such key.
    """
    return datetime.strptime(partition, _KEY).replace(tzinfo=UTC)


def end_of(hour: datetime) -> datetime:
    """When the next hour begins."""
    return hour + timedelta(hours=1)
