"""The assets and partitions of file ingest: one partition for each version of each file; topics read, tables stored."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from ingest_project.core.settings import Settings
from ingest_project.file_ingest.tables import aggregated_metrics, quarantined_rows, raw_sensor_data
from ingest_project.platform.dagster.catalog import SqlTable, StoredTable, topic, topic_key

FILES_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))


FILES = "files"
files_partitions = dg.DynamicPartitionsDefinition(name=FILES)

RAW_FILES = dg.AssetKey("raw_files")
VALIDATED_SENSOR_DATA = dg.AssetKey("validated_sensor_data")
QUARANTINED_FILES = dg.AssetKey("quarantined_files")
AGGREGATED_METRICS = dg.AssetKey("aggregated_metrics")


GROUP = "file_ingest"
DEVICE_METRICS = "device_metrics"

STORED: dict[dg.AssetKey, StoredTable] = {
    VALIDATED_SENSOR_DATA: SqlTable(raw_sensor_data, "file_key"),
    AGGREGATED_METRICS: SqlTable(aggregated_metrics, "file_key"),
    QUARANTINED_FILES: SqlTable(quarantined_rows, "file_key"),
}


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topics of file events, their dead letters, and the view over the metrics of all files."""
    queues = [topic_key("file_event_queue"), topic_key("file_events")]
    return [
        topic(settings, "file_event_queue", group=GROUP, deps=[dg.AssetKey("discovered_files")]),
        topic(settings, "file_events", group=GROUP),
        topic(settings, "file_event_queue_dlq", group=GROUP, deps=queues),
        dg.AssetSpec(
            DEVICE_METRICS,
            deps=[AGGREGATED_METRICS],
            description="View: the metrics of all files merged exactly, per device and sensor type.",
            group_name=GROUP,
            kinds={"view"},
            metadata={"dagster/table_name": DEVICE_METRICS},
        ),
    ]
