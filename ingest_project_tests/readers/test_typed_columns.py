"""Each text of a declared column is its exact value, or kept as text with a reason; nothing in between."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.contracts.columns import TEXT_OF, Column
from ingest_project.contracts.validation import schema_of, validate
from ingest_project.readers.casting import KIND_OF
from ingest_project.readers.profile_parts import NumberLayout, TimestampLayout
from ingest_project.readers.profiles import ReaderProfile, load_profiles
from ingest_project.readers.typed_columns import cast_columns
from ingest_project_tests.fuzz import examples

CANONICAL = load_profiles()["canonical"]
UNREADABLE = object()


@cache
def german() -> ReaderProfile:
    """Not a constant: to read a profile's formats starts threads, and the processes of tests are forks."""
    return CANONICAL.model_copy(
        update={
            "numbers": NumberLayout(decimal=",", thousands="."),
            "timestamps": TimestampLayout(formats=("%d.%m.%Y", "%d.%m.%Y %H:%M"), zone="Europe/Berlin"),
        }
    )


def value(
    text: str | None,
    declared: str,
    profile: ReaderProfile = CANONICAL,
    kind: str | None = None,
    unit: str | None = None,
) -> object:
    """Cast one text between two missing ones; UNREADABLE if it is kept as text.

    A kind that is an empty text is what a file of text has beside others in one batch.
    """
    rows = pl.DataFrame({"line_number": [2, 3, 4], "a": [None, text, None]}, schema_overrides={"a": pl.String})
    if kind is not None:
        rows = rows.with_columns(pl.Series(KIND_OF("a"), ["s", kind or None, "s"]))
    column = Column(name="a", type=declared, unit=unit)
    cast = cast_columns(rows, [column], profile)
    assert cast.schema["a"] == column.polars_type
    assert cast.columns[:2] == ["line_number", "a"]
    assert cast["a"][0] is cast["a"][2] is None
    if TEXT_OF("a") not in cast.columns:
        assert cast["a"][1] is not None or text is None
        return cast["a"][1]
    assert cast[TEXT_OF("a")].to_list() == [None, text, None]
    assert cast["a"][1] is None
    return UNREADABLE


@pytest.mark.parametrize(
    ("declared", "text", "expected"),
    [
        ("text", "a  b", "a  b"),
        ("text", "a\0b", UNREADABLE),
        ("integer", "007", 7),
        ("integer", "+5", 5),
        ("integer", "-9223372036854775808", -(2**63)),
        ("integer", "9223372036854775808", UNREADABLE),
        ("integer", "1.0", UNREADABLE),
        ("integer", "1e3", UNREADABLE),
        ("integer", "1_000", UNREADABLE),
        ("integer", "٣", UNREADABLE),
        ("integer", "", UNREADABLE),
        ("number", "-1.5e3", -1500.0),
        ("number", "nan", UNREADABLE),
        ("number", "-Infinity", UNREADABLE),
        ("number", "1e999", UNREADABLE),
        ("number", "1e-400", UNREADABLE),
        ("number", "12 C", UNREADABLE),
        ("decimal(12,2)", "0.10", Decimal("0.10")),
        ("decimal(12,2)", "-.5", Decimal("-0.50")),
        ("decimal(12,2)", "5.", Decimal("5.00")),
        ("decimal(12,2)", "1.50000000000000000000000000000000000000000", Decimal("1.50")),
        ("decimal(12,2)", "0000000000000000000000000000000000000000001", Decimal(1)),
        ("decimal(12,2)", "1.005", UNREADABLE),
        ("decimal(12,2)", "9999999999.99", Decimal("9999999999.99")),
        ("decimal(12,2)", "10000000000", UNREADABLE),
        ("decimal(12,2)", "1.5E+3", Decimal(1500)),
        ("decimal(12,2)", "15e-1", Decimal("1.5")),
        ("decimal(12,2)", "1e-3", UNREADABLE),
        ("decimal(12,2)", "1e999", UNREADABLE),
        ("decimal(12,2)", "1e999999999", UNREADABLE),
        ("decimal(12,2)", ".", UNREADABLE),
        ("decimal(12,2)", "1,5", UNREADABLE),
        ("decimal(12,2)", "NaN", UNREADABLE),
        ("decimal(38,0)", "9" * 38, Decimal("9" * 38)),
        ("decimal(38,38)", "." + "1" * 38, Decimal("." + "1" * 38)),
        ("boolean", "TRUE", True),
        ("boolean", "Off", False),
        ("boolean", "yes", True),
        ("boolean", "0", False),
        ("boolean", "2", UNREADABLE),
        ("boolean", "y", UNREADABLE),
        ("date", "2024-02-29", date(2024, 2, 29)),
        ("date", "2024-02-29 00:00:00", date(2024, 2, 29)),
        ("date", "2024-02-29T00:00:01", UNREADABLE),
        ("date", "2024-02-29T00:00:00Z", UNREADABLE),
        ("date", "2023-02-29", UNREADABLE),
        ("date", "2024-2-9", UNREADABLE),
        ("date", "0000-01-01", UNREADABLE),
        ("timestamp", "2024-05-01T02:00:00.123456+02:00", datetime(2024, 5, 1, 0, 0, 0, 123456, UTC)),
        ("timestamp", "9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
        ("timestamp", "9999-12-31T23:59:59.999999-00:01", UNREADABLE),
        ("timestamp", "2024-05-01", UNREADABLE),
        ("json", '{"a": [1, 2.5, "x", null]}', '{"a": [1, 2.5, "x", null]}'),
        ("json", "[" * 100 + "]" * 100, "[" * 100 + "]" * 100),
        ("json", "[" * 101 + "]" * 101, UNREADABLE),
        ("json", "[" * 100_000, UNREADABLE),
        ("json", "[" * 5_000 + "]" * 5_000, UNREADABLE),
        ("json", "[" + ",".join(["[]"] * 200) + "]", "[" + ",".join(["[]"] * 200) + "]"),
        ("json", "{'a': 1}", UNREADABLE),
        ("json", "NaN", UNREADABLE),
        ("json", "1e400", UNREADABLE),
        ("json", "1e-20000", UNREADABLE),
        ("json", '"\\u0000"', UNREADABLE),
        ("json", '"\\\\u0000"', '"\\\\u0000"'),
        ("json", '"\\ud800"', UNREADABLE),
    ],
)
def test_text_is_its_exact_value_or_unreadable(declared: str, text: str, expected: object) -> None:
    assert value(text, declared) == expected
    assert value(text, declared, kind="") == expected


@pytest.mark.parametrize(
    ("declared", "text", "expected"),
    [
        ("integer", "1.234.567", 1_234_567),
        ("integer", "1234", 1234),
        ("integer", "12.34", UNREADABLE),
        ("integer", "1,0", UNREADABLE),
        ("number", "1.234,5", 1234.5),
        ("decimal(12,2)", "-1.234,50", Decimal("-1234.50")),
        ("decimal(12,2)", "1.23,4", UNREADABLE),
        ("decimal(12,2)", "0.123,4", UNREADABLE),
        ("date", "01.02.2024", date(2024, 2, 1)),
        ("date", "01.02.2024 00:00", date(2024, 2, 1)),
        ("date", "01.02.2024 10:00", UNREADABLE),
        ("date", "2024-02-01", UNREADABLE),
        ("timestamp", "01.02.2024 10:00", datetime(2024, 2, 1, 9, tzinfo=UTC)),
    ],
)
def test_the_notation_is_the_profiles(declared: str, text: str, expected: object) -> None:
    assert value(text, declared, german()) == expected
    assert value(text, declared, german(), kind="") == expected


@pytest.mark.parametrize(
    ("declared", "kind", "text", "expected"),
    [
        ("integer", "n", "42", 42),
        ("integer", "n", "4.5", UNREADABLE),
        ("integer", "n", "5.0", 5),
        ("integer", "p", "0.45", UNREADABLE),
        ("integer", "b", "true", UNREADABLE),
        ("number", "n", "1.5", 1.5),
        ("decimal(12,2)", "n", "1.5", Decimal("1.50")),
        ("decimal(12,2)", "n", "0.30000000000000004", UNREADABLE),
        ("boolean", "b", "true", True),
        ("boolean", "n", "1", True),
        ("date", "d", "2024-05-01T00:00:00", date(2024, 5, 1)),
        ("date", "d", "2024-05-01T10:00:00", UNREADABLE),
        ("date", "n", "45413", UNREADABLE),
        ("timestamp", "d", "2024-05-01T10:00:00", datetime(2024, 5, 1, 8, tzinfo=UTC)),
        ("text", "n", "42", "42"),
        ("text", "e", "#N/A", UNREADABLE),
        ("text", "f", "=A1", UNREADABLE),
    ],
)
def test_cells_of_a_workbook_need_no_notation(declared: str, kind: str, text: str, expected: object) -> None:
    assert value(text, declared, german(), kind) == expected


def test_percentages_are_scaled_for_a_column_in_per_cent() -> None:
    assert value("0.07", "number", kind="p", unit="%") == 7.0
    assert value("0.07", "decimal(5,2)", kind="p", unit="percent") == Decimal(7)
    assert value("0.45", "integer", kind="p", unit="%") == 45
    assert value("7.0", "integer", kind="p", unit="%") == 700
    assert value("7.0", "integer", kind="p") == 7
    assert value("0.07", "number", kind="p") == 0.07


def test_an_absent_column_is_missing_in_every_row_and_no_kind_of_cells_is_left() -> None:
    rows = pl.DataFrame({"a": ["1"], KIND_OF("a"): ["n"], "other": ["x"]})
    columns = [Column(name="a", type="integer"), Column(name="b", type="decimal(5,2)", required=True)]
    cast = cast_columns(rows, columns, CANONICAL)
    assert cast.schema == {"a": pl.Int64, "other": pl.String, "b": pl.Decimal(5, 2)}
    assert validate(cast, schema_of(columns)).rejected["reasons"].to_list() == [["b_missing"]]
    assert cast_columns(rows.clear(), columns, CANONICAL).schema == cast.schema


def test_a_declared_column_may_have_the_name_of_the_kinds_of_another() -> None:
    columns = [Column(name="a", type="integer"), Column(name="a_kind", type="text")]
    rows = pl.DataFrame({"a": ["1"], "a_kind": ["n"]})
    assert cast_columns(rows, columns, CANONICAL).row(0) == (1, "n")


def test_unreadable_values_become_reasons_and_readable_ones_do_not() -> None:
    columns = [Column(name="a", type="integer", required=True), Column(name="b", type="json")]
    rows = pl.DataFrame({"a": ["1", "x", None, "2"], "b": ["{", "{}", None, None]})
    outcome = validate(cast_columns(rows, columns, CANONICAL), schema_of(columns))
    assert outcome.rejected["reasons"].to_list() == [["b_not_json"], ["a_not_an_integer"], ["a_missing"]]
    assert outcome.accepted.rows() == [(2, None)]
    assert validate(outcome.accepted, schema_of(columns)).rejected.schema == outcome.rejected.schema
    assert not validate(outcome.accepted, schema_of(columns)).rejected.height


def test_a_number_that_does_not_fit_its_column_is_not_called_one_of_another_type() -> None:
    columns = [
        Column(name="n", type="integer"),
        Column(name="v", type="decimal(10,2)"),
        Column(name="f", type="number"),
    ]
    texts = {
        "n": ["9223372036854775808", "-9223372036854775809", "9223372036854775807", "1,5", "x"],
        "v": ["6,123", "123456789,5", "12345678,50", "1e9", "x"],
        "f": ["1e999", "-1e400", "1e300", "1e-999", "x"],
    }
    rows = pl.DataFrame({"line_number": range(5)} | texts)
    notation = CANONICAL.model_copy(update={"numbers": NumberLayout(decimal=",")})
    rejected = validate(cast_columns(rows, columns, notation), schema_of(columns)).rejected
    assert dict(rejected.select("line_number", "reasons").iter_rows()) == {
        0: ["f_out_of_range", "n_out_of_range", "v_too_many_decimals"],
        1: ["f_out_of_range", "n_out_of_range", "v_out_of_range"],
        3: ["f_not_a_number", "n_not_an_integer", "v_out_of_range"],
        4: ["f_not_a_number", "n_not_an_integer", "v_not_a_decimal"],
    }


Numbers = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.from_regex(r"[+-]?[0-9]{0,12}\.?[0-9]{0,4}(?:[eE][+-]?[0-9]{1,2})?", fullmatch=True),
    st.text("0123456789.,eE+-", max_size=8),
)


@given(Numbers)
@settings(max_examples=examples(300), deadline=None)
def test_a_decimal_is_pythons_or_unreadable(text: str) -> None:
    expected: Any = UNREADABLE
    if re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", text):
        exact = Decimal(text)
        if abs(exact) < 10**10 and exact == exact.quantize(Decimal("0.01")):
            expected = exact
    assert value(text, "decimal(12,2)") == expected


@given(st.one_of(st.integers(-(2**70), 2**70).map(str), st.text("0123456789.-+ _", max_size=6)))
@settings(max_examples=examples(200), deadline=None)
def test_an_integer_is_pythons_or_unreadable(text: str) -> None:
    fits = re.fullmatch(r"[+-]?[0-9]+", text) and -(2**63) <= int(text) < 2**63
    assert value(text, "integer") == (int(text) if fits else UNREADABLE)
