"""Compare a database with the expected result of a workload, row sums and aggregates included.

Product and peer are compared by the same queries: their tables have the same names, and the same columns as far as
these queries go.
"""

from __future__ import annotations

import adbc_driver_postgresql.dbapi
import polars as pl

from benchmarks.workload import Workload

RELATIVE_TOLERANCE = 1e-9

_FILES = """
SELECT file_key, file_name, state, coalesce(rows_accepted, 0)::bigint AS accepted_on_record,
       coalesce(rows_quarantined, 0)::bigint AS quarantined_on_record
FROM files"""
_ROWS = """
SELECT file_key, count(*) AS accepted, sum(value) AS value_sum,
       sum(extract(epoch FROM "timestamp")::bigint)::bigint AS second_sum, sum(line_number)::bigint AS line_sum
FROM raw_sensor_data GROUP BY file_key"""
_QUARANTINED = "SELECT file_key, count(*) AS quarantined FROM quarantined_rows GROUP BY file_key"
_METRICS = "SELECT file_key, device_id, sensor_type, min, max, mean, count, stddev FROM aggregated_metrics"

_EXACT_SUMS = ("accepted", "second_sum", "line_sum")
_EXACT_METRICS = ("min", "max", "count")
_CLOSE_METRICS = ("mean", "stddev")


def differences(database_url: str, workload: Workload) -> list[str]:
    """List the differences between the stored and the expected result; empty when there are none.

    Args:
        database_url: libpq's, of the database with the tables.
        workload: whose files were ingested; other files in the tables are ignored.
    """
    with adbc_driver_postgresql.dbapi.connect(database_url) as connection, connection.cursor() as cursor:

        def table(query: str) -> pl.DataFrame:
            cursor.execute(query)
            found = pl.from_arrow(cursor.fetch_arrow_table())
            assert isinstance(found, pl.DataFrame)
            return found

        files = workload.files.join(table(_FILES), on="file_name", how="left")
        stored = files.select("file_key", "file_name").drop_nulls()
        return [
            *_of_files(files),
            *_of_rows(files, table(_ROWS), table(_QUARANTINED)),
            *_of_metrics(workload.metrics, table(_METRICS).join(stored, on="file_key")),
        ]


def _of_files(files: pl.DataFrame) -> list[str]:
    state = pl.when(pl.col("flaw").is_null()).then(pl.lit("ingested")).otherwise(pl.lit("quarantined"))
    ingested = pl.col("flaw").is_null()
    return [
        *_where(files, pl.col("state").ne_missing(state), "state is {state}, should follow from flaw {flaw}"),
        *_where(
            files,
            ingested & (pl.col("accepted_on_record") != pl.col("accepted")),
            "{accepted_on_record} rows accepted on record, should be {accepted}",
        ),
        *_where(
            files,
            ingested & (pl.col("quarantined_on_record") != pl.col("quarantined")),
            "{quarantined_on_record} rows quarantined on record, should be {quarantined}",
        ),
    ]


def _of_rows(files: pl.DataFrame, rows: pl.DataFrame, quarantined: pl.DataFrame) -> list[str]:
    both = files.join(rows, on="file_key", how="left", suffix="_stored").join(
        quarantined, on="file_key", how="left", suffix="_stored"
    )
    both = both.with_columns(pl.col("^.*_stored$").fill_null(0))
    wrong = [pl.col(name) != pl.col(f"{name}_stored") for name in _EXACT_SUMS]
    return [
        *_where(both, pl.any_horizontal(wrong), "{accepted_stored} rows stored of {accepted}, or not the right ones"),
        *_where(both, _apart("value_sum"), "values sum to {value_sum_stored}, should to {value_sum}"),
        *_where(
            # Of a file that was refused whole the rows may be kept apart or not.
            both.filter(pl.col("flaw").is_null()),
            pl.col("quarantined") != pl.col("quarantined_stored"),
            "{quarantined_stored} rows in quarantine, should be {quarantined}",
        ),
    ]


def _of_metrics(expected: pl.DataFrame, stored: pl.DataFrame) -> list[str]:
    key = ["file_name", "device_id", "sensor_type"]
    both = expected.join(stored, on=key, how="full", coalesce=True, suffix="_stored")
    wrong = [pl.col(name).ne_missing(pl.col(f"{name}_stored")) for name in _EXACT_METRICS]
    wrong += [_apart(name) for name in _CLOSE_METRICS]
    return _where(both, pl.any_horizontal(wrong), "metrics of {device_id} {sensor_type} differ")


def _apart(name: str) -> pl.Expr:
    """Return True if two numbers differ by more than rounding; a null equals only a null."""
    expected, stored = pl.col(name), pl.col(f"{name}_stored")
    near = (expected - stored).abs() <= RELATIVE_TOLERANCE * pl.max_horizontal(expected.abs(), pl.lit(1.0))
    return ~(near.fill_null(value=False) | (expected.is_null() & stored.is_null()))


def _where(rows: pl.DataFrame, wrong: pl.Expr, sentence: str) -> list[str]:
    return [f"{row['file_name']}: {sentence.format(**row)}" for row in rows.filter(wrong).iter_rows(named=True)]
