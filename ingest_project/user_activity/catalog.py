"""What user activity reads and stores: its topic, the dead letters of it, and its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest_project.database.activity_tables import user_activity_hourly
from ingest_project.external_assets import topic, topic_key
from ingest_project.hours import hour_of
from ingest_project.stored_tables import HourlyDeltaTable, SqlTable, StoredTable
from ingest_project.user_activity.event_table import DAY, SCHEMA
from ingest_project.user_activity.partitions import USER_ACTIVITY_EVENTS, USER_ACTIVITY_HOURLY

if TYPE_CHECKING:
    import dagster as dg

    from ingest_project.settings import Settings

GROUP = "user_activity"

STORED: dict[dg.AssetKey, StoredTable] = {
    USER_ACTIVITY_EVENTS: HourlyDeltaTable(
        "user_activity_events", lambda services: services.user_activity_events, lambda: SCHEMA, "timestamp", DAY
    ),
    USER_ACTIVITY_HOURLY: SqlTable(user_activity_hourly, "hour", hour_of),
}


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of events and its dead letters."""
    return [
        topic(settings, "user_activity_events", group=GROUP),
        topic(settings, "user_activity_events_dlq", group=GROUP, deps=[topic_key("user_activity_events")]),
    ]
