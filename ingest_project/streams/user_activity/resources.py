"""Resources of user activity: the Delta table of events and the hours that changed."""

from __future__ import annotations

from functools import cached_property

from ingest_project.platform.delta.location import delta_credentials
from ingest_project.platform.delta.table import DeltaStore, open_delta_table
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.user_activity.hours import ActivityHours


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
