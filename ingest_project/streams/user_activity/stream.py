"""Shared by all readers and writers of events: asset keys and hourly partitions, stream names, and a lock."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg

from ingest_project.streams.positions import TopicPartition

FIRST_HOUR = datetime(2024, 1, 1, tzinfo=UTC)
# The present hour is a partition too: people want to see what has just arrived.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)

USER_ACTIVITY_EVENTS = dg.AssetKey("user_activity_events")
USER_ACTIVITY_HOURLY = dg.AssetKey("user_activity_hourly")

# What is decoded at a time: the events of a chunk are objects, those of a commit columns.
CHUNK_MESSAGES = 10_000
# Replacing, recovering and maintenance take turns: each looks at rows or files that another may be changing.
LOCK = "user_activity_events"
LOCK_WAIT_SECONDS = 900.0


def hours_between(hours: Iterable[datetime], now: datetime) -> list[datetime]:
    """Return the hours that are partitions, in order: none before the first one, none that has yet to begin."""
    return sorted(hour for hour in hours if FIRST_HOUR <= hour <= now)


def app_id_of(partition: TopicPartition) -> str:
    """Return the name under which the table keeps its position in a partition."""
    return f"ingest_project/user_activity/{partition.topic}/{partition.topic_id}/{partition.partition}"
