"""The design that people usually build for this: a Celery task per file, pandas, COPY, a status table.

Written as well as the design allows: rules and statistics are vectorised, each worker keeps its connection, a file is
one transaction, a task that is delivered twice replaces its own rows. It stores the rows, metrics, quarantine and state
that the product stores; it has no landing store, no partitions and no history per file.

The common form of it, for comparison, is the same with `executemany` in place of COPY and of statements of many rows.

`celery -A benchmarks.peer_celery worker` serves; PEER_DATABASE_URL and PEER_BROKER_URL say where, PEER_EXECUTEMANY=1
selects the common form.
"""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path
from typing import Any, Final

import celery
import numpy as np
import pandas as pd
import psycopg2
import psycopg2.extensions
from psycopg2.extras import execute_values

REQUIRED: Final = ("timestamp", "device_id", "sensor_type", "value")
RANGES = {"temperature": (-100, 200), "humidity": (0, 100), "pressure": (300, 1200), "pm10": (0, 3000)}
LOWEST = {name: limits[0] for name, limits in RANGES.items()}
HIGHEST = {name: limits[1] for name, limits in RANGES.items()}
FUTURE_TOLERANCE = pd.Timedelta(minutes=5)
MAX_REJECTED_SHARE = 0.5
QUEUE = "files"
EXECUTEMANY = "PEER_EXECUTEMANY"

TABLES = """
CREATE TABLE raw_sensor_data (
    "timestamp" timestamptz NOT NULL, device_id text NOT NULL, sensor_type text NOT NULL,
    value double precision NOT NULL, unit text, file_key text NOT NULL, line_number bigint NOT NULL);
CREATE INDEX ON raw_sensor_data USING brin (file_key text_bloom_ops (n_distinct_per_range = 256))
    WITH (pages_per_range = 64, autosummarize = on);
CREATE TABLE aggregated_metrics (
    file_key text, device_id text, sensor_type text, min double precision, max double precision,
    mean double precision, count bigint, stddev double precision, PRIMARY KEY (file_key, device_id, sensor_type));
CREATE TABLE quarantined_rows (
    file_key text NOT NULL, line_number bigint NOT NULL, raw_text text NOT NULL, reasons text[] NOT NULL);
CREATE INDEX ON quarantined_rows (file_key);
CREATE TABLE files (
    file_key text PRIMARY KEY, file_name text NOT NULL, state text NOT NULL, attempts integer NOT NULL DEFAULT 1,
    reason text, rows_accepted bigint, rows_quarantined bigint, finished_at timestamptz);
"""

app = celery.Celery("peer", broker=os.environ.get("PEER_BROKER_URL"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_default_queue=QUEUE,
    # The tasks are short and alike: a few in hand keep a worker busy while the next are fetched.
    worker_prefetch_multiplier=8,
    broker_connection_retry_on_startup=True,
)


class RejectedFileError(Exception):
    """The whole file breaks the contract."""


@app.task(name="ingest_file", autoretry_for=(psycopg2.OperationalError,), retry_backoff=True)  # type: ignore[untyped-decorator]
def ingest_file(path: str) -> None:
    """Ingest one file; a second time replaces what the first stored."""
    key = Path(path).name
    with _connection() as connection, connection.cursor() as cursor:
        _begin(cursor, key)
        try:
            rows = read(path)
            accepted, rejected = validate(rows)
        except RejectedFileError as refusal:
            _finish(cursor, key, "quarantined", reason=str(refusal))
            return
        _copy_readings(cursor, key, accepted)
        _insert_metrics(cursor, key, aggregate(accepted))
        _insert_quarantined(cursor, key, rejected)
        _finish(cursor, key, "ingested", rows_accepted=len(accepted), rows_quarantined=len(rejected))


def read(path: str) -> pd.DataFrame:
    """Return the file's cells as text."""
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RejectedFileError(f"unreadable: {error}") from error
    if missing := [name for name in REQUIRED if name not in rows.columns]:
        raise RejectedFileError(f"missing columns: {', '.join(missing)}")
    if rows.empty:
        raise RejectedFileError("no rows")
    return rows


def validate(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split into accepted rows, with the number as `number`, and rejected ones with their `reasons`."""
    moments = pd.to_datetime(rows["timestamp"], format="ISO8601", utc=True, errors="coerce")
    numbers = pd.to_numeric(rows["value"], errors="coerce")
    finite = np.isfinite(numbers)
    failed = {
        "timestamp_unparseable": moments.isna(),
        "timestamp_in_future": moments > pd.Timestamp.now(tz="UTC") + FUTURE_TOLERANCE,
        "device_id_missing": rows["device_id"] == "",
        "sensor_type_missing": rows["sensor_type"] == "",
        "value_not_a_number": numbers.isna(),
        "value_not_finite": numbers.notna() & ~finite,
        "value_out_of_range": finite
        & ((numbers < rows["sensor_type"].map(LOWEST)) | (numbers > rows["sensor_type"].map(HIGHEST))),
    }
    masks = np.column_stack(list(failed.values()))
    bad = pd.Series(masks.any(axis=1), rows.index)
    if bad.mean() > MAX_REJECTED_SHARE:
        raise RejectedFileError(f"{bad.sum()} of {len(rows)} rows are bad")
    reasons = [[rule for rule, fails in zip(failed, mask, strict=True) if fails] for mask in masks[bad]]
    rejected = rows[bad].assign(reasons=pd.Series(reasons, rows.index[bad], dtype=object))
    return rows[~bad].assign(number=numbers[~bad]), rejected


def aggregate(accepted: pd.DataFrame) -> pd.DataFrame:
    """Return one row per device and sensor type."""
    groups = accepted.groupby(["device_id", "sensor_type"], sort=False)["number"]
    return groups.agg(["min", "max", "mean", "count", "std"]).reset_index()


def _connection() -> psycopg2.extensions.connection:
    if _open_connection().closed:
        _open_connection.cache_clear()
    return _open_connection()


@cache
def _open_connection() -> psycopg2.extensions.connection:
    return psycopg2.connect(os.environ["PEER_DATABASE_URL"])


def _begin(cursor: psycopg2.extensions.cursor, key: str) -> None:
    cursor.execute(
        "INSERT INTO files (file_key, file_name, state) VALUES (%s, %s, 'ingesting') ON CONFLICT (file_key) DO UPDATE"
        " SET state = 'ingesting', attempts = files.attempts + 1 RETURNING attempts",
        (key, key),
    )
    found = cursor.fetchone()
    if found and found[0] > 1:
        for table in ("raw_sensor_data", "aggregated_metrics", "quarantined_rows"):
            cursor.execute(f"DELETE FROM {table} WHERE file_key = %s", (key,))


def _copy_readings(cursor: psycopg2.extensions.cursor, key: str, accepted: pd.DataFrame) -> None:
    # The texts as they were read: PostgreSQL understands them, and pandas takes long to format times and numbers.
    if EXECUTEMANY in os.environ:
        cells = accepted[["timestamp", "device_id", "sensor_type", "value", "unit"]].to_numpy().tolist()
        rows = [(*texts, key, int(index) + 2) for index, texts in zip(accepted.index, cells, strict=True)]
        cursor.executemany("INSERT INTO raw_sensor_data VALUES (%s, %s, %s, %s, %s, %s, %s)", rows)
        return
    lines = accepted[["timestamp", "device_id", "sensor_type", "value", "unit"]].assign(
        file_key=key, line_number=accepted.index + 2
    )
    buffer = io.StringIO(lines.to_csv(header=False, index=False))
    cursor.copy_expert("COPY raw_sensor_data FROM STDIN WITH (FORMAT csv)", buffer)


def _insert_metrics(cursor: psycopg2.extensions.cursor, key: str, metrics: pd.DataFrame) -> None:
    rows: list[tuple[Any, ...]] = [
        (key, *row[:-1], None if np.isnan(row[-1]) else row[-1])
        for row in zip(*(metrics[name].tolist() for name in metrics.columns), strict=True)
    ]
    _insert(cursor, "aggregated_metrics", rows)


def _insert_quarantined(cursor: psycopg2.extensions.cursor, key: str, rejected: pd.DataFrame) -> None:
    if rejected.empty:
        return
    cells = rejected.drop(columns="reasons").to_numpy().tolist()
    rows = [
        (key, int(index) + 2, ",".join(texts), reasons)
        for index, texts, reasons in zip(rejected.index, cells, rejected["reasons"], strict=True)
    ]
    _insert(cursor, "quarantined_rows", rows)


def _insert(cursor: psycopg2.extensions.cursor, table: str, rows: list[tuple[Any, ...]]) -> None:
    if EXECUTEMANY in os.environ:
        cursor.executemany(f"INSERT INTO {table} VALUES ({', '.join(['%s'] * len(rows[0]))})", rows)
    else:
        execute_values(cursor, f"INSERT INTO {table} VALUES %s", rows, page_size=1_000)


def _finish(cursor: psycopg2.extensions.cursor, key: str, state: str, **values: str | int) -> None:
    given = {"state": state, **values}
    columns = ", ".join(f"{name} = %({name})s" for name in given)
    cursor.execute(f"UPDATE files SET {columns}, finished_at = now() WHERE file_key = %(key)s", {**given, "key": key})
