"""Resources of user activity."""

from __future__ import annotations

from functools import cached_property

from ingest_project.platform.delta import delta_credentials
from ingest_project.platform.delta.table import DeltaStore, open_delta_table
from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.engine import USER_ACTIVITY, StreamResources
from ingest_project.streams.hours import StreamHours
from ingest_project.streams.user_activity.event_table import SCHEMA, event_rows


class UserActivityResources(StreamResources):
    """The Delta table of events and the hours that changed."""

    @property
    def store_urls(self) -> tuple[str, ...]:
        """The table of events as well."""
        return (*super().store_urls, self.settings.user_activity_url)

    @property
    def activity_hours(self) -> StreamHours:
        """The hours of user activity that changed."""
        return self.user_activity.hours

    @cached_property
    def user_activity_events(self) -> DeltaStore:
        """The Delta table of user activity."""
        credentials = delta_credentials(self.settings)
        ids = ("event_id", "trace_id")
        url = self.settings.user_activity_url
        return open_delta_table(url, credentials, partition_by=("event_day",), looked_up_by=ids)

    @cached_property
    def user_activity(self) -> DeltaStream:
        """The stream of user activity."""
        topics = self.settings.topics
        return DeltaStream(
            services=self,
            name=USER_ACTIVITY,
            topic=topics.user_activity_events,
            dead_letter_topic=topics.user_activity_events_dlq,
            store=self.user_activity_events,
            lock="user_activity_events",
            decode=event_rows,
            schema_of=lambda: SCHEMA,
            commit_messages=self.settings.user_activity.range_messages,
        )
