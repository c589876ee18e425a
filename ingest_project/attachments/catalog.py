"""The partitions and assets of attachments: an hour for what arrived and ended in it, one for each attachment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.attachments.results import results_schema
from ingest_project.core.keys import hour_key
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.catalog import KAFKA, HourlyDeltaTable, StoredTable, topic, topic_key
from ingest_project.platform.http.urls import printable_url

ATTACHMENTS_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))


ATTACHMENTS = "attachments"
FIRST_HOUR = datetime(2026, 1, 1, tzinfo=UTC)

attachments_partitions = dg.DynamicPartitionsDefinition(name=ATTACHMENTS)
# The current hour is a partition too: people want to see what has just arrived.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)

ATTACHMENT_EVENTS = dg.AssetKey("attachment_events")
ONELAKE_ATTACHMENTS = dg.AssetKey("onelake_attachments")
ATTACHMENT_RESULTS = dg.AssetKey("attachment_results")

# An attachment's key does not say in which hour its event arrived, nor an hour which attachments ended in it. Without a
# mapping of its own, Dagster would look for an hour with the attachment's name, and reject every backfill.
EVENTS_OF_ANY_HOUR = dg.AssetDep(ATTACHMENT_EVENTS, partition_mapping=dg.AllPartitionMapping())
ANY_ATTACHMENT = dg.AssetDep(ONELAKE_ATTACHMENTS, partition_mapping=dg.AllPartitionMapping())


def hour_of_arrival(moment: datetime | None, now: datetime) -> str:
    """Return the hourly partition of a moment; of now, if it is before the first partition or in the future."""
    return hour_key(moment if moment is not None and FIRST_HOUR <= moment <= now else now)


GROUP = "attachments"
STORED: dict[dg.AssetKey, StoredTable] = {
    ATTACHMENT_RESULTS: HourlyDeltaTable(
        "attachment_results", lambda services: services.attachment_results, results_schema, "completed_at", "day"
    )
}
EVENTHOUSE = dg.AssetKey("eventhouse")
EVENT_HUBS = dg.AssetKey("event_hubs")
# Retry topics lead back to the downloads, which a graph without circles cannot show.
WRITTEN_BY_DOWNLOADS = (
    "downloads_cached",
    "downloads_results",
    "downloads_retry_5m",
    "downloads_retry_10m",
    "downloads_retry_20m",
    "downloads_retry_40m",
    "downloads_dlq",
)


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the source of events, and every topic of attachments."""
    source = settings.attachments.event_source
    return [
        *_event_source(settings),
        topic(
            settings,
            "events_raw",
            group=GROUP,
            deps=[EVENTHOUSE] if source == "eventhouse" else [],
            cluster=EVENT_HUBS if source == "eventhub" else KAFKA,
        ),
        topic(settings, "events_raw_dlq", group=GROUP, deps=[topic_key("events_raw")]),
        topic(settings, "downloads_pending", group=GROUP, deps=[ATTACHMENT_EVENTS]),
        *(topic(settings, name, group=GROUP, deps=[ONELAKE_ATTACHMENTS]) for name in WRITTEN_BY_DOWNLOADS),
    ]


def _event_source(settings: Settings) -> list[dg.AssetSpec]:
    if settings.attachments.event_source == "eventhouse":
        eventhouse = settings.eventhouse
        return [
            dg.AssetSpec(
                EVENTHOUSE,
                description="The Eventhouse database that is polled for new events.",
                group_name=GROUP,
                kinds={"kusto"},
                metadata={"dagster/uri": printable_url(eventhouse.address)} if eventhouse.address else {},
            )
        ]
    if settings.attachments.event_source == "eventhub":
        hub = settings.eventhubs
        return [
            dg.AssetSpec(
                EVENT_HUBS,
                description="The Event Hubs namespace whose Kafka endpoint is read.",
                group_name=GROUP,
                kinds={"eventhubs"},
                metadata={"namespace": hub.namespace or "", "event_hub": hub.topic or ""},
            )
        ]
    return []
