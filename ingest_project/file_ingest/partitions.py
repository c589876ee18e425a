"""The partitions of file ingest: one for each version of each file, named by its file key."""

from __future__ import annotations

import dagster as dg

FILES = "files"
files_partitions = dg.DynamicPartitionsDefinition(name=FILES)

RAW_FILES = dg.AssetKey("raw_files")
VALIDATED_SENSOR_DATA = dg.AssetKey("validated_sensor_data")
QUARANTINED_FILES = dg.AssetKey("quarantined_files")
AGGREGATED_METRICS = dg.AssetKey("aggregated_metrics")
