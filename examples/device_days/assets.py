"""An asset of one's own on top of ingested files: the mean of each device and sensor type by day, file by file.

It is partitioned like the files. Dagster materialises a partition as soon as the file's rows are stored and the file's
blocking check `file_accepted` has passed: a file in quarantine never gets here.
"""

import os
import sqlite3
from pathlib import Path

import dagster as dg
import polars as pl

from ingest_project.file_ingest.catalog import VALIDATED_SENSOR_DATA, files_partitions

CREATE = """CREATE TABLE IF NOT EXISTS device_days (
    file_key TEXT, day TEXT, device_id TEXT, sensor_type TEXT, readings INTEGER, mean REAL)"""


@dg.asset(
    ins={"readings": dg.AssetIn(VALIDATED_SENSOR_DATA)},
    partitions_def=files_partitions,
    automation_condition=dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed(),
    group_name="device_days",
    kinds={"polars", "sqlite"},
)
def device_days(context: dg.AssetExecutionContext, readings: pl.DataFrame) -> dg.MaterializeResult[None]:
    """Summarise one file by day, and replace what was stored of it before.

    Args:
        context: names the file.
        readings: its accepted rows: timestamp (UTC), device_id, sensor_type, value and further columns.
    """
    days = summarise(readings)
    path = Path(os.environ.get("DEVICE_DAYS_DATABASE", "device_days.db"))
    with sqlite3.connect(path) as database:
        database.execute(CREATE)
        database.execute("DELETE FROM device_days WHERE file_key = ?", [context.partition_key])
        rows = [(context.partition_key, *row) for row in days.rows()]
        database.executemany("INSERT INTO device_days VALUES (?, ?, ?, ?, ?, ?)", rows)
    return dg.MaterializeResult(metadata={"dagster/row_count": days.height, "dagster/uri": str(path.absolute())})


def summarise(readings: pl.DataFrame) -> pl.DataFrame:
    """Return day (`yyyy-mm-dd`, UTC), device_id, sensor_type, readings and mean, in that order."""
    return (
        readings.group_by(pl.col("timestamp").dt.strftime("%Y-%m-%d").alias("day"), "device_id", "sensor_type")
        .agg(pl.len().alias("readings"), pl.col("value").mean().alias("mean"))
        .sort("day", "device_id", "sensor_type")
    )
