"""The partitions of file ingest: one for each version of each file, named by its file key."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

FILES_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))


FILES = "files"
files_partitions = dg.DynamicPartitionsDefinition(name=FILES)

RAW_FILES = dg.AssetKey("raw_files")
VALIDATED_SENSOR_DATA = dg.AssetKey("validated_sensor_data")
QUARANTINED_FILES = dg.AssetKey("quarantined_files")
AGGREGATED_METRICS = dg.AssetKey("aggregated_metrics")
