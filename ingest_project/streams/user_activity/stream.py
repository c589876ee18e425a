"""Shared by all readers and writers of events: asset keys and hourly partitions, stream names, sizes, and a lock."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg

from ingest_project.streams.range_record import OffsetRange

FIRST_HOUR = datetime(2024, 1, 1, tzinfo=UTC)

# The hour that is going on is a partition too: people want to see what has just arrived.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)

USER_ACTIVITY_EVENTS = dg.AssetKey("user_activity_events")
USER_ACTIVITY_HOURLY = dg.AssetKey("user_activity_hourly")


def hours_between(hours: Iterable[datetime], now: datetime) -> list[datetime]:
    """Those of the hours that are partitions, in order: none before the first one, none that has yet to begin."""
    return sorted(hour for hour in hours if FIRST_HOUR <= hour <= now)


EVENTS_OP = "store_user_activity"


MOST_UNFINISHED = 10_000


# The head of a partition cannot be skipped: what fails is asked for again until it is stored, and the checks tell.
NO_LAST_ATTEMPT = 2**31 - 1


# What is decoded at a time: the events of a chunk live as objects, those of a commit as columns.
CHUNK_MESSAGES = 10_000
CHUNK_BYTES = 16 * 1024**2

# Replacing, recovering and maintenance take turns: each looks at rows or files that another may be changing.
LOCK = "user_activity_events"
LOCK_WAIT_SECONDS = 900.0

# What the ledger counts the rows of a range as: committed by its run, or found in the table.
EVENTS, FOUND_STORED = "events", "found_stored"


def stream_of(offsets: OffsetRange) -> str:
    """The name under which the table remembers how far it is in a partition; another one in each life of the topic."""
    return f"ingest_project/user_activity/{offsets.topic}/{offsets.topic_id}/{offsets.partition}"
