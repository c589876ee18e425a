"""Resources of user activity, and the names and bounds that its readers and writers of events share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property

from ingest_project.platform.delta import delta_credentials
from ingest_project.platform.delta.table import DeltaStore, open_delta_table
from ingest_project.streams.engine import StreamResources
from ingest_project.streams.positions import TopicPartition
from ingest_project.streams.user_activity.hours import ActivityHours

FIRST_HOUR = datetime(2024, 1, 1, tzinfo=UTC)

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


class UserActivityResources(StreamResources):
    """The Delta table of events and the hours that changed."""

    @property
    def store_urls(self) -> tuple[str, ...]:
        """The table of events as well."""
        return (*super().store_urls, self.settings.user_activity_url)

    @cached_property
    def activity_hours(self) -> ActivityHours:
        """The hours of user activity that changed."""
        return ActivityHours(self.engine)

    @cached_property
    def user_activity_events(self) -> DeltaStore:
        """The Delta table of user activity."""
        credentials = delta_credentials(self.settings)
        return open_delta_table(self.settings.user_activity_url, credentials, partition_by=("event_day",))
