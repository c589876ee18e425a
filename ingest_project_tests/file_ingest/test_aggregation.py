"""Summaries equal those of the statistics module, and summaries of parts merge into that of the whole."""

from __future__ import annotations

import math
import statistics
import weakref
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.file_ingest.aggregation import (
    SharedInstants,
    aggregate_files,
    detached,
    instants_by_file,
    merge,
    summarise,
)
from ingest_project_tests.fuzz import examples

MOMENT = datetime(2024, 1, 15, tzinfo=UTC)
Values = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=30)


def readings(values: list[float], device: str = "d") -> pl.DataFrame:
    return pl.DataFrame(
        {
            "file_key": "f",
            "timestamp": MOMENT,
            "device_id": [device] * len(values),
            "sensor_type": "t",
            "value": values,
        },
        schema_overrides={"value": pl.Float64},
    )


def aggregate(readings: pl.DataFrame) -> pl.DataFrame:
    return aggregate_files(readings)[0]


def test_one_row_per_device_and_type_sorted_by_key() -> None:
    table = pl.DataFrame(
        {"device_id": ["b", "a", "a", "a"], "sensor_type": ["t", "u", "t", "t"], "value": [1.0, 2.0, 3.0, 5.0]}
    ).with_columns(file_key=pl.lit("f"), timestamp=MOMENT)
    assert aggregate(table).drop("file_key").rows() == [
        ("a", "t", 3.0, 5.0, 4.0, 2, pytest.approx(math.sqrt(2))),
        ("a", "u", 2.0, 2.0, 2.0, 1, None),
        ("b", "t", 1.0, 1.0, 1.0, 1, None),
    ]


def test_files_are_kept_apart() -> None:
    table = pl.concat([readings([1.0, 3.0]).with_columns(file_key=pl.lit(key)) for key in "abc"])
    assert aggregate(table).select("file_key", "mean").rows() == [("a", 2.0), ("b", 2.0), ("c", 2.0)]


def test_no_readings_are_no_rows() -> None:
    assert aggregate(readings([])).height == 0


@given(Values)
@settings(max_examples=examples(100), deadline=None)
def test_a_summary_equals_that_of_the_statistics_module(values: list[float]) -> None:
    row = aggregate(readings(values)).row(0, named=True)
    scale = max(map(abs, values))
    assert (row["min"], row["max"], row["count"]) == (min(values), max(values), len(values))
    assert math.isclose(row["mean"], statistics.fmean(values), rel_tol=1e-12, abs_tol=1e-12 * scale + 1e-150)
    if len(values) == 1:
        assert row["stddev"] is None
    else:
        assert math.isclose(row["stddev"], statistics.stdev(values), rel_tol=1e-9, abs_tol=1e-12 * scale + 1e-150)


@given(st.lists(Values, min_size=1, max_size=6))
@settings(max_examples=examples(100), deadline=None)
def test_merged_summaries_of_parts_are_the_summary_of_the_whole(parts: list[list[float]]) -> None:
    whole = [value for part in parts for value in part]
    merged = merge([aggregate(readings(part)) for part in parts]).row(0, named=True)
    expected = aggregate(readings(whole)).row(0, named=True)
    scale = max(map(abs, whole))
    for name in ("min", "max", "count"):
        assert merged[name] == expected[name]
    assert math.isclose(merged["mean"], expected["mean"], rel_tol=1e-9, abs_tol=1e-12 * scale + 1e-150)
    if len(whole) == 1:
        assert merged["stddev"] is None
    else:
        assert math.isclose(merged["stddev"], expected["stddev"], rel_tol=1e-6, abs_tol=1e-10 * scale + 1e-150)


def test_merging_keeps_the_digits_of_small_deviations_from_a_large_mean() -> None:
    parts = [[1e9 + 1, 1e9 + 2], [1e9 + 3, 1e9 + 4, 1e9 + 5]]
    merged = merge([aggregate(readings(part)) for part in parts]).row(0, named=True)
    assert merged["stddev"] == pytest.approx(statistics.stdev([1, 2, 3, 4, 5]), rel=1e-6)


def test_devices_that_only_one_part_has_are_kept() -> None:
    merged = merge([aggregate(readings([1.0], "a")), aggregate(readings([2.0, 4.0], "b"))])
    assert merged.select("device_id", "mean", "count").rows() == [("a", 1.0, 1), ("b", 3.0, 2)]
    assert merged.schema == aggregate(readings([1.0])).schema


def test_huge_readings_do_not_overflow() -> None:
    values = [1e308, 1.2e308, -1e308]
    row = aggregate(readings(values)).row(0, named=True)
    assert row["mean"] == pytest.approx(4e307)
    assert row["stddev"] == pytest.approx(statistics.stdev(value / 1e308 for value in values) * 1e308)
    merged = merge([aggregate(readings(values[:1])), aggregate(readings(values[1:]))]).row(0, named=True)
    assert merged == pytest.approx(row)
    assert merge([aggregate(readings([0.0])), aggregate(readings([0.0]))])["stddev"].to_list() == [0.0]


def test_tiny_deviations_keep_their_digits() -> None:
    for values in ([1e-200, 3e-200], [1e-160, 3e-160, 4e-160], [1.5, 1.5]):
        scale = values[0]
        expected = statistics.stdev(value / scale for value in values) * scale
        assert aggregate(readings(values)).row(0, named=True)["stddev"] == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_group_may_be_called_like_what_is_computed() -> None:
    keys = ["scale", "whole_mean"]
    table = pl.DataFrame({"scale": ["a", "a"], "whole_mean": ["b", "b"], "v": [1e308, 1.2e308]})
    parts = [summarise(table[:1], keys, ["v"]), summarise(table, keys, ["v"])]
    assert parts[1]["mean"].to_list() == [pytest.approx(1.1e308)]
    assert merge(parts)["count"].to_list() == [3]


def test_a_summary_that_stands_alone_keeps_nothing_of_the_text_it_came_from() -> None:
    text = np.frombuffer(b"a device with a long name", np.uint8).copy()
    kept = weakref.ref(text)
    block = pa.py_buffer(text)
    offsets = pa.py_buffer(np.array([0, len(text)], np.int64))
    device = pa.LargeStringArray.from_buffers(1, offsets, block)
    readings = pl.DataFrame({"device_id": device, "sensor_type": ["t"], "value": [1.0]}).with_columns(
        file_key=pl.lit("f"), timestamp=MOMENT
    )
    summary = aggregate(readings)
    alone = detached(summary)
    assert alone.equals(summary)
    del text, block, device, readings
    assert kept() is not None, "the summary itself is a view"
    del summary
    assert kept() is None
    assert alone["device_id"].to_list() == ["a device with a long name"]


def test_readings_of_one_device_and_type_at_one_instant_are_counted_with_examples() -> None:
    moment = MOMENT
    rows = [("a", "d1", "t", moment, 1.0)] * 24 + [("a", "d1", "u", moment, 1.0), ("a", "d2", "t", moment, 1.0)]
    rows += [("b", "d1", "t", moment + timedelta(hours=hour), 1.0) for hour in (0, 2, 1, 2)]
    rows += [("c", "d1", "t", moment + timedelta(hours=hour), 1.0) for hour in (3, 2, 1)]
    frame = pl.DataFrame(rows, schema=["file_key", "device_id", "sensor_type", "timestamp", "value"], orient="row")
    summaries, shared = aggregate_files(frame)
    assert [row[:3] + row[6:] for row in summaries.drop("stddev").rows()] == [
        ("a", "d1", "t", 24),
        ("a", "d1", "u", 1),
        ("a", "d2", "t", 1),
        ("b", "d1", "t", 4),
        ("c", "d1", "t", 3),
    ]
    assert instants_by_file(shared) == {
        "a": SharedInstants(24, 24, ("24 readings of t of d1 at 2024-01-15T00:00:00.000000Z",)),
        "b": SharedInstants(2, 2, ("2 readings of t of d1 at 2024-01-15T02:00:00.000000Z",)),
    }
    assert instants_by_file(pl.concat([shared, shared]))["a"][:2] == (48, 48)
    assert instants_by_file(aggregate_files(frame.clear())[1]) == {}
