"""The partitions of user activity: an hour for the events that happened in it, whenever they arrive."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg

FIRST_HOUR = datetime(2024, 1, 1, tzinfo=UTC)

# The hour that is going on is a partition too: people want to see what has just arrived.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)

USER_ACTIVITY_EVENTS = dg.AssetKey("user_activity_events")
USER_ACTIVITY_HOURLY = dg.AssetKey("user_activity_hourly")


def hours_between(hours: Iterable[datetime], now: datetime) -> list[datetime]:
    """Those of the hours that are partitions, in order: none before the first one, none that has yet to begin."""
    return sorted(hour for hour in hours if FIRST_HOUR <= hour <= now)
