"""Summarise the rows of files, e.g. readings per file, device and sensor type; merge summaries of parts.

The summaries are stored and replaced in the transaction of the rows. The view `device_metrics` merges the
summaries of all files exactly, without reading any row again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

EXAMPLES = 2
# The squares of smaller deviations lose digits, or are zero.
LEAST_DEVIATION = 1e-145
# Column names that a declaration cannot have.
SCALE, WHOLE_MEAN = "scale of group", "mean of whole"
NO_INSTANTS = pl.DataFrame(
    schema=dict.fromkeys(("file_key", "device_id", "sensor_type"), pl.String)
    | {"timestamp": pl.Datetime("us", "UTC"), "readings": pl.Int64}
)
SUMMARY_COLUMNS = ("min", "max", "mean", "count", "stddev")


class SummaryCounts(NamedTuple):
    """Number of summaries of a file, and of the distinct values they are grouped by, e.g. its `devices`."""

    rows: int
    distinct: Mapping[str, int]


class SharedInstants(NamedTuple):
    """Number of readings of a file that share device, sensor type and timestamp with another one.

    A column with the day alone, read as the time, puts all readings of a day at midnight.

    Args:
        readings: all of them.
        largest: the highest number at one instant.
        examples: of the largest, in words.
    """

    readings: int
    largest: int
    examples: tuple[str, ...]


NO_SUMMARIES = SummaryCounts(0, {})
NONE_SHARED = SharedInstants(0, 0, ())


def instants_by_file(shared: pl.DataFrame) -> dict[str, SharedInstants]:
    """Count shared instants by file key; a file without any is absent.

    Args:
        shared: as `aggregate_files` returns them, of any number of files or parts of files.
    """
    if not shared.height:
        return {}
    keys = ["file_key", "device_id", "sensor_type", "timestamp"]
    instants = (
        shared.group_by(keys).agg(pl.col("readings").sum()).sort("readings", "timestamp", descending=[True, False])
    )
    found = {}
    for (file_key,), rows in instants.group_by("file_key", maintain_order=True):
        largest = rows.head(EXAMPLES)
        examples = tuple(map(_example, largest.iter_rows(named=True)))
        found[str(file_key)] = SharedInstants(int(rows["readings"].sum()), int(largest["readings"][0]), examples)
    return found


def _example(row: dict[str, Any]) -> str:
    moment = f"{row['timestamp']:%Y-%m-%dT%H:%M:%S.%fZ}"
    return f"{row['readings']} readings of {row['sensor_type']} of {row['device_id']} at {moment}"


def counts_by_file(summaries: pl.DataFrame) -> dict[str, SummaryCounts]:
    """Count summaries by `file_key`, and the values of each column they are grouped by; a file without any is absent.

    Args:
        summaries: file_key, the columns they are grouped by, and `SUMMARY_COLUMNS`.
    """
    groups = [name for name in summaries.columns if name not in {"file_key", *SUMMARY_COLUMNS}]
    counts = summaries.group_by("file_key").agg(pl.len(), *(pl.col(name).n_unique() for name in groups))
    plurals = [f"{name.removesuffix('_id')}s" for name in groups]
    return {
        file_key: SummaryCounts(rows, dict(zip(plurals, numbers, strict=True)))
        for file_key, rows, *numbers in counts.iter_rows()
    }


def aggregate_files(readings: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Summarise the readings of files, and find the instants at which one device has several of one type.

    Args:
        readings: accepted rows: file_key, device_id, sensor_type, timestamp, value, in the order of their files.

    Returns:
        one row per file, device and sensor type, sorted by these: the key, then min, max, mean, count, stddev (of a
        sample; null for one reading); and file_key, device_id, sensor_type, timestamp and `readings`, one row for each
        instant with more than one reading.
    """
    keys = ["file_key", "device_id", "sensor_type"]
    # Nearly all files are in order, which proves cheaply that no instant occurs twice.
    in_order = (pl.col("timestamp").diff().drop_nulls() > pl.duration()).all().alias("in_order")
    summary = readings.group_by(keys).agg(*_figures("value"), in_order)
    shared = NO_INSTANTS
    if not summary["in_order"].all():
        unclear = summary.filter(~pl.col("in_order")).select(keys)
        suspects = readings.join(unclear, on=keys, how="semi")
        counts = suspects.group_by(*keys, "timestamp").agg(pl.len().cast(pl.Int64).alias("readings"))
        shared = counts.filter(pl.col("readings") > 1)
    return _without_overflow(summary.drop("in_order"), readings, keys, "value").sort(keys), shared


def summarise(rows: pl.DataFrame, keys: Sequence[str], measures: Sequence[str]) -> pl.DataFrame:
    """Summarise some columns of rows; missing values do not count.

    Args:
        rows: of any number of files.
        keys: columns to group by.
        measures: columns of numbers.

    Returns:
        one row for each group and measure, sorted by these: the keys, `measure`, then `SUMMARY_COLUMNS`.
    """
    parts = []
    for measure in measures:
        values = rows.select(*keys, pl.col(measure).cast(pl.Float64)).filter(pl.col(measure).is_not_null())
        summary = _without_overflow(values.group_by(keys).agg(*_figures(measure)), values, keys, measure)
        parts.append(summary.select(*keys, pl.lit(measure).alias("measure"), *SUMMARY_COLUMNS))
    return pl.concat(parts).sort(*keys, "measure")


def _figures(name: str) -> tuple[pl.Expr, ...]:
    value = pl.col(name)
    return (
        value.min().alias("min"),
        value.max().alias("max"),
        value.mean().alias("mean"),
        pl.len().cast(pl.Int64).alias("count"),
        value.std(ddof=1).alias("stddev"),
    )


def _without_overflow(summary: pl.DataFrame, rows: pl.DataFrame, keys: Sequence[str], name: str) -> pl.DataFrame:
    """Recompute summaries that overflowed or lost digits, in units of the greatest value.

    Sums overflow with values near 1e308, squares of deviations near 1e154; below LEAST_DEVIATION they lose digits.
    """
    lost = (pl.col("stddev") < LEAST_DEVIATION) & (pl.col("min") != pl.col("max"))
    overflowed = summary.filter(
        ~pl.col("mean").is_finite() | ~pl.col("stddev").is_finite().fill_null(value=True) | lost
    )
    if not overflowed.height:
        return summary
    value, scale = pl.col(name), pl.max_horizontal(pl.col(name).min().abs(), pl.col(name).max().abs())
    again = (
        rows.join(overflowed.select(keys), on=list(keys), how="semi", nulls_equal=True)
        .with_columns(scale.over(keys).alias(SCALE))
        .group_by(keys)
        .agg(
            ((value / pl.col(SCALE)).mean() * pl.col(SCALE).first()).alias("mean"),
            ((value / pl.col(SCALE)).std(ddof=1) * pl.col(SCALE).first()).alias("stddev"),
        )
    )
    kept = summary.join(again, on=list(keys), how="anti", nulls_equal=True)
    changed = overflowed.drop("mean", "stddev").join(again, on=list(keys), nulls_equal=True)
    return pl.concat([kept, changed.select(summary.columns)])


def detached(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a copy that keeps no other memory alive: texts are views of the whole text that they were read from."""
    return pl.DataFrame(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))


def merge(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Merge the summaries of the parts of a whole exactly, without reading the rows again.

    Args:
        parts: summaries by `aggregate_files` with the same keys; at least one.

    Returns:
        the summaries of all readings together, up to rounding. Means and squared deviations are combined as Chan,
        Golub and LeVeque do, which does not lose digits where the mean is large compared with the deviation.
    """
    if len(parts) == 1:
        return parts[0]
    together = pl.concat(parts)
    keys = [name for name in together.columns if name not in SUMMARY_COLUMNS]
    count, mean = pl.col("count"), pl.col("mean")
    share = count / count.sum().over(keys)
    with_mean = together.with_columns((mean * share).sum().over(keys).alias(WHOLE_MEAN))
    degrees = pl.max_horizontal(count.sum() - 1, pl.lit(1))
    # Halve the deviations and scale them by the greatest: squares of values near 1e308 would overflow.
    within = pl.col("stddev").fill_null(0.0) / 2 * ((count - 1) / degrees).sqrt()
    between = (mean / 2 - pl.col(WHOLE_MEAN) / 2) * (count / degrees).sqrt()
    unit = pl.max_horizontal(within.max(), between.abs().max())
    squares = ((within / unit).pow(2) + (between / unit).pow(2)).sum()
    deviation = pl.when(unit > 0).then(squares.sqrt() * unit * 2).otherwise(0.0)
    return (
        with_mean.group_by(keys)
        .agg(
            pl.col("min").min(),
            pl.col("max").max(),
            pl.col(WHOLE_MEAN).first().alias("mean"),
            count.sum(),
            pl.when(count.sum() > 1).then(deviation).alias("stddev"),
        )
        .sort(keys)
    )
