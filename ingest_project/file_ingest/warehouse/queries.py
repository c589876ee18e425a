"""What can be asked of the warehouse, the same on every database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ingest_project.file_ingest.tables import aggregated_metrics, quarantined_rows, raw_sensor_data
from ingest_project.file_ingest.warehouse.protocol import DeviceMetric, QuarantinedRow, StoredCounts
from ingest_project.platform.database.engine import open_engine, reading

if TYPE_CHECKING:
    import polars as pl

KEYS_AT_A_TIME = 1_000
READINGS_AT_A_TIME = 50_000
# Polars types by name, with their arguments.
READING_SCHEMA: dict[str, tuple[str, ...]] = {
    "line_number": ("Int64",),
    "timestamp": ("Datetime", "us", "UTC"),
    "device_id": ("String",),
    "sensor_type": ("String",),
    "value": ("Float64",),
    "unit": ("String",),
}

device_metrics = sa.table("device_metrics", *(sa.column(name) for name in DeviceMetric._fields))


class WarehouseQueries:
    """The reading half of a warehouse, over an engine that connects when it is first used."""

    def __init__(self, database_url: str, connect_timeout_seconds: float) -> None:
        self._engine = open_engine(database_url, connect_timeout_seconds)

    def file_counts(self, file_keys: Sequence[str]) -> dict[str, StoredCounts]:
        """What is stored of each of these files, counted in the tables; zeros where there is nothing."""
        counts: dict[str, list[int]] = {key: [0, 0, 0] for key in file_keys}
        with self._by_index() as connection:
            for position, table in enumerate((raw_sensor_data, quarantined_rows, aggregated_metrics)):
                for part in in_parts(file_keys):
                    key = table.c.file_key
                    query = sa.select(key, sa.func.count()).where(key.in_(part)).group_by(key)
                    for found, number in connection.execute(query):
                        counts[found][position] = number
        return {key: StoredCounts(*numbers) for key, numbers in counts.items()}

    def readings_of(self, file_key: str) -> Iterator[pl.DataFrame]:
        """The file's stored readings in parts of bounded size, in no particular order."""
        import polars  # noqa: ICN001, PLC0415 - most processes that ask the warehouse never need it

        table = raw_sensor_data
        query = sa.select(*(table.c[name] for name in READING_SCHEMA)).where(table.c.file_key == file_key)
        schema = {name: getattr(polars, kind)(*of) for name, (kind, *of) in READING_SCHEMA.items()}
        with self._by_index() as connection:
            rows = connection.execution_options(stream_results=True).execute(query)
            for part in rows.partitions(READINGS_AT_A_TIME):
                yield polars.DataFrame(list(map(tuple, part)), schema=schema, orient="row")

    def totals(self) -> StoredCounts:
        """What is stored of all files. Counts every row: for checks, not for every tick."""
        tables = (raw_sensor_data, quarantined_rows, aggregated_metrics)
        with reading(self._engine) as connection:
            numbers = [
                connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in tables
            ]
        return StoredCounts(*numbers)

    def metrics_of(self, file_key: str) -> tuple[DeviceMetric, ...]:
        """The file's metrics by device and sensor type."""
        return self.metrics_of_files([file_key]).get(file_key, ())

    def metrics_of_files(self, file_keys: Sequence[str]) -> dict[str, tuple[DeviceMetric, ...]]:
        """The same for many files; files without metrics are left out."""
        table = aggregated_metrics
        found: dict[str, list[DeviceMetric]] = {}
        with reading(self._engine) as connection:
            for part in in_parts(file_keys):
                query = (
                    sa.select(table.c.file_key, *(table.c[name] for name in DeviceMetric._fields))
                    .where(table.c.file_key.in_(part))
                    .order_by(table.c.file_key, table.c.device_id, table.c.sensor_type)
                )
                for key, *values in connection.execute(query):
                    found.setdefault(key, []).append(DeviceMetric(*values))
        return {key: tuple(metrics) for key, metrics in found.items()}

    def device_metrics(self) -> tuple[DeviceMetric, ...]:
        """Merged over all files, by device and sensor type."""
        query = sa.select(device_metrics).order_by(device_metrics.c.device_id, device_metrics.c.sensor_type)
        with reading(self._engine) as connection:
            return tuple(DeviceMetric(*row) for row in connection.execute(query))

    def quarantined_rows_of(self, file_key: str, limit: int = 100) -> tuple[QuarantinedRow, ...]:
        """The file's refused rows, the first lines first."""
        table = quarantined_rows
        query = (
            sa.select(table.c.line_number, table.c.raw_text, table.c.reasons)
            .where(table.c.file_key == file_key)
            .order_by(table.c.line_number)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return tuple(QuarantinedRow(line, text, tuple(why)) for line, text, why in connection.execute(query))

    def close(self) -> None:
        """Give the connections back. The warehouse opens new ones when it is used again."""
        self._engine.dispose()

    @contextmanager
    def _by_index(self) -> Iterator[sa.Connection]:
        """A connection that finds a file's readings by their index.

        Before its first ANALYZE a table has no statistics, and the planner takes a whole scan for the cheaper way.
        """
        with reading(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            yield connection


def in_parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Keys in numbers that one statement can take."""
    for start in range(0, len(keys), KEYS_AT_A_TIME):
        yield keys[start : start + KEYS_AT_A_TIME]
