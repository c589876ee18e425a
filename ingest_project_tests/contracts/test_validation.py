# ruff: noqa: D102 - the name of a check says what should hold
"""Every row has one outcome with all of its reasons, independent of the rest of the batch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Optional

import pandera.polars as pandera
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandera.api.polars.types import PolarsData
from pandera.config import config_context

from ingest_project.contracts.columns import TEXT_OF, Column
from ingest_project.contracts.validation import needs_whole_files, row_check, schema_of, validate
from ingest_project.core.errors import CheckFailedError, FileRejectedError
from ingest_project_tests.fuzz import examples

SEEN = datetime(2024, 5, 1, tzinfo=UTC)
ORDER: dict[str, Any] = {
    "file_index": 0,
    "order_id": "AB1",
    "pieces": 1,
    "amount": Decimal("9.99"),
    "currency": "EUR",
    "placed_at": SEEN,
    "paid": True,
    "weight": 0.5,
    "details": "{}",
}


@cache
def orders() -> pandera.DataFrameSchema:
    # Not at import: a pattern starts the threads of Polars, which a fork of the process does not have.
    return schema_of(
        [
            Column(name="order_id", type="text", required=True, pattern="[A-Z]{2}[0-9]+"),
            Column(name="pieces", type="integer", min=1, max=100),
            Column(name="amount", type="decimal(12,2)", min="0.01", required=True),
            Column(name="currency", type="text", allowed=["EUR", "USD"]),
            Column(name="placed_at", type="timestamp", min="2020-01-01T00:00:00Z"),
            Column(name="paid", type="boolean"),
            Column(name="weight", type="number", max=10.5),
            Column(name="details", type="json"),
        ]
    )


def table(*rows: dict[str, Any], schema: pandera.DataFrameSchema | None = None) -> pl.DataFrame:
    schema = schema or orders()
    types: dict[str, Any] = {"file_index": pl.UInt32, "line_number": pl.Int64}
    types |= {name: column.dtype.type for name, column in schema.columns.items()}
    types |= {name: pl.String for row in rows for name in row if name not in types}
    return pl.DataFrame([{"line_number": line, **row} for line, row in enumerate(rows, 2)], schema=types)


def reasons(*rows: dict[str, Any], schema: pandera.DataFrameSchema | None = None) -> list[list[str]]:
    schema = schema or orders()
    outcome = validate(table(*rows, schema=schema), schema)
    found = dict(zip(*(outcome.rejected[name].to_list() for name in ("line_number", "reasons")), strict=True))
    assert sorted([*found, *outcome.accepted["line_number"]]) == list(range(2, len(rows) + 2))
    return [found.get(line, []) for line in range(2, len(rows) + 2)]


def test_good_rows_keep_their_values_and_the_callers_columns() -> None:
    rows = table(ORDER, ORDER | {"pieces": None, "details": None}).with_columns(rescued_data=pl.lit("{}"))
    outcome = validate(rows, orders())
    assert outcome.accepted.equals(rows)
    assert outcome.rejected.schema == {
        "file_index": pl.UInt32,
        "line_number": pl.Int64,
        "rescued_data": pl.String,
        "reasons": pl.List(pl.String),
    }
    assert validate(rows.clear(), orders()).accepted.schema == rows.schema


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"order_id": None}, ["order_id_missing"]),
        ({"order_id": "AB1 "}, ["order_id_pattern"]),
        ({"order_id": "xAB1"}, ["order_id_pattern"]),
        ({"pieces": 0}, ["pieces_out_of_range"]),
        ({"pieces": 101}, ["pieces_out_of_range"]),
        ({"pieces": 100}, []),
        ({"amount": Decimal("0.00")}, ["amount_out_of_range"]),
        ({"amount": Decimal("0.01")}, []),
        ({"currency": "eur"}, ["currency_not_allowed"]),
        ({"placed_at": datetime(2019, 12, 31, tzinfo=UTC)}, ["placed_at_out_of_range"]),
        ({"weight": 10.500001}, ["weight_out_of_range"]),
        ({"amount": None, TEXT_OF("amount"): "9.999"}, ["amount_not_a_decimal"]),
        ({"pieces": None, TEXT_OF("pieces"): "1.0"}, ["pieces_not_an_integer"]),
        ({"weight": None, TEXT_OF("weight"): "heavy"}, ["weight_not_a_number"]),
        ({"paid": None, TEXT_OF("paid"): "perhaps"}, ["paid_not_a_boolean"]),
        ({"placed_at": None, TEXT_OF("placed_at"): "soon"}, ["placed_at_not_a_timestamp"]),
        ({"details": None, TEXT_OF("details"): "{"}, ["details_not_json"]),
        ({"order_id": None, TEXT_OF("order_id"): "\0"}, ["order_id_not_text"]),
        (
            {"order_id": None, "pieces": 0, "currency": "x"},
            ["currency_not_allowed", "order_id_missing", "pieces_out_of_range"],
        ),
    ],
)
def test_each_reason_names_what_is_wrong(changed: dict[str, Any], expected: list[str]) -> None:
    assert reasons(ORDER, ORDER | changed, ORDER) == [[], expected, []]


class Reading(pandera.DataFrameModel):
    """A user's model with every kind of check."""

    station: str = pandera.Field(str_startswith="S")
    number: int = pandera.Field(unique=True, nullable=True)
    price: Annotated[pl.Decimal, 12, 2] = pandera.Field(gt=Decimal(0))
    value: float = pandera.Field(default=1.0)
    note: Optional[str] = pandera.Field(str_length={"max_value": 5})  # noqa: UP045 - pandera's notation

    @pandera.check("value", element_wise=True)
    @classmethod
    def is_whole(cls, value: float) -> bool:
        return value.is_integer()

    @pandera.check("value", name="Not Above Mean")
    @classmethod
    def below_twice_the_mean(cls, data: PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(data.key) <= pl.col(data.key).mean() * 2)

    @pandera.dataframe_check
    @classmethod
    def enough_stations(cls, data: PolarsData) -> bool:
        return len(data.lazyframe.collect()["station"].unique()) > 1

    @pandera.dataframe_check
    @classmethod
    def nothing_negative(cls, data: PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(pl.Float64, pl.Int64) >= 0)

    class Config:
        """Options that must not lose a row, or refuse the engine's columns."""

        strict = True
        ordered = True
        coerce = True
        drop_invalid_rows = True
        unique = ["station", "value"]  # noqa: RUF012 - as pandera has it


READING = Reading.to_schema()
GOOD = [
    {"file_index": 1, "station": "S1", "number": 1, "price": Decimal(1), "value": 2.0},
    {"file_index": 1, "station": "S2", "number": 2, "price": Decimal(1), "value": 2.0},
]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"station": "x"}, ["station_pattern"]),
        ({"price": Decimal(0)}, ["price_out_of_range"]),
        ({"note": "too long"}, ["note_length"]),
        ({"note": None}, []),
        ({"value": 1.5}, ["value_is_whole"]),
        ({"value": 300.0}, ["value_not_above_mean"]),
        ({"number": -1}, ["nothing_negative"]),
    ],
)
def test_checks_of_a_users_model_have_their_own_names(changed: dict[str, Any], expected: list[str]) -> None:
    third = {"file_index": 1, "station": "S3", "number": 3, "price": Decimal(1), "value": 2.0}
    assert reasons(*GOOD, third | changed, schema=READING) == [[], [], expected]


def test_duplicates_are_all_rejected_but_only_within_their_file_and_never_for_missing_values() -> None:
    twin = GOOD[0] | {"value": 3.0}
    assert reasons(*GOOD, twin, schema=READING) == [["number_duplicate"], [], ["number_duplicate"]]
    other_file = [row | {"file_index": 2} for row in GOOD]
    assert reasons(*GOOD, *other_file, schema=READING) == [[]] * 4
    assert reasons(*GOOD, twin | {"number": None}, twin | {"number": None, "value": 4.0}, schema=READING) == [[]] * 4
    same = GOOD[0] | {"number": 9}
    assert reasons(*GOOD, same, schema=READING) == [["station_value_duplicate"], [], ["station_value_duplicate"]]


def test_a_result_for_the_whole_file_rejects_all_its_rows_and_no_other_files() -> None:
    lonely = {"file_index": 2, "station": "S1", "number": 1, "price": Decimal(1), "value": 2.0}
    assert reasons(GOOD[0], lonely, GOOD[1], schema=READING) == [[], ["enough_stations"], []]


def test_defaults_of_a_model_replace_missing_values_and_never_unreadable_ones() -> None:
    rows = [GOOD[0] | {"value": None}, GOOD[1] | {"value": None, TEXT_OF("value"): "high"}]
    outcome = validate(table(*rows, schema=READING), READING)
    assert outcome.accepted["value"].to_list() == [1.0]
    assert outcome.rejected["reasons"].to_list() == [["value_not_a_number"]]


def failing_models() -> Iterator[Any]:
    class Unknown(pandera.DataFrameModel):
        value: int

        @pandera.check("value")
        @classmethod
        def compared(cls, data: PolarsData) -> pl.LazyFrame:
            return data.lazyframe.select(pl.col("nothing") > 0)

    class Eager(pandera.DataFrameModel):
        value: int

        @pandera.dataframe_check
        @classmethod
        def compared(cls, data: PolarsData) -> Any:  # noqa: ANN401 - a mistake on purpose
            return data.lazyframe.collect()["value"] > 0

    class Short(pandera.DataFrameModel):
        value: int

        @pandera.dataframe_check
        @classmethod
        def compared(cls, data: PolarsData) -> pl.LazyFrame:
            return data.lazyframe.head(2).select(pl.col("value") > 0)

    class Numbers(pandera.DataFrameModel):
        value: int

        @pandera.dataframe_check
        @classmethod
        def compared(cls, data: PolarsData) -> pl.LazyFrame:
            return data.lazyframe.select("value")

    class Naive(pandera.DataFrameModel):
        value: Annotated[pl.Datetime, "us", "UTC"] = pandera.Field(ge=datetime(2024, 1, 1))  # noqa: DTZ001 - on purpose

    yield Unknown, "value_compared", "ColumnNotFoundError"
    yield Eager, "compared", "AttributeError"
    yield Short, "compared", "2 results for 3 rows"
    yield Numbers, "compared", "results of type Int64"
    yield Naive, "value_out_of_range", "Error"


@pytest.mark.parametrize(("model", "name", "said"), list(failing_models()))
def test_a_check_that_fails_itself_is_named_and_blames_no_row(
    model: type[pandera.DataFrameModel], name: str, said: str
) -> None:
    schema = model.to_schema()
    rows = table(*[{"value": SEEN if model.__name__ == "Naive" else 1}] * 3, schema=schema)
    with pytest.raises(CheckFailedError, match=f"The check '{name}' failed with .*{said}") as caught:
        validate(rows, schema)
    assert isinstance(caught.value, FileRejectedError)
    assert caught.value.rule == "check_failed"


def test_an_environment_variable_does_not_turn_validation_off() -> None:
    with config_context(validation_enabled=False):
        assert reasons(ORDER | {"pieces": 0}) == [["pieces_out_of_range"]]


def test_a_column_of_another_type_is_a_fault_of_the_caller() -> None:
    with pytest.raises(pl.exceptions.SchemaError, match="pieces"):
        validate(table(ORDER).with_columns(pl.col("pieces").cast(pl.Float64)), orders())


def test_schemas_that_compare_rows_need_whole_files() -> None:
    assert not needs_whole_files(orders())
    assert needs_whole_files(READING)
    small = pandera.DataFrameSchema({"a": pandera.Column(pl.Int64)}, checks=[row_check("small", pl.col("a") < 5)])
    assert not needs_whole_files(small)
    assert reasons({"a": 4}, {"a": 5}, {"a": None}, schema=small)[1:] == [["small"], ["a_missing"]]


class Parcel(pandera.DataFrameModel):
    """The model of the property test."""

    code: str = pandera.Field(str_matches="^[ab]+$", unique=True)
    weight: int = pandera.Field(ge=0, le=9, nullable=True)

    @pandera.check("weight")
    @classmethod
    def below_total(cls, data: PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(data.key) * 2 <= pl.col(data.key).sum())

    @pandera.dataframe_check
    @classmethod
    def light(cls, data: PolarsData) -> bool:
        return bool(data.lazyframe.collect()["weight"].sum() < 20)

    @pandera.dataframe_check
    @classmethod
    def one_of_both(cls, data: PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select((pl.col("code") != "a") | (pl.col("weight") != 1))


Parcels = st.lists(
    st.fixed_dictionaries(
        {
            "file_index": st.integers(0, 2),
            "code": st.sampled_from([None, "a", "b", "ab", "x", ""]),
            "weight": st.sampled_from([None, -1, 0, 1, 5, 9, 10]),
            TEXT_OF("weight"): st.sampled_from([None, "heavy"]),
        }
    ),
    max_size=12,
)


def plain_reasons(row: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Judge one row in Python, row by row."""
    same_file = [other for other in rows if other["file_index"] == row["file_index"]]
    code, weight = row["code"], row["weight"]
    total = sum(other["weight"] or 0 for other in same_file)
    if code is None:
        yield "code_missing"
    elif not re.fullmatch("[ab]+", code):
        yield "code_pattern"
    if code is not None and Counter(other["code"] for other in same_file)[code] > 1:
        yield "code_duplicate"
    if row[TEXT_OF("weight")] is not None:
        yield "weight_not_an_integer"
    if weight is not None and not 0 <= weight <= 9:
        yield "weight_out_of_range"
    if weight is not None and weight * 2 > total:
        yield "weight_below_total"
    if total >= 20:
        yield "light"
    if code == "a" and weight == 1:
        yield "one_of_both"


@given(Parcels)
@settings(max_examples=examples(100), deadline=None)
def test_verdicts_are_those_of_a_plain_evaluation_row_by_row(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row[TEXT_OF("weight")] is not None:
            row["weight"] = None
    expected = [sorted(plain_reasons(row, rows)) for row in rows]
    assert reasons(*rows, schema=Parcel.to_schema()) == expected


@given(st.lists(st.tuples(st.sampled_from([None, 0, 3, 7]), st.sampled_from([None, "x", "y"])), max_size=10))
@settings(max_examples=examples(50), deadline=None)
def test_rules_about_rows_are_named_by_their_reasons_and_hold_where_they_are_unknown(
    rows: list[tuple[int | None, str | None]],
) -> None:
    columns = {"a": pandera.Column(pl.Int64, nullable=True), "b": pandera.Column(pl.String, nullable=True)}
    rules = {"a_small": pl.col("a") < 5, "b_is_x": pl.col("b") == "x"}
    rules["one_of_both"] = pl.col("a").is_null() | pl.col("b").is_null()
    schema = pandera.DataFrameSchema(columns, checks=[row_check(name, rule) for name, rule in rules.items()])
    expected = [
        [
            *(["a_small"] if a == 7 else []),
            *(["b_is_x"] if b == "y" else []),
            *(["one_of_both"] if a is not None and b is not None else []),
        ]
        for a, b in rows
    ]
    assert reasons(*({"a": a, "b": b} for a, b in rows), schema=schema) == expected
