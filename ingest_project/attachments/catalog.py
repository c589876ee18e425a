"""What attachments read, write and store: where events come from, the topics of tasks and results, the Delta table."""

from __future__ import annotations

import dagster as dg

from ingest_project.attachments.partitions import ATTACHMENT_EVENTS, ATTACHMENT_RESULTS, ONELAKE_ATTACHMENTS
from ingest_project.attachments.results_table import results_schema
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.external_assets import KAFKA, topic, topic_key
from ingest_project.platform.dagster.stored_tables import HourlyDeltaTable, StoredTable
from ingest_project.platform.http.urls import printable_url

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
                description="The Eventhouse database that is asked for new events.",
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
