"""What user activity reads and stores: its topic, the dead letters of it, and its tables."""

from __future__ import annotations

import dagster as dg

from ingest_project.core.keys import parse_hour_key
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.external_assets import topic, topic_key
from ingest_project.platform.dagster.stored_tables import HourlyDeltaTable, SqlTable, StoredTable
from ingest_project.streams.user_activity.event_table import DAY, SCHEMA
from ingest_project.streams.user_activity.stream import USER_ACTIVITY_EVENTS, USER_ACTIVITY_HOURLY
from ingest_project.streams.user_activity.tables import user_activity_hourly

GROUP = "user_activity"

STORED: dict[dg.AssetKey, StoredTable] = {
    USER_ACTIVITY_EVENTS: HourlyDeltaTable(
        "user_activity_events", lambda services: services.user_activity_events, lambda: SCHEMA, "timestamp", DAY
    ),
    USER_ACTIVITY_HOURLY: SqlTable(user_activity_hourly, "hour", parse_hour_key),
}


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of events and its dead letters."""
    return [
        topic(settings, "user_activity_events", group=GROUP),
        topic(settings, "user_activity_events_dlq", group=GROUP, deps=[topic_key("user_activity_events")]),
    ]
