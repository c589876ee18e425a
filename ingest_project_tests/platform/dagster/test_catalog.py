"""Stored rows as inputs of downstream assets: each shape, one partition or many, tables and Delta."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from ingest_project.core.settings import Settings
from ingest_project.file_ingest.catalog import (
    AGGREGATED_METRICS,
    QUARANTINED_FILES,
    RAW_FILES,
    VALIDATED_SENSOR_DATA,
    files_partitions,
)
from ingest_project.file_ingest.definitions import stored_of
from ingest_project.platform.dagster.catalog import IO_MANAGER_KEY, StoredRowsIOManager
from ingest_project.readers.datasets import SHIPPED
from ingest_project.streams.crm.definitions import OPPORTUNITIES
from ingest_project.streams.crm.records import opportunities
from ingest_project.streams.declared import dagster_parts
from ingest_project_tests.journeys.system import System, readings

TABLES = {key: table for parts in dagster_parts(Settings()).values() for key, table in parts.stored.items()}


def loaded(
    system: System,
    upstream: dg.AssetKey,
    shape: Any,  # noqa: ANN401 - an annotation
    partitions: dg.PartitionsDefinition[str] | None = None,
    **run: Any,  # noqa: ANN401 - of dg.materialize
) -> Any:  # noqa: ANN401 - what was loaded
    """What an asset is given that takes another one as its argument."""
    got: list[Any] = []

    def compute(rows: object) -> None:
        got.append(rows)

    compute.__annotations__["rows"] = shape
    spec = dg.AssetSpec(upstream, partitions_def=partitions).with_io_manager_key(IO_MANAGER_KEY)
    below = dg.multi_asset(
        specs=[dg.AssetSpec("below", deps=[upstream], partitions_def=partitions if run else None)],
        ins={"rows": dg.AssetIn(upstream)},
        backfill_policy=dg.BackfillPolicy.single_run(),
    )(compute)
    resources = {
        IO_MANAGER_KEY: StoredRowsIOManager(
            stored_of(SHIPPED, system.services.settings) | TABLES, lambda: system.services
        )
    }
    dg.materialize([spec, below], instance=system.instance, resources=resources, selection=[below], **run)
    return got[0]


def ingested(system: System, *names: str) -> list[str]:
    """Keys of files that were ingested, each with two good rows and a bad one."""
    system.send_files(*(system.write(name, readings(3, device=name, bad=1)) for name in names))
    system.drive()
    return [system.file(name).file_key for name in names]


def test_the_rows_of_one_partition_come_in_the_shape_that_the_annotation_names(system: System) -> None:
    key, _ = ingested(system, "a.csv", "b.csv")
    shapes: list[Any] = [pl.DataFrame, pl.LazyFrame, pd.DataFrame, pa.Table, Any]
    for shape in shapes:
        rows = loaded(system, VALIDATED_SENSOR_DATA, shape, files_partitions, partition_key=key)
        assert isinstance(rows, pd.DataFrame if shape is Any else shape)
        frame = rows.collect() if isinstance(rows, pl.LazyFrame) else rows
        frame = frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(frame)
        assert frame["device_id"].to_list() == ["a.csv", "a.csv"]
        assert frame["value"].to_list() == [20.0, 21.0]
        assert frame["timestamp"].dtype.time_zone == "UTC"  # type: ignore[attr-defined]


def test_several_partitions_and_all_of_them_can_be_loaded(system: System) -> None:
    keys = ingested(system, "a.csv", "b.csv", "c.csv")
    first, second, _ = (key for key in system.instance.get_dynamic_partitions("files") if key in keys)
    span = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": second}
    two = loaded(system, AGGREGATED_METRICS, pl.DataFrame, files_partitions, tags=span)
    assert set(two["file_key"]) == {first, second}
    whole = loaded(system, QUARANTINED_FILES, pl.DataFrame, files_partitions)
    assert whole["reasons"].to_list() == [["value_out_of_range"]] * 3


def test_a_partition_without_rows_is_an_empty_frame_with_the_columns_of_the_table(system: System) -> None:
    system.send_files(system.write("bad.csv", "no,such,columns\n1,2,3\n"))
    system.drive()
    key = system.file("bad.csv").file_key
    rows = loaded(system, VALIDATED_SENSOR_DATA, pl.DataFrame, files_partitions, partition_key=key)
    assert rows.height == 0
    assert rows.schema["value"] == pl.Float64


def test_an_asset_without_rows_is_refused_by_name(system: System) -> None:
    (key,) = ingested(system, "a.csv")
    with pytest.raises(dg.Failure, match=r"raw_files has no rows to load. These have: .*validated_sensor_data"):
        loaded(system, RAW_FILES, pl.DataFrame, files_partitions, partition_key=key)


def test_a_shape_that_rows_cannot_have_is_refused_by_name(system: System) -> None:
    (key,) = ingested(system, "a.csv")
    with pytest.raises(TypeError, match=r"Rows cannot be given as builtins\.int"):
        loaded(system, VALIDATED_SENSOR_DATA, int, files_partitions, partition_key=key)


def test_money_stays_exact(system: System) -> None:
    _ = system.services.engine
    given: Mapping[str, Any] = {"kafka_topic": "t", "kafka_topic_id": "g", "kafka_partition": 0, "meta_data": {"a": 1}}
    amounts = [Decimal("0.1"), Decimal("12345678901234567890.123456"), None]
    with system.services.engine.begin() as connection:
        for number, amount in enumerate(amounts):
            row = {"event_id": str(number), "name": "n", "stage": "s", "amount": amount, "kafka_offset": number}
            moments = {"last_modified": sa.func.now(), "stored_at": sa.func.now(), "content_sha256": ""}
            connection.execute(sa.insert(opportunities).values(**row, **given, **moments))
    rows = loaded(system, OPPORTUNITIES, pl.DataFrame)
    assert rows.sort("event_id")["amount"].to_list() == amounts
    assert rows["meta_data"][0] == '{"a": 1}'
