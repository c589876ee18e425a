"""Resources that every stream uses: where its partitions are stored up to."""

from __future__ import annotations

from ingest_project.platform.runtime import Runtime
from ingest_project.streams.positions import StreamPositions

USER_ACTIVITY = "user_activity"
CRM = "crm"


class StreamResources(Runtime):
    """Positions of the shipped streams."""

    @property
    def activity_positions(self) -> StreamPositions:
        """Positions of user activity."""
        return StreamPositions(self.engine, USER_ACTIVITY, self.settings.topics.user_activity_events)

    @property
    def crm_positions(self) -> StreamPositions:
        """Positions of CRM messages."""
        return StreamPositions(self.engine, CRM, self.settings.topics.sales_events)
