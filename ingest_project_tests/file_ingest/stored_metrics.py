"""Metrics as the tables have them: of one file, and of the view that merges all files."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from ingest_project.file_ingest.warehouse.sql import SqlWarehouse
from ingest_project.platform.database import reading


class DeviceMetric(NamedTuple):
    """Readings of one device and sensor type, of one file or of all, summarised.

    Args:
        mean: None over all files where readings are too large to be summed.
        stddev: of the sample; None for a single reading, and over all files where readings are too large to be squared.
    """

    device_id: str
    sensor_type: str
    min: float
    max: float
    mean: float | None
    count: int  # type: ignore[assignment]  # tuple.count is not used, and the column is named so
    stddev: float | None


def metrics_of(warehouse: SqlWarehouse, file_key: str) -> tuple[DeviceMetric, ...]:
    """Return the file's metrics by device and sensor type."""
    return tuple(DeviceMetric(**row) for row in warehouse.summaries_of(file_key))


def device_metrics(warehouse: SqlWarehouse) -> tuple[DeviceMetric, ...]:
    """Return the metrics merged over all files, by device and sensor type."""
    query = f"SELECT {', '.join(DeviceMetric._fields)} FROM device_metrics ORDER BY device_id, sensor_type"
    with reading(warehouse._engine) as connection:
        return tuple(DeviceMetric(*row) for row in connection.execute(sa.text(query)))
