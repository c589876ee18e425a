"""Columns that a Delta table accepts: the same ones, fewer or more, but never another type."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ingest_project.contracts.columns import Column
from ingest_project.core.errors import SchemaConflictError
from ingest_project.platform.delta.schema import check_only_adds, declared_type, delta_schema, ready_to_append
from ingest_project.streams.values import arrow_type
from ingest_project_tests.platform.delta.delta_log_reader import live_files, rows_of
from ingest_project_tests.platform.delta.test_append import store_at


def rows(*values: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(values))


def read(folder: Path) -> list[dict[str, Any]]:
    return sorted(rows_of(folder).to_pylist(), key=lambda row: row["n"])


def test_a_new_column_is_added_and_older_rows_have_null_there(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.append(rows({"n": 1}), app_id="a", version=1)
    store.append(rows({"n": 2, "extra": "x"}), app_id="a", version=2)
    assert read(tmp_path) == [{"n": 1, "extra": None}, {"n": 2, "extra": "x"}]


def test_a_missing_column_is_null_and_the_order_of_columns_is_free(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.append(rows({"n": 1, "a": "x", "b": [1]}), app_id="a", version=1)
    store.append(rows({"b": [2], "n": 2}), app_id="a", version=2)
    assert read(tmp_path) == [{"n": 1, "a": "x", "b": [1]}, {"n": 2, "a": None, "b": [2]}]


def test_a_new_field_inside_of_a_struct_is_added(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.append(rows({"n": 1, "client": {"agent": "x"}, "items": [{"p": 1}]}), app_id="a", version=1)
    store.append(rows({"n": 2, "client": {"agent": "y", "language": "en"}}), app_id="a", version=2)
    store.append(rows({"n": 3, "client": {"agent": "z"}}), app_id="a", version=3)
    table = store.opened()
    assert table is not None
    found = {row["n"]: row["client"] for row in pa.table(table.scan().read_all()).to_pylist()}
    assert found == {
        1: {"agent": "x", "language": None},
        2: {"agent": "y", "language": "en"},
        3: {"agent": "z", "language": None},
    }


def test_a_column_of_nothing_but_null_waits_for_its_type(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.append(rows({"n": 1, "later": None}), app_id="a", version=1)
    store.append(rows({"n": 2, "later": 1.5}), app_id="a", version=2)
    store.append(rows({"n": 3, "later": None}), app_id="a", version=3)
    assert [row["later"] for row in read(tmp_path)] == [None, 1.5, None]


def test_columns_that_may_not_be_null_are_kept_as_ones_that_may(tmp_path: Path) -> None:
    strict = pa.schema([pa.field("n", pa.int64(), nullable=False)])
    store = store_at(tmp_path)
    store.append(pa.table({"n": [1]}, schema=strict), app_id="a", version=1)
    store.append(rows({"n": 2, "m": 1}), app_id="a", version=2)
    store.append(rows({"m": 1}), app_id="a", version=3)
    assert rows_of(tmp_path).num_rows == 3


@pytest.mark.parametrize(
    ("column", "values", "path"),
    [
        ("n", pa.array(["one"]), "n"),
        ("n", pa.array([1.5]), "n"),
        ("n", pa.array([1], pa.int32()), "n"),
        ("s", pa.array([{"x": "text"}]), "s.x"),
        ("s", pa.array(["text"]), "s"),
        ("l", pa.array([[{"x": "text"}]]), "l[].x"),
        ("m", pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())), "m.value"),
        ("N", pa.array([1]), "N"),
        ("new", pa.array([1], pa.uint8()), "new"),
        ("new", pa.array([datetime(2026, 1, 1)]), "new"),  # noqa: DTZ001 - the case
        ("new", pa.array([[None]]), "new[]"),
        ("new", pa.array([{}], pa.struct([])), "new"),
        ("new", pa.array([1], pa.duration("us")), "new"),
        ("new", pa.array([{"a": 1, "A": 2}]), "new.A"),
        ("two words", pa.array([1]), "two words"),
    ],
)
def test_a_batch_that_does_not_fit_the_schema_is_refused_with_the_column_and_not_written(
    tmp_path: Path, column: str, values: pa.Array, path: str
) -> None:
    schema = pa.schema(
        {
            "n": pa.int64(),
            "s": pa.struct({"x": pa.int64()}),
            "l": pa.list_(pa.struct({"x": pa.int64()})),
            "m": pa.map_(pa.string(), pa.int64()),
        }
    )
    store = store_at(tmp_path)
    store.append(schema.empty_table(), app_id="a", version=1)
    with pytest.raises(SchemaConflictError) as caught:
        store.append(pa.table({column: values}), app_id="a", version=2)
    assert caught.value.column == path
    assert store.committed_version("a") == 1
    assert live_files(tmp_path) == {}


@pytest.mark.parametrize("name", ["text", "integer", "number", "decimal(12,2)", "boolean", "date", "timestamp"])
def test_types_are_named_in_the_words_of_a_declaration(name: str) -> None:
    assert declared_type(arrow_type(Column(name="x", type=name))) == name


def test_types_that_no_declaration_has_are_named_in_like_words() -> None:
    held = pa.struct({"a": pa.list_(pa.int32()), "b": pa.map_(pa.string(), pa.float32()), "c": pa.timestamp("us")})
    words = "a list of integer of 32 bits, b map of text to number of 32 bits, c timestamp without a time zone"
    assert declared_type(held) == f"record of {words}"
    with pytest.raises(
        SchemaConflictError, match=r"the table holds record of a integer, the new rows decimal\(12,2\)\."
    ):
        check_only_adds(
            pa.schema({"x": pa.struct({"a": pa.int64()})}), pa.schema({"x": pa.decimal128(12, 2)}), "orders"
        )


def test_times_of_any_zone_and_unit_become_utc(tmp_path: Path) -> None:
    at = datetime(2026, 1, 15, 10, tzinfo=UTC)
    times = pa.array([at], pa.timestamp("us", "UTC"))
    data = pa.table(
        {
            "n": [1],
            "berlin": times.cast(pa.timestamp("ns", "Europe/Berlin")),
            "nested": pa.array([[at]], pa.list_(pa.timestamp("ms", "UTC"))),
        }
    )
    store_at(tmp_path).append(data, app_id="a", version=1)
    (row,) = read(tmp_path)
    assert row["berlin"].astimezone(UTC) == row["nested"][0].astimezone(UTC) == at


def test_data_that_fit_are_not_copied() -> None:
    data = pa.table({"n": range(1_000), "text": ["x"] * 1_000, "all_null": pa.nulls(1_000)})
    before = pa.total_allocated_bytes()
    ready = ready_to_append(data, delta_schema(data.schema, "table"))
    assert pa.total_allocated_bytes() == before
    assert ready.column_names == ["n", "text"]
