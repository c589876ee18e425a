"""Declared columns: sound ones have a type everywhere, unsound ones are named, and a user's model gives the same."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Optional

import pandera.polars as pandera
import polars as pl
import pyarrow as pa
import pytest
from pydantic import ValidationError

from ingest_project.contracts.columns import TYPES, Column, number_fault
from ingest_project.contracts.validation import columns_of, schema_of
from ingest_project.core.errors import SettingsError
from ingest_project.core.yaml_models import mistakes
from ingest_project.streams.values import arrow_type


def refused(**declared: Any) -> str:  # noqa: ANN401 - whatever a user may write
    with pytest.raises(ValidationError) as caught:
        Column(**({"name": "amount", "type": "text"} | declared))
    return mistakes(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1.005", "too_many_decimals"),
        ("1e-3", "too_many_decimals"),
        ("12345678901.5", "out_of_range"),
        ("1e400", "out_of_range"),
        # They fit: it is their notation that their reader does not take.
        (".5", None),
        ("+1", None),
        ("1e3", None),
        ("1.500", None),
        ("0.000", None),
        ("1_000", None),
    ],
)
def test_a_number_is_said_not_to_fit_only_where_it_does_not(text: str, fault: str | None) -> None:
    assert number_fault(text, Column(name="amount", type="decimal(12,2)")) == fault


@pytest.mark.parametrize(
    ("written", "in_polars", "in_arrow"),
    [
        ("text", pl.String(), pa.string()),
        ("integer", pl.Int64(), pa.int64()),
        ("number", pl.Float64(), pa.float64()),
        ("decimal(12, 2)", pl.Decimal(12, 2), pa.decimal128(12, 2)),
        ("boolean", pl.Boolean(), pa.bool_()),
        ("date", pl.Date(), pa.date32()),
        ("timestamp", pl.Datetime("us", "UTC"), pa.timestamp("us", "UTC")),
        ("json", pl.String(), pa.string()),
    ],
)
def test_every_type_has_its_counterparts(written: str, in_polars: pl.DataType, in_arrow: pa.DataType) -> None:
    column = Column(name="amount", type=written)
    assert (column.polars_type, arrow_type(column)) == (in_polars, in_arrow)
    assert column.type == written.replace(" ", "")
    assert schema_of([column]).columns["amount"].dtype.type == in_polars


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"name": "Amount"}, "name: "),
        ({"name": "a" * 64}, "name: "),
        ({"name": "file_key"}, "'file_key' is a column of the engine's own"),
        ({"name": "kafka_offset"}, "'kafka_offset' is a column of the engine's own"),
        ({"type": "string"}, "'string' is no type; types are text, integer"),
        ({"type": "decimal(39,2)"}, "needs 1 to 38 digits"),
        ({"type": "decimal(2,3)"}, "no more decimal places than digits"),
        ({"min": 1}, "column amount: min and max do not apply to text"),
        ({"type": "integer", "min": 2, "max": 1}, "column amount: min is greater than max"),
        ({"type": "integer", "min": 0.5}, "column amount: 0.5 is not of type integer"),
        ({"type": "integer", "max": 2**63}, "is not of type integer"),
        ({"type": "number", "max": float("nan")}, "nan is not of type number"),
        ({"type": "decimal(9,2)", "min": "low"}, "'low' is not of type decimal(9,2)"),
        ({"type": "date", "min": datetime(2024, 1, 1, tzinfo=UTC)}, "write it like 2024-01-31"),
        ({"type": "timestamp", "min": "2024-01-01T00:00:00"}, "write it with its offset"),
        ({"type": "number", "pattern": "x"}, "column amount: pattern does not apply to number"),
        ({"pattern": "(?=x)"}, "look-ahead and look-behind, is not supported"),
        ({"pattern": "("}, "not a regular expression of linear time: unclosed group"),
        ({"allowed": []}, "allowed needs at least one value"),
        ({"allowed": [True]}, "True is not of type text: put it in quotes"),
        ({"allowed": [None]}, "None is not of type text"),
        ({"type": "boolean", "allowed": [True]}, "of a type other than boolean and json"),
        ({"units": "C"}, "units is unknown, did you mean unit?"),
    ],
)
def test_a_mistake_is_named_with_its_column(declared: dict[str, object], said: str) -> None:
    assert said in refused(**declared)


def test_bounds_keep_the_digits_they_are_written_with() -> None:
    amount = Column(name="amount", type="decimal(12,2)", min=0.1, max="1000.00")
    assert (amount.value_of(amount.min), amount.value_of(amount.max)) == (Decimal("0.1"), Decimal("1000.00"))
    seen = Column(name="seen", type="timestamp", min="2024-01-01T01:00:00+01:00")
    assert seen.value_of(seen.min) == datetime(2024, 1, 1, tzinfo=UTC)


class Observation(pandera.DataFrameModel):
    """A model as users write it."""

    station: str = pandera.Field(str_matches="[A-Z]+$", description="Station code")
    observed_at: Annotated[pl.Datetime, "us", "UTC"]
    day: date
    temperature: float = pandera.Field(ge=-90, le=60, nullable=True, metadata={"unit": "°C"})
    count: int = pandera.Field(default=0)
    price: Annotated[pl.Decimal, 12, 2]
    sunny: Optional[bool]  # noqa: UP045 - a column that may be absent, as pandera writes it
    details: str = pandera.Field(metadata={"type": "json"})


def test_a_users_model_gives_its_columns() -> None:
    columns = {column.name: column for column in columns_of(Observation)}
    assert [column.type for column in columns.values()] == [
        *("text", "timestamp", "date", "number", "integer", "decimal(12,2)", "boolean", "json")
    ]
    assert {name for name, column in columns.items() if not column.required} == {"temperature", "count", "sunny"}
    assert columns["temperature"].unit == "°C"
    assert columns["station"].description == "Station code"


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (datetime, "a time needs its zone and unit. Supported are str, int"),
        (Annotated[pl.Datetime, "ms", "UTC"], "a time needs its zone and unit"),
        (pl.Int32, "Int32 is not supported. Supported are"),
        (pl.List(pl.Int64), "is not supported"),
        (Any, "is no usable pandera Polars model"),
    ],
)
def test_a_column_of_an_unsupported_type_is_named(annotation: object, said: str) -> None:
    model = type("Weather", (pandera.DataFrameModel,), {"__annotations__": {"seen": annotation}})
    with pytest.raises(SettingsError, match="Weather") as caught:
        columns_of(model)
    assert said in str(caught.value)


def test_columns_without_a_name_of_their_own_are_refused() -> None:
    class Wide(pandera.DataFrameModel):
        readings: float = pandera.Field(alias="reading_.+", regex=True)

    class Loud(pandera.DataFrameModel):
        value: float = pandera.Field(alias="Value")

    with pytest.raises(SettingsError, match="declare each column by its name"):
        columns_of(Wide)
    with pytest.raises(SettingsError, match=r"Loud\.Value: name: .Value. is no name"):
        columns_of(Loud)
    with pytest.raises(SettingsError, match="has no columns"):
        columns_of(pandera.DataFrameModel)


def test_every_named_type_can_be_declared() -> None:
    assert [Column(name="a", type=name).kind for name in TYPES] == list(TYPES)
