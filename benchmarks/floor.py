"""Measure the machine without any orchestration: two processes, Polars, COPY in transactions of 64 files.

No queue, no history, no retry, no UI: the time of the work alone. One large file is cut between two lines, and each
process reads, checks and stores parts of it as if they were files; the metrics of the parts are merged at the end.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

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
PART_BYTES = 16 * 1024**2


class Part(NamedTuple):
    """Some lines of a large file: first byte, length, and the number of the first line."""

    start: int
    size_bytes: int
    first_line: int


def measure_floor(workload: Workload, folder: Path) -> tuple[float, list[str]]:
    """Ingest the files of a workload.

    Args:
        workload: the files.
        folder: of the database; created.

    Returns:
        seconds it took, and how what is stored differs from what should be.
    """
    paths = [str(path) for path in workload.paths]
    groups = [paths[start : start + FILES_PER_TRANSACTION] for start in range(0, len(paths), FILES_PER_TRANSACTION)]
    return _timed(workload, folder, lambda url, workers: list(workers.map(ingest_group, [url] * len(groups), groups)))


def measure_floor_of_rows(workload: Workload, folder: Path) -> tuple[float, list[str]]:
    """Ingest the one large file of a workload; arguments and result as those of `measure_floor`.

    The parts of the file are transactions of their own, so that a failure would leave some of its rows.
    """
    (path,) = workload.paths
    return _timed(workload, folder, lambda url, workers: _ingest_in_parts(url, workers, path))


def _timed(
    workload: Workload, folder: Path, work: Callable[[str, ProcessPoolExecutor], object]
) -> tuple[float, list[str]]:
    (folder / "logs").mkdir(parents=True)
    spawning = multiprocessing.get_context("spawn")
    with running_postgres(folder) as database_url, ProcessPoolExecutor(PROCESSES, spawning) as processes:
        with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(TABLES)
        # Processes that are up and have loaded what they need, as the peer's.
        list(processes.map(ingest_group, [database_url] * PROCESSES, [[]] * PROCESSES))
        started = time.monotonic()
        work(database_url, processes)
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


def _ingest_in_parts(database_url: str, processes: ProcessPoolExecutor, path: Path) -> None:
    parts = list(_parts_of(path))
    found = list(processes.map(ingest_part, [database_url] * len(parts), [str(path)] * len(parts), parts))
    figures = pl.concat([figures for figures, _ in found])
    keys = ["file_key", "device_id", "sensor_type"]
    count, mean, whole_mean = pl.col("count"), pl.col("mean"), pl.col("whole_mean")
    merged = (
        figures.with_columns(whole_mean=((mean * count).sum() / count.sum()).over(keys))
        .group_by(keys)
        .agg(
            min=pl.col("min").min(),
            max=pl.col("max").max(),
            mean=whole_mean.first(),
            count=count.sum(),
            squares=(pl.col("squares") + count * (mean - whole_mean) ** 2).sum(),
        )
    )
    stddev = pl.when(count > 1).then((pl.col("squares") / (count - 1)).sqrt())
    counts = pl.DataFrame(
        {
            "file_key": [path.name],
            "rows_accepted": [int(figures["count"].sum())],
            "rows_read": [sum(rows_read for _, rows_read in found)],
        }
    )
    with adbc_driver_postgresql.dbapi.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("files", _states([str(path)], counts).to_arrow(), mode="append")
        metrics = merged.with_columns(stddev=stddev).drop("squares")
        cursor.adbc_ingest("aggregated_metrics", metrics.to_arrow(), mode="append")
        connection.commit()


def _parts_of(path: Path) -> Iterator[Part]:
    """Cut the lines below the header into parts of similar size."""
    with path.open("rb") as file:
        file.readline()
        start, line = file.tell(), 2
        while text := file.read(PART_BYTES):
            text += file.readline()
            yield Part(start, len(text), line)
            start, line = start + len(text), line + text.count(b"\n")


def ingest_part(database_url: str, path: str, part: Part) -> tuple[pl.DataFrame, int]:
    """Read, check and store a part of a file; return the figures of its groups, and its number of rows."""
    with Path(path).open("rb") as file:
        header = file.readline()
        file.seek(part.start)
        text = header + file.read(part.size_bytes)
    rows = pl.read_csv(text, infer_schema=False, row_index_name="line_number", row_index_offset=part.first_line)
    checked = _check(rows.select(pl.col("line_number").cast(pl.Int64), *CELLS, file_key=pl.lit(Path(path).name)))
    good = checked.filter("good")
    with adbc_driver_postgresql.dbapi.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("raw_sensor_data", good.select(_READINGS).to_arrow(), mode="append")
        cursor.adbc_ingest("quarantined_rows", _quarantined(checked).to_arrow(), mode="append")
        connection.commit()
    squares = pl.col("stddev").fill_null(0.0) ** 2 * (pl.col("count") - 1)
    return _aggregate(good).with_columns(squares=squares).drop("stddev"), checked.height


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
