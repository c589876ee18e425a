"""The view over all files equals the statistics of all readings together."""

from __future__ import annotations

import math
import statistics

import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest_project.file_ingest.tables import aggregated_metrics
from ingest_project.file_ingest.warehouse.sql import SqlWarehouse
from ingest_project.platform.database import open_engine, writing
from ingest_project_tests.file_ingest.stored_metrics import device_metrics
from ingest_project_tests.file_ingest.warehouse.samples import metrics, readings
from ingest_project_tests.fuzz import examples

# A large common offset is what breaks a deviation made from sums of squares.
OFFSETS = st.sampled_from([0.0, 1_000_000.0, -273.15])
FILE = st.lists(st.floats(-1_000, 1_000, allow_subnormal=False), min_size=1, max_size=12)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(FILE, min_size=1, max_size=5), offset=OFFSETS)
def test_merged_metrics_equal_the_figures_of_all_readings(
    warehouse: SqlWarehouse, database_url: str, files: list[list[float]], offset: float
) -> None:
    engine = open_engine(database_url)
    with writing(engine) as connection:
        connection.execute(sa.delete(aggregated_metrics))
    engine.dispose()
    frames = [readings(f"f{n}", [v + offset for v in values]) for n, values in enumerate(files)]
    with warehouse.transaction() as transaction:
        transaction.put_metrics(metrics(pl.concat(frames)))
    everything = [value + offset for values in files for value in values]

    (merged,) = device_metrics(warehouse)

    assert (merged.min, merged.max, merged.count) == (min(everything), max(everything), len(everything))
    assert merged.mean == pytest.approx(statistics.fmean(everything), rel=1e-12, abs=1e-9)
    if len(everything) == 1:
        assert merged.stddev is None
    else:
        assert merged.stddev is not None
        assert math.isclose(merged.stddev, statistics.stdev(everything), rel_tol=1e-7, abs_tol=1e-7)


@pytest.mark.parametrize(
    ("values", "mean", "stddev"),
    [
        ((0.0, 7.98e-272), 0.0, 0.0),
        ((5e-324, 5e-324), 0.0, 0.0),
        ((0.0, 1e200), 5e199, None),
        ((-1.7e308, 1.7e308), None, None),
    ],
)
def test_an_extreme_reading_leaves_the_view_readable(
    warehouse: SqlWarehouse, values: tuple[float, float], mean: float | None, stddev: float | None
) -> None:
    frames = [readings(f"f{n}", [value]) for n, value in enumerate(values)]
    with warehouse.transaction() as transaction:
        transaction.put_metrics(metrics(pl.concat([*frames, readings("a", [1, 3], device="ordinary")])))
    ordinary, extreme = sorted(device_metrics(warehouse), key=lambda found: found.device_id != "ordinary")
    assert (extreme.min, extreme.max, extreme.mean, extreme.stddev) == (*values, mean, stddev)
    assert (ordinary.mean, ordinary.count) == (2.0, 2)


def test_each_device_and_type_is_merged_separately(warehouse: SqlWarehouse) -> None:
    rows = pl.concat(
        [
            readings("a", [1, 3], device="d1"),
            readings("b", [5], device="d1"),
            readings("b", [7], device="d2"),
            readings("b", [9], device="d1", kind="humidity"),
        ]
    )
    with warehouse.transaction() as transaction:
        transaction.put_metrics(metrics(rows))
    found = {(m.device_id, m.sensor_type): (m.count, m.mean, m.stddev) for m in device_metrics(warehouse)}
    assert found == {
        ("d1", "temperature"): (3, 3.0, 2.0),
        ("d1", "humidity"): (1, 9.0, None),
        ("d2", "temperature"): (1, 7.0, None),
    }
