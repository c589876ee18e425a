"""Measure the machine without any orchestration: two processes, Polars, COPY in transactions of 64 files.

No queue, no history, no retry, no UI: the time of the work alone.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import adbc_driver_postgresql.dbapi
import polars as pl
import psycopg2

from benchmarks.peer import running_postgres
from benchmarks.peer_celery import HIGHEST, LOWEST, MAX_REJECTED_SHARE, REQUIRED, TABLES
from benchmarks.results import differences
from benchmarks.workload import Workload

PROCESSES = 2
FILES_PER_TRANSACTION = 64
CELLS = (*REQUIRED, "unit")


def measure_floor(workload: Workload, folder: Path) -> tuple[float, list[str]]:
    """Ingest the files of a workload.

    Args:
        workload: the files.
        folder: of the database; created.

    Returns:
        seconds it took, and how what is stored differs from what should be.
    """
    (folder / "logs").mkdir(parents=True)
    paths = [str(path) for path in workload.paths]
    groups = [paths[start : start + FILES_PER_TRANSACTION] for start in range(0, len(paths), FILES_PER_TRANSACTION)]
    spawning = multiprocessing.get_context("spawn")
    with running_postgres(folder) as database_url, ProcessPoolExecutor(PROCESSES, spawning) as processes:
        with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(TABLES)
        # Processes that are up and have loaded what they need, as the peer's.
        list(processes.map(ingest_group, [database_url] * PROCESSES, [[]] * PROCESSES))
        started = time.monotonic()
        list(processes.map(ingest_group, [database_url] * len(groups), groups))
        return time.monotonic() - started, differences(database_url, workload)


def ingest_group(database_url: str, paths: list[str]) -> None:
    """Read, check and store some files in one transaction."""
    if not paths:
        return
    read = [rows for path in paths if (rows := _read(path)) is not None]
    checked = _check(pl.concat(read)) if read else pl.DataFrame(schema={"file_key": pl.String, "good": pl.Boolean})
    counts = checked.group_by("file_key").agg(rows_accepted=pl.col("good").sum(), rows_read=pl.len())
    ingested = counts.filter(pl.col("rows_read") - pl.col("rows_accepted") <= MAX_REJECTED_SHARE * pl.col("rows_read"))
    kept = checked.join(ingested.select("file_key"), on="file_key", how="semi")
    good = kept.filter("good")
    with adbc_driver_postgresql.dbapi.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("files", _states(paths, ingested).to_arrow(), mode="append")
        if kept.height:
            readings = good.select(*(pl.col(name) for name in _READINGS))
            cursor.adbc_ingest("raw_sensor_data", readings.to_arrow(), mode="append")
            cursor.adbc_ingest("aggregated_metrics", _aggregate(good).to_arrow(), mode="append")
            cursor.adbc_ingest("quarantined_rows", _quarantined(kept).to_arrow(), mode="append")
        connection.commit()


_READINGS = ("timestamp", "device_id", "sensor_type", "value", "unit", "file_key", "line_number")


def _read(path: str) -> pl.DataFrame | None:
    """Cells as text, with file and line; None for a file that is no table of readings."""
    try:
        rows = pl.read_csv(path, infer_schema=False, row_index_name="line_number", row_index_offset=2)
    except pl.exceptions.PolarsError:
        return None
    if rows.is_empty() or not set(REQUIRED) <= set(rows.columns):
        return None
    return rows.select(pl.col("line_number").cast(pl.Int64), *CELLS, file_key=pl.lit(Path(path).name))


def _check(rows: pl.DataFrame) -> pl.DataFrame:
    moments = pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", strict=False)
    value, kind = pl.col("value").cast(pl.Float64, strict=False), pl.col("sensor_type")
    lowest = kind.replace_strict(LOWEST, default=None, return_dtype=pl.Float64)
    highest = kind.replace_strict(HIGHEST, default=None, return_dtype=pl.Float64)
    typed = rows.with_columns(
        raw_text=pl.concat_str(CELLS, separator=",", ignore_nulls=True),
        timestamp=moments.dt.replace_time_zone("UTC"),
        value=value,
        outside=(value < lowest) | (value > highest),
    )
    latest = datetime.now(UTC) + timedelta(minutes=5)
    good = (
        (pl.col("timestamp") <= latest)
        & pl.col("device_id").is_not_null()
        & kind.is_not_null()
        & pl.col("value").is_finite()
        & ~pl.col("outside").fill_null(value=False)
    )
    return typed.with_columns(good=good.fill_null(value=False))


def _aggregate(good: pl.DataFrame) -> pl.DataFrame:
    value = pl.col("value")
    return good.group_by("file_key", "device_id", "sensor_type").agg(
        min=value.min(), max=value.max(), mean=value.mean(), count=pl.len().cast(pl.Int64), stddev=value.std()
    )


def _quarantined(kept: pl.DataFrame) -> pl.DataFrame:
    return kept.filter(~pl.col("good")).select(
        "file_key", "line_number", "raw_text", reasons=pl.lit(["broken_rule"], dtype=pl.List(pl.String))
    )


def _states(paths: list[str], ingested: pl.DataFrame) -> pl.DataFrame:
    files = pl.DataFrame({"file_key": [Path(path).name for path in paths]}).join(ingested, on="file_key", how="left")
    accepted = pl.col("rows_accepted").cast(pl.Int64)
    return files.select(
        "file_key",
        file_name="file_key",
        state=pl.when(accepted.is_null()).then(pl.lit("quarantined")).otherwise(pl.lit("ingested")),
        rows_accepted=accepted,
        rows_quarantined=pl.col("rows_read").cast(pl.Int64) - accepted,
    )
