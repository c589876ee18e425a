"""`aggregated_metrics`: each file's readings summarised per device and sensor type; how is in `aggregation`.

They are stored in the transaction that stores the rows, and replaced with them. The view `device_metrics` merges the
summaries of all files exactly, without reading any row again.
"""

from __future__ import annotations

import dagster as dg

from ingest_project.file_ingest.freshness import FILES_FRESHNESS
from ingest_project.file_ingest.partitions import AGGREGATED_METRICS, VALIDATED_SENSOR_DATA, files_partitions

aggregated_metrics = dg.AssetSpec(
    AGGREGATED_METRICS,
    deps=[VALIDATED_SENSOR_DATA],
    description="Min, max, mean, count and standard deviation of the file's readings per device and sensor type.",
    group_name="file_ingest",
    kinds={"table", "polars"},
    partitions_def=files_partitions,
    freshness_policy=FILES_FRESHNESS,
    skippable=True,
)
